"""Numba kernel of the product of two matrices, on the tile that convolutions use.

The result is divided into blocks of rows and columns. A block packs its columns of ``b``; each tile of the
result is then summed in registers over the whole inner length, so it does not depend on blocks and threads.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.dispatch.numba.arrays import all_finite, in_order
from deeplearning_tutorial.nnet.dispatch.numba.jit import exact_njit, kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    check,
    parallel,
    register_kernel,
    tuple_type,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import REGISTER_BYTES
from deeplearning_tutorial.nnet.dispatch.numba.llvm.narrow_products import (
    INNER_COLUMNS,
    INNER_ROWS,
    inner_tile,
    list_vectors,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import Grid, Rows
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import (
    TILE_COLUMNS,
    TILE_HALVES,
    convolve_tile,
    in_halves,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import copy_elements, sgd_step
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, missing, result, zeros
from deeplearning_tutorial.nnet.dispatch.numba.transpose import transpose
from deeplearning_tutorial.nnet.fused.matrix_product import BatchedMatrixProduct, MatrixProduct, WeightUpdate

# Rows in a block: enough to outweigh packing, few enough for blocks for all threads.
BLOCK_ROWS = 128
# Columns that may leave half of a tile's vectors empty.
NARROW = 12
# Elements in a block that is copied.
COPY_ELEMENTS = 1 << 14


class GradientStep(NamedTuple):
    """A step of gradient descent whose gradient is a product."""

    update: bool
    """False for a product alone; then nothing else is read."""
    weights: Any
    rate: float
    decay: float


def gradient_step_type(real):
    """Return the type of `GradientStep`."""
    return tuple_type(GradientStep, types.boolean, real[:, ::1], real, real)


@kernel_njit
def no_step(out):
    """Return the `GradientStep` of a product that is not a gradient."""
    zero = out.dtype.type(0)
    return GradientStep(False, out, zero, zero)


@parallel(lambda real: (real[:, :], real[:, ::1]))
def copy_block(memory, block, blocks, b, out):
    """Copy some columns of a matrix whose columns, not rows, are contiguous in memory."""
    begin, end = block_of(block, blocks, b.shape[1])
    # Few columns at a time, so that the lines to which they are written stay in the cache.
    for left in range(begin, end, 8):
        for row in range(b.shape[0]):
            for col in range(left, min(left + 8, end)):
                out[row, col] = b[row, col]


@kernel_njit
def steps(x):
    """Return the distances between the rows and between the columns, in elements."""
    return x.strides[0] // x.itemsize, x.strides[1] // x.itemsize


@kernel_njit
def column_blocks(halves):
    """Return the number of blocks, each for a tile, into which half vectors of columns are divided."""
    return (halves + TILE_HALVES - 1) // TILE_HALVES


@kernel_njit
def part_of(block, blocks, rows, halves):
    """Return the first row of a block and of the next, its first half vector of columns and their number."""
    col_blocks = column_blocks(halves)
    begin, end = block_of(block // col_blocks, blocks // col_blocks, rows)
    first, last = block_of(block % col_blocks, col_blocks, halves)
    return begin, end, first, last - first


@exact_njit
def update_rows(out, step, tile, first, begin, end, left, right):
    """Update the weights of rows in ``range(begin, end)`` and columns in ``range(left, right)``.

    ``tile`` is the gradient from row ``first`` and column ``left`` on. Returns the sum of squares of these
    weights before.
    """
    cols, width = out.shape[1], tile.shape[1]
    half = REGISTER_BYTES // tile.itemsize // 2
    whole = (right - left) // half
    squares = np.float64(
        sgd_step(
            Rows(out, begin * cols + left, cols),
            Rows(step.weights, begin * cols + left, cols),
            Rows(tile, (begin - first) * width, width),
            step.rate,
            step.decay,
            end - begin,
            whole,
        )
    )
    for row in range(begin, end):
        for col in range(left + whole * half, right):
            weight = step.weights[row, col]
            squares += weight * weight
            out[row, col] = weight - step.rate * (tile[row - first, col - left] + step.decay * weight)
    return squares


@parallel(lambda real: (real[:, :], real[:, :], real[:, ::1], gradient_step_type(real), types.float64[::1]))
def product_block(memory, block, blocks, a, b, out, step, squares):
    """Compute a block of the product, or of the weights after a `GradientStep`.

    The rows of ``b`` are contiguous in memory. ``out`` may be the weights themselves. ``squares[block]``
    receives the sum of squares of the block's weights before; without memory neither it nor the weights
    change.
    """
    inner, cols = b.shape
    half = REGISTER_BYTES // a.itemsize // 2
    begin, end, first_half, halves = part_of(block, blocks, len(a), in_halves(cols, half))
    left, right = first_half * half, min((first_half + halves) * half, cols)

    whole_vectors = (first_half + halves) * half <= cols
    columns, first, width = b, left, steps(b)[0]
    # Packing costs as much as a few rows; vectors must not run over the end of ``b``.
    if end - begin >= BLOCK_ROWS or not whole_vectors:
        columns = zeros(memory, (inner, halves * half), a)
        for t in range(inner):
            copy_elements(columns, t * halves * half, b, t * width + left, right - left)
        first, width = 0, halves * half

    row_step, inner_step = steps(a)
    offsets = empty(memory, inner, np.int64)
    for t in range(inner):
        offsets[t] = t * inner_step
    tile = empty(memory, (TILE_COLUMNS, halves * half), a)
    squares[block] = 0
    # A tile is always whole: the last one overlaps the one before, and few rows are computed one by one.
    n_rows, column = (TILE_COLUMNS, row_step) if end - begin >= TILE_COLUMNS else (1, 0)
    for start in range(begin, end, n_rows):
        row = min(start, end - n_rows)
        rows_of_a, packed = Rows(a, row * row_step, column), Rows(columns, first, width)
        if whole_vectors and n_rows == TILE_COLUMNS and not step.update:
            target = Rows(out, row * cols + left, cols)
            convolve_tile(target, rows_of_a, packed, offsets, halves, False)
            continue
        convolve_tile(Rows(tile, 0, tile.shape[1]), rows_of_a, packed, offsets, halves, False)
        if step.update:
            # From the row that the tile before has not updated.
            squares[block] += update_rows(out, step, tile, row, start, row + n_rows, left, right)
        else:
            for r in range(n_rows):
                copy_elements(out, (row + r) * cols + left, tile, r * tile.shape[1], right - left)


@parallel(lambda real: (real[:, :], real[:, ::1], real[:, ::1]))
def inner_block(memory, block, blocks, a, transposed, out):
    """Multiply a block of rows by a few columns; the rows of both matrices are contiguous in memory."""
    cols, inner = transposed.shape
    begin, end = block_of(block, blocks, len(a))
    a_step, _ = steps(a)
    numbers = empty(memory, inner // (REGISTER_BYTES // a.itemsize), np.int64)
    every = not all_finite(transposed.reshape(transposed.size))
    # Rows are multiplied in pairs: the last pair may overlap the one before, and a single row is taken twice.
    step, row_step = (INNER_ROWS, 1) if end - begin >= INNER_ROWS else (1, 0)
    for start in range(begin, end, step):
        row = min(start, end - step)
        rows_of_a = Rows(a, row * a_step, row_step * a_step)
        count = list_vectors(numbers, rows_of_a, inner, every)
        for col in range(0, cols, INNER_COLUMNS):
            target = Grid(out, row * cols + col, row_step * cols, 1)
            columns = Rows(transposed, col * inner, inner)
            n_columns = min(INNER_COLUMNS, cols - col)
            inner_tile(target, rows_of_a, columns, numbers, count, inner, n_columns)


@kernel_njit
def in_row_order(memory, b):
    """Return ``b``, or a copy of it, whose rows are contiguous in memory."""
    if steps(b)[1] == 1:
        return b
    out = empty(memory, b.shape, b)
    check(copy_block(max(1, b.size // COPY_ELEMENTS), b, out))
    return out


@kernel_njit
def transposed_columns(memory, b):
    """Return a copy of a narrow matrix with its columns as rows."""
    b = in_row_order(memory, b)
    inner, cols = b.shape
    out = empty(memory, (cols, inner), b)
    transpose(Rows(out, 0, inner), Rows(b, 0, steps(b)[0]), inner, cols)
    return out


@kernel_njit
def update_without_memory(a, b, out, weights, rate, decay):
    """Update weights as `product_block` does, slowly, but without any memory; return their sum of squares."""
    squares = 0.0
    for row in range(len(a)):
        for col in range(b.shape[1]):
            slope = a.dtype.type(0)
            for t in range(len(b)):
                slope += a[row, t] * b[t, col]
            weight = weights[row, col]
            squares += weight * weight
            out[row, col] = weight - rate * (slope + decay * weight)
    return squares


@kernel_njit
def multiply_tiles(memory, a, b, out, step):
    """Multiply tile by tile; return the sum of squares of the weights before a `GradientStep`."""
    rows, cols = out.shape
    half = REGISTER_BYTES // a.itemsize // 2
    halves = in_halves(cols, half)
    blocks = max(1, rows // BLOCK_ROWS) * column_blocks(halves)
    b = in_row_order(memory, b)
    squares = empty(memory, blocks, np.float64)
    squares[:] = -1
    failed = product_block(blocks, a, b, out, step, squares)
    if failed and step.update:
        # Weights of which only some are updated would be useless.
        for block in range(blocks):
            if squares[block] == -1:
                begin, end, first, number = part_of(block, blocks, rows, halves)
                left, right = first * half, min((first + number) * half, cols)
                old, new = step.weights[begin:end, left:right], out[begin:end, left:right]
                squares[block] = update_without_memory(
                    a[begin:end], b[:, left:right], new, old, step.rate, step.decay
                )
    else:
        check(failed)
    total = 0.0
    for block in range(blocks):
        total += squares[block]
    return total


@parallel(
    lambda real: (real[:, :], real[:, :], real[:, ::1], gradient_step_type(real), real[::1]),
    uses=(copy_block, product_block, inner_block),
)
def multiply(memory, block, blocks, a, b, out, step, squares):
    """Multiply; few columns would leave a tile's vectors half empty, so other loops take them.

    A `GradientStep` sets the one element of ``squares``, if there is one, to the sum of squares of the
    weights before; it fails before it writes any weight or not at all. `multiply` runs as a single block, so
    that it is compiled once, not for every order in memory that a graph has.
    """
    (rows, inner), cols = a.shape, b.shape[1]
    row_step, inner_step = steps(a)
    if step.update:
        total = multiply_tiles(memory, a, b, out, step)
        if len(squares):
            squares[0] = total
    elif cols <= NARROW and inner >= 4 * NARROW and inner_step == 1:
        check(inner_block(max(1, rows // BLOCK_ROWS), a, transposed_columns(memory, b), out))
    elif cols <= NARROW and rows >= 4 * NARROW and row_step == 1:
        transposed = empty(memory, (cols, rows), a)
        multiply_tiles(memory, b.T, a.T, transposed, step)
        transpose(Rows(out, 0, cols), Rows(transposed, 0, rows), cols, rows)
    else:
        multiply_tiles(memory, a, b, out, step)


@kernel_njit
def matrix_product(a, b):
    """Compute `MatrixProduct`."""
    if a.shape[1] != b.shape[0]:
        raise ValueError("the columns of one matrix are not the rows of the other", a.shape, b.shape)
    out, no_squares = result((len(a), b.shape[1]), a), result(0, a)
    check(multiply(1, a, b, out, no_step(out), no_squares))
    return out


@register_kernel(MatrixProduct, lambda op: multiply)
def make_matrix_product(op, _kernel):
    """Compile `MatrixProduct`."""
    return matrix_product


@parallel(lambda real: (real[:, :, :], real[:, :, :], real[:, :, ::1]), uses=(multiply,))
def multiply_stack(memory, block, blocks, a, b, out):
    """Compute `BatchedMatrixProduct` in a single block, one pair of matrices after the other."""
    no_squares = empty(memory, 0, a)
    for i in range(len(out)):
        check(multiply(1, a[i], b[i], out[i], no_step(out[i]), no_squares))


@register_kernel(BatchedMatrixProduct, lambda op: multiply_stack)
def make_batched_matrix_product(op, multiply_stack):
    """Compile `BatchedMatrixProduct`."""

    @kernel_njit
    def batched_matrix_product(a, b):
        if len(a) != len(b) or a.shape[2] != b.shape[1]:
            raise ValueError("the stacks of matrices do not fit each other", a.shape, b.shape)
        out = result((len(a), a.shape[1], b.shape[2]), a)
        check(multiply_stack(1, a, b, out))
        return out

    return batched_matrix_product


@register_kernel(WeightUpdate, lambda op: multiply)
def make_weight_update(op, multiply):
    """Compile `WeightUpdate`."""
    inplace = op.inplace

    @kernel_njit
    def update(weights, a, b, learning_rate, weight_decay, squares):
        if weights.shape != (len(a), b.shape[1]) or a.shape[1] != b.shape[0]:
            raise ValueError("the product does not have the weights' shape", weights.shape, a.shape, b.shape)
        if learning_rate.size != 1 or weight_decay.size != 1:
            shapes = learning_rate.shape, weight_decay.shape
            raise ValueError("learning_rate and weight_decay must have one element", shapes)
        old = in_order(weights)
        new = old if inplace else result(old.shape, old)
        if squares is None:
            squares = new.reshape(new.size)[:0]
        rate, decay = learning_rate[0, 0], weight_decay[0, 0]
        check(missing(old) or missing(new) or missing(squares))
        if multiply(1, a, b, new, GradientStep(True, old, rate, decay), squares):
            # It takes long, but other weights may have been updated, and part of a step is useless.
            total = update_without_memory(a, b, new, old, rate, decay)
            if len(squares):
                squares[0] = total
        return new

    @kernel_njit
    def weight_update(weights, a, b, learning_rate, weight_decay):
        squares = result((), weights)
        return update(weights, a, b, learning_rate, weight_decay, squares.reshape(1)), squares

    @kernel_njit
    def weight_update_alone(weights, a, b, learning_rate, weight_decay):
        return update(weights, a, b, learning_rate, weight_decay, None)

    return weight_update if op.squares else weight_update_alone
