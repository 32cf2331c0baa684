"""Numba kernel of the sum of squares."""

from functools import partial

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    check,
    in_order,
    kernel_njit,
    parallel,
    register_kernel,
)
from deeplearning_tutorial.nnet.dispatch.numba.memory import missing, result
from deeplearning_tutorial.nnet.fused.sum_of_squares import SumOfSquares

# Below twice as many elements another thread costs more than it helps.
BLOCK_ELEMENTS = 1 << 14


# Sums in whatever order is fastest on the machine, but in the same one each time.
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


@register_kernel(SumOfSquares)
def make_sum_of_squares(op, node, **kwargs):
    """Compile `SumOfSquares`."""
    squares_block.load(node.inputs[0].dtype)

    @kernel_njit
    def sum_of_squares(x):
        partial, total = result(max(1, x.size // BLOCK_ELEMENTS), np.float64), result((), x)
        check(missing(total) or squares_block(len(partial), in_order(x).reshape(x.size), partial))
        in_double = 0.0
        for block in range(len(partial)):
            in_double += partial[block]
        total[()] = in_double
        return total

    return sum_of_squares
