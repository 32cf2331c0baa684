"""Numba kernels of the softmax and argmax of a matrix's rows."""

import numpy as np

from deeplearning_tutorial.nnet.dispatch.numba.fused.log_likelihood import softmax_and_divisors, softmax_block
from deeplearning_tutorial.nnet.dispatch.numba.jit import kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.kernel import check, register_kernel
from deeplearning_tutorial.nnet.dispatch.numba.memory import missing, result
from deeplearning_tutorial.nnet.fused.rows import RowArgmax, RowSoftmax


@kernel_njit
def row_softmax(x):
    """Compute `RowSoftmax`."""
    softmax, _, _ = softmax_and_divisors(x)
    return softmax


@kernel_njit
def row_argmax(x):
    """Compute `RowArgmax`."""
    rows, cols = x.shape
    if cols == 0:
        raise ValueError("attempt to get argmax of an empty sequence")
    places = result(rows, np.int64)
    check(missing(places))
    for i in range(rows):
        place = 0
        for j in range(1, cols):
            # Of a NaN both comparisons are false: the first one stays.
            if not (x[i, j] <= x[i, place] or np.isnan(x[i, place])):
                place = j
        places[i] = place
    return places


@register_kernel(RowSoftmax, lambda op: softmax_block)
def make_row_softmax(op, _kernel):
    """Compile `RowSoftmax`."""
    return row_softmax


@register_kernel(RowArgmax)
def make_row_argmax(op):
    """Compile `RowArgmax`."""
    return row_argmax
