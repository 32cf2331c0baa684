"""Numba kernels of the sums of a matrix's columns, and of feature maps."""

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
from deeplearning_tutorial.nnet.dispatch.numba.memory import result, zeros
from deeplearning_tutorial.nnet.fused.column_sums import ColumnSums, MapSums

# With fewer columns, blocks would share lines of the cache.
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


@register_kernel(ColumnSums, lambda op: sums_block)
def make_column_sums(op, sums_block):
    """Compile `ColumnSums`."""

    @kernel_njit
    def column_sums(x):
        out = result(x.shape[1], x)
        blocks = max(1, min(x.size // BLOCK_SUMS, x.shape[1] // BLOCK_COLUMNS))
        check(sums_block(blocks, len(x), in_order(x).reshape(x.size), out))
        return out

    return column_sums


# Sums in whichever order is fastest on the machine, but always in the same one.
@partial(kernel_njit, fastmath={"reassoc"})
def total_of(values):
    """Sum in double precision."""
    total = 0.0
    # Numba does not make vectors of ``for value in values``.
    for i in range(len(values)):
        total += values[i]
    return total


@parallel(lambda real: (real[:, :, ::1], real[::1]))
def map_sums_block(memory, block, blocks, maps, out):
    """Sum a block of feature maps, over the batch and over positions, in double precision."""
    begin, end = block_of(block, blocks, len(out))
    for k in range(begin, end):
        total = 0.0
        for b in range(len(maps)):
            total += total_of(maps[b, k])
        out[k] = total


@register_kernel(MapSums, lambda op: map_sums_block)
def make_map_sums(op, map_sums_block):
    """Compile `MapSums`."""

    @kernel_njit
    def map_sums(x):
        batch, n_maps, rows, cols = x.shape
        out = result(n_maps, x)
        blocks = max(1, min(x.size // BLOCK_SUMS, n_maps))
        check(map_sums_block(blocks, in_order(x).reshape((batch, n_maps, rows * cols)), out))
        return out

    return map_sums
