"""Numba kernel of the product of two matrices, on the tile that convolutions use.

The result is divided into blocks of rows and columns. A block packs its columns of ``b``; each tile of the
result is then summed in registers over the whole inner length, so blocks and threads do not change it.
"""

import numpy as np
from numba import types
from numba.extending import overload

from deeplearning_tutorial.nnet.dispatch.numba import simd
from deeplearning_tutorial.nnet.dispatch.numba.kernel import block_of, kernel_njit, parallel, register_kernel
from deeplearning_tutorial.nnet.dispatch.numba.simd import (
    REGISTER_BYTES,
    TILE_COLUMNS,
    TILE_HALVES,
    convolve_tile,
    copy_elements,
)
from deeplearning_tutorial.nnet.matrix_product import MatrixProduct

# PyTensor's cache of compiled functions does not see an edited kernel: count up whenever one changes.
CACHE_VERSION = 3

# Rows in a block: enough to outweigh packing, few enough to share out.
BLOCK_ROWS = 128
# Elements in a block that is copied.
COPY_ELEMENTS = 1 << 14

in_halves = kernel_njit(simd.in_halves)


@parallel(lambda real: (real[:, :], real[:, ::1]), CACHE_VERSION)
def copy_block(block, blocks, b, out):
    """Copy some columns of a matrix that has its columns, not its rows, side by side in memory."""
    begin, end = block_of(block, blocks, b.shape[1])
    # Few columns at a time, so that the lines of the cache they are written to stay there.
    for left in range(begin, end, 8):
        for row in range(b.shape[0]):
            for col in range(left, min(left + 8, end)):
                out[row, col] = b[row, col]


@parallel(lambda real: (types.int64, types.int64, real[:, :], real[:, ::1], real[:, ::1]), CACHE_VERSION)
def product_block(block, blocks, row_blocks, col_blocks, a, b, out):
    """Compute a block of the result."""
    (rows, inner), cols = a.shape, b.shape[1]
    half = REGISTER_BYTES // a.itemsize // 2
    first_half, last_half = block_of(block % col_blocks, col_blocks, in_halves(cols, half))
    halves, left, right = last_half - first_half, first_half * half, min(last_half * half, cols)
    begin, end = block_of(block // col_blocks, row_blocks, rows)

    whole_vectors = last_half * half <= cols
    weights, first, width = b, left, cols
    # Packing costs as much as a few rows; vectors must not run over the end of ``b``.
    if end - begin >= BLOCK_ROWS or not whole_vectors:
        first, width = 0, halves * half
        weights = np.zeros((inner, width), a.dtype)
        for t in range(inner):
            copy_elements(weights, t * width, b, t * cols + left, right - left)

    row_step, inner_step = a.strides[0] // a.itemsize, a.strides[1] // a.itemsize
    offsets = np.empty(inner, np.int32)
    for t in range(inner):
        offsets[t] = t * inner_step
    tile = np.empty((TILE_COLUMNS, halves * half), a.dtype)
    # A tile is always whole: the last one overlaps the one before, and few rows are computed one by one.
    step, column = (TILE_COLUMNS, row_step) if end - begin >= TILE_COLUMNS else (1, 0)
    for start in range(begin, end, step):
        row = min(start, end - step)
        if whole_vectors and step == TILE_COLUMNS:
            convolve_tile(
                out, row * cols + left, cols, a, row * row_step, column,
                weights, first, width, offsets, halves,
            )  # fmt: skip
        else:
            convolve_tile(
                tile, 0, tile.shape[1], a, row * row_step, column, weights, first, width, offsets, halves
            )
            for r in range(step):
                copy_elements(out, (row + r) * cols + left, tile, r * tile.shape[1], right - left)


def in_row_order(b):
    """Return ``b`` itself or a copy whose rows lie side by side in memory."""


@overload(in_row_order)
def _in_row_order(b):
    if b.layout == "C":
        return lambda b: b

    def copy(b):
        out = np.empty(b.shape, b.dtype)
        copy_block(max(1, b.size // COPY_ELEMENTS), b, out)
        return out

    return copy


@kernel_njit
def matrix_product(a, b):
    """Compute `MatrixProduct`."""
    if a.shape[1] != b.shape[0]:
        raise ValueError("the columns of one matrix are not the rows of the other", a.shape, b.shape)
    rows, cols = len(a), b.shape[1]
    out = np.empty((rows, cols), a.dtype)
    halves = in_halves(cols, REGISTER_BYTES // a.itemsize // 2)
    col_blocks = (halves + TILE_HALVES - 1) // TILE_HALVES
    row_blocks = max(1, rows // BLOCK_ROWS)
    product_block(row_blocks * col_blocks, row_blocks, col_blocks, a, in_row_order(b), out)
    return out


@register_kernel(MatrixProduct)
def make_matrix_product(op, node, **kwargs):
    """Compile `MatrixProduct`."""
    product_block.load(node.outputs[0].dtype)
    copy_block.load(node.outputs[0].dtype)
    return matrix_product, CACHE_VERSION
