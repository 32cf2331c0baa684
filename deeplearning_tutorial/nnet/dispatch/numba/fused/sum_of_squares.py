"""Numba kernel of the sum of squares."""

from functools import partial

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.dispatch.numba.arrays import in_order
from deeplearning_tutorial.nnet.dispatch.numba.jit import kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    BLOCK_SUMS,
    block_of,
    check,
    parallel,
    register_kernel,
)
from deeplearning_tutorial.nnet.dispatch.numba.memory import missing, result
from deeplearning_tutorial.nnet.fused.sum_of_squares import SumOfSquares


# Sums in whichever order is fastest on the machine, but always in the same one.
@partial(kernel_njit, fastmath={"reassoc", "contract"})
def squares_of(values):
    """Sum the squares in double precision."""
    total = 0.0
    # Numba does not make vectors of ``for value in values``.
    for i in range(len(values)):
        total += np.float64(values[i]) * np.float64(values[i])
    return total


@parallel(lambda real: (real[::1], types.float64[::1]))
def squares_block(memory, block, blocks, x, partial):
    """Sum a block of elements."""
    begin, end = block_of(block, blocks, len(x))
    partial[block] = squares_of(x[begin:end])


@register_kernel(SumOfSquares, lambda op: squares_block)
def make_sum_of_squares(op, squares_block):
    """Compile `SumOfSquares`."""

    @kernel_njit
    def sum_of_squares(x):
        partial, total = result(max(1, x.size // BLOCK_SUMS), np.float64), result((), x)
        check(missing(total) or squares_block(len(partial), in_order(x).reshape(x.size), partial))
        in_float64 = 0.0
        for block in range(len(partial)):
            in_float64 += partial[block]
        total[()] = in_float64
        return total

    return sum_of_squares
