"""Numba kernel of the sums of a matrix's columns."""

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
from deeplearning_tutorial.nnet.dispatch.numba.memory import result, zeros
from deeplearning_tutorial.nnet.fused.column_sums import ColumnSums

# Below twice as many elements another thread costs more than it helps.
BLOCK_ELEMENTS = 1 << 14
# Fewer columns would share lines of the cache with the next block's.
BLOCK_COLUMNS = 32


@parallel(lambda real: (types.int64, real[::1], real[::1]))
def sums_block(memory, block, blocks, rows, x, out):
    """Sum a block of columns, in double precision."""
    cols = len(out)
    begin, end = block_of(block, blocks, cols)
    totals = zeros(memory, end - begin, np.float64)
    for row in range(rows):
        first = row * cols + begin
        for i in range(len(totals)):
            totals[i] += x[first + i]
    for i in range(len(totals)):
        out[begin + i] = totals[i]


@register_kernel(ColumnSums)
def make_column_sums(op, node, **kwargs):
    """Compile `ColumnSums`."""
    sums_block.load(node.outputs[0].dtype)

    @kernel_njit
    def column_sums(x):
        out = result(x.shape[1], x)
        blocks = max(1, min(x.size // BLOCK_ELEMENTS, x.shape[1] // BLOCK_COLUMNS))
        check(sums_block(blocks, len(x), in_order(x).reshape(x.size), out))
        return out

    return column_sums
