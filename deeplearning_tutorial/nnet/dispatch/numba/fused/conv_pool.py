"""Numba kernels of convolution and max-pooling in one.

They are built from the pieces of `deeplearning_tutorial.nnet.dispatch.numba.conv`. Only the rows of output
under one row of pooling windows exist at a time.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.conv import Conv2d
from deeplearning_tutorial.nnet.dispatch.numba.arrays import all_finite, contiguous
from deeplearning_tutorial.nnet.dispatch.numba.conv import correlate_tiles
from deeplearning_tutorial.nnet.dispatch.numba.conv_layout import (
    BLOCKS,
    CONV_LAYOUT,
    consecutive_offsets,
    conv_layout_function,
    empty_image,
    load_image,
    padded_positions,
    tap_offsets,
    tap_weights,
)
from deeplearning_tutorial.nnet.dispatch.numba.fused.winograd import (
    convolution_of_row,
    empty_band,
    filter_values,
    layout_of_products,
    multiply_band,
    suits_winograd,
)
from deeplearning_tutorial.nnet.dispatch.numba.jit import exact_njit, kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    check,
    parallel,
    register_kernel,
    tuple_type,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import Elements, Grid, Rows
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import TILE_COLUMNS, in_halves
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import (
    copy_elements,
    vector_copy,
    vector_or,
    vector_tanh,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.windows import MASK_LANES, max_window
from deeplearning_tutorial.nnet.dispatch.numba.llvm.winograd_transforms import TILE
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, result, zeros
from deeplearning_tutorial.nnet.dispatch.numba.transpose import transpose
from deeplearning_tutorial.nnet.fused.conv_pool import WORD_BITS, ConvMaxPool, plain_conv2d
from deeplearning_tutorial.nnet.fused.conv_pool import mask_words as words_of

# At most as many as images have, as opposed to feature maps.
FEW_CHANNELS = 4

mask_words = kernel_njit(words_of)


class BiasedFilters(NamedTuple):
    """Filters as a kernel reads them: `tap_weights` or `filter_values`, their offsets, and biases."""

    weights: Any
    offsets: Any
    biases: Any
    """One for each filter, padded with zeros to a multiple of MASK_LANES."""


class PooledMaps(NamedTuple):
    """The outputs of `ConvMaxPool`."""

    maps: Any
    mask: Any


class PooledRow(NamedTuple):
    """What pooling gives for a row of windows, in memory that is read again before it leaves the cache."""

    maxima: Any
    """Shape (windows + 1, filters); the last row is for windows where the convolution is zero."""
    mask: Any
    """Shape (windows + 1, positions, words)."""


def biased_filters_type(real):
    """Return the type of `BiasedFilters`."""
    return tuple_type(BiasedFilters, real[:, ::1], types.int64[::1], real[::1])


def pooled_maps_type(real):
    """Return the type of `PooledMaps`."""
    return tuple_type(PooledMaps, real[:, :, :, ::1], types.uint64[:, :, :, :, ::1])


def plain_layout_function(op):
    """Make ``layout(input, filters)`` for the convolution of a fused Op."""
    return conv_layout_function(plain_conv2d(Conv2d, op.filter_flip))


@kernel_njit
def find_nonzero_windows(layout, window_shape, image, examine, columns, nonzero):
    """Note in ``nonzero`` which pooling windows see a pixel other than zero; all, unless to ``examine`` them.

    Where all pixels are zero so is the convolution, with all maxima tied, and the filters' gradient. On
    images of digits these are about half of the windows. Feature maps are dense, and not examined.
    ``columns`` is scratch, of a row's pixels in whole vectors.
    """
    if not examine:
        nonzero[:] = True
        return
    window_rows, window_cols = window_shape
    seen_rows = window_rows + layout.filter_rows - 1
    seen = (window_cols + layout.filter_cols - 1) * layout.channels
    length, step = layout.cols * layout.channels, window_cols * layout.channels
    for row in range(nonzero.shape[0]):
        first = row * window_rows * length
        vector_copy(columns, 0, image, first, len(columns))
        for r in range(1, seen_rows):
            vector_or(columns, 0, image, first + r * length, len(columns))
        begin, last = 0, -1
        for col in range(nonzero.shape[1]):
            end = col * step + seen
            for i in range(begin, end):
                if columns[i] != 0:
                    last = i
            nonzero[row, col] = last >= col * step
            begin = end


@kernel_njit
def empty_columns(memory, layout, image):
    """Return memory for a row of pixels in whole vectors."""
    return empty(memory, 2 * in_halves(layout.cols * layout.channels, 2 * layout.half) * layout.half, image)


@kernel_njit
def select_tiles(nonzero, window_cols, tile_mask):
    """Note in ``tile_mask`` the tiles of a row that lie, at least in part, in windows that are not zero."""
    for tile in range(len(tile_mask)):
        col = tile * TILE_COLUMNS
        needed = False
        for window in range(col // window_cols, (col + TILE_COLUMNS - 1) // window_cols + 1):
            needed |= nonzero[min(window, len(nonzero) - 1)]
        tile_mask[tile] = needed


@cache
def window_pooling(window_rows, window_cols):
    """Make ``pool_window(pooled, i, lines, col, biases)``, which pools from column ``col`` into window i."""
    pool, positions = max_window(window_rows, window_cols), window_rows * window_cols

    @exact_njit
    def pool_window(pooled, i, lines, col, biases):
        lanes, words = lines.shape[2], pooled.mask.shape[2]
        pool(
            Elements(pooled.maxima, i * lanes),
            Rows(pooled.mask, i * positions * words, words),
            Grid(lines, col * lanes, lines.shape[1] * lanes, lanes),
            biases,
            lanes // MASK_LANES,
        )

    return pool_window


@kernel_njit
def empty_row(memory, mask, biases):
    """Return memory for a `PooledRow`, with a mask of zeros."""
    _, _, cols, positions, words = mask.shape
    maxima = empty(memory, (cols + 1, len(biases)), biases)
    return PooledRow(maxima, zeros(memory, (cols + 1, positions, words), np.uint64))


@exact_njit
def store_row(pooled, n_filters, row, maxima, mask):
    """Copy a row's maxima to those of an image, (filters, rows * cols), and its mask to that of the image."""
    rows, cols, positions, words = mask.shape
    lanes, flat_mask = pooled.maxima.shape[1], pooled.mask.reshape(pooled.mask.size)
    last_bits = ~np.uint64(0) >> np.uint64(WORD_BITS * words - n_filters)
    transpose(Rows(maxima, row * cols, rows * cols), Rows(pooled.maxima, 0, lanes), cols, n_filters)
    word = 0
    for col in range(cols):
        for p in range(positions):
            for i in range(words):
                bits = flat_mask[word]
                mask[row, col, p, i] = bits & last_bits if i == words - 1 else bits
                word += 1


@cache
def plain_block(window_rows, window_cols, tanh):
    """Make the kernel that convolves and pools a block of images, and takes the tanh of the maxima."""
    pool_window = window_pooling(window_rows, window_cols)
    positions, store_maps = window_rows * window_cols, vector_tanh if tanh else copy_elements

    @parallel(
        lambda real: (CONV_LAYOUT, real[:, :, :, ::1], biased_filters_type(real), pooled_maps_type(real)),
        window_rows, window_cols, tanh,
    )  # fmt: skip
    def conv_max_pool_block(memory, block, blocks, layout, input, filters, results):
        weights, lanes = filters.weights, len(filters.biases)
        _, n_filters, out_rows, out_cols = results.maps.shape
        words = results.mask.shape[4]
        examine = layout.channels <= FEW_CHANNELS and all_finite(weights.reshape(weights.size))
        size, conv_positions = n_filters * out_rows * out_cols, padded_positions(out_cols * window_cols)
        image = empty_image(memory, layout, TILE_COLUMNS * layout.channels + 2 * layout.half, input)
        nonzero, columns = empty(memory, (out_rows, out_cols), np.bool_), empty_columns(memory, layout, input)
        lines = zeros(memory, (window_rows, conv_positions, lanes), input)
        tile_mask = empty(memory, conv_positions // TILE_COLUMNS, np.bool_)
        pooled, maxima = empty_row(memory, results.mask, filters.biases), empty(memory, size, input)
        # After the last window, what pooling gives where the convolution is zero.
        zero_window = out_cols
        pool_window(pooled, zero_window, lines, 0, filters.biases)
        begin, end = block_of(block, blocks, len(input))
        for b in range(begin, end):
            load_image(layout, input[b], image)
            find_nonzero_windows(layout, (window_rows, window_cols), image, examine, columns, nonzero)
            for row in range(out_rows):
                select_tiles(nonzero[row], window_cols, tile_mask)
                correlate_tiles(
                    layout, image, row * window_rows, weights, 0, filters.offsets, lines, tile_mask
                )
                for col in range(out_cols):
                    if nonzero[row, col]:
                        pool_window(pooled, col, lines, col * window_cols, filters.biases)
                    else:
                        n = positions * words
                        copy_elements(pooled.maxima, col * lanes, pooled.maxima, zero_window * lanes, lanes)
                        copy_elements(pooled.mask, col * n, pooled.mask, zero_window * n, n)
                store_row(pooled, n_filters, row, maxima, results.mask[b])
            store_maps(results.maps, b * size, maxima, 0, size)

    return conv_max_pool_block


@cache
def winograd_block(tanh):
    """Make the kernel that does as `plain_block` by Winograd's filtering, whose tiles are the windows.

    The filters' weights are `filter_values`. ``finite[block]`` becomes False if the convolution is not
    finite; the results may then be wrong.
    """
    pool_window, store_maps = window_pooling(TILE, TILE), vector_tanh if tanh else copy_elements

    @parallel(
        lambda real: (
            CONV_LAYOUT, real[:, :, :, ::1], biased_filters_type(real), pooled_maps_type(real),
            types.boolean[::1],
        ),
        tanh,
    )  # fmt: skip
    def winograd_max_pool_block(memory, block, blocks, layout, input, filters, results, finite):
        _, n_filters, out_rows, out_cols = results.maps.shape
        size, conv_positions = n_filters * out_rows * out_cols, padded_positions(out_cols * TILE)
        image = empty_image(memory, layout, TILE_COLUMNS * layout.channels + 2 * layout.half, input)
        lines = zeros(memory, (TILE, conv_positions, len(filters.biases)), input)
        pooled, maxima = empty_row(memory, results.mask, filters.biases), empty(memory, size, input)
        products = layout_of_products(layout, out_rows, out_cols)
        band = empty_band(memory, layout, products, input)
        begin, end = block_of(block, blocks, len(input))
        for b in range(begin, end):
            load_image(layout, input[b], image)
            for row in range(out_rows):
                row_of_band = row % products.out_rows
                if row_of_band == 0:
                    tile_rows = row, min(row + products.out_rows, out_rows)
                    multiply_band(layout, products, image, tile_rows, filters.weights, filters.offsets, band)
                convolution_of_row(products, row_of_band, band, lines)
                finite[block] &= all_finite(lines.reshape(lines.size))
                for col in range(out_cols):
                    pool_window(pooled, col, lines, col * TILE, filters.biases)
                store_row(pooled, n_filters, row, maxima, results.mask[b])
            store_maps(results.maps, b * size, maxima, 0, size)

    return winograd_max_pool_block


@kernel_njit
def no_winograd(memory, blocks, layout, input, filters, results):
    """Return False: windows that are no tiles of Winograd's filtering are not computed by it."""
    return False


def winograd(tanh):
    """Make a function that tries Winograd's filtering and tells whether it succeeded; list its kernels."""
    run_block = winograd_block(tanh)

    @kernel_njit
    def run_winograd(memory, blocks, layout, input, filters, results):
        if not suits_winograd(layout):
            return False
        values = filter_values(memory, layout, filters.weights[0])
        offsets = consecutive_offsets(memory, layout.channels)
        finite = empty(memory, blocks, np.bool_)
        finite[:] = True
        values_of_filters = BiasedFilters(values, offsets, filters.biases)
        check(run_block(blocks, layout, input, values_of_filters, results, finite))
        return finite.all()

    return run_winograd, [run_block]


@cache
def forward(window_rows, window_cols, tanh):
    """Make the kernel of `ConvMaxPool`, which runs as a single block."""
    in_tiles = (window_rows, window_cols) == (TILE, TILE)
    run_plain = plain_block(window_rows, window_cols, tanh)
    run_winograd, winograd_kernels = winograd(tanh) if in_tiles else (no_winograd, [])

    @parallel(
        lambda real: (
            CONV_LAYOUT, real[:, :, :, :], real[:, :, :, :], real[:], pooled_maps_type(real)
        ),
        window_rows, window_cols, tanh, uses=[run_plain, *winograd_kernels],
    )  # fmt: skip
    def conv_max_pool(memory, block, blocks, layout, input, filters, bias, results):
        biases = zeros(memory, in_halves(layout.filters, MASK_LANES) * MASK_LANES, input)
        for k in range(len(bias)):
            biases[k] = bias[k]
        weights, blocks = tap_weights(memory, layout, filters), min(len(input), 4 * BLOCKS)
        input = contiguous(memory, input)
        filters = BiasedFilters(weights, tap_offsets(memory, layout), biases)
        if not run_winograd(memory, blocks, layout, input, filters, results):
            check(run_plain(blocks, layout, input, filters, results))

    return conv_max_pool


@register_kernel(ConvMaxPool, lambda op: forward(*op.ws, op.tanh))
def make_conv_max_pool(op, convolve_and_pool):
    """Compile `ConvMaxPool`."""
    (window_rows, window_cols), layout_of = op.ws, plain_layout_function(op)
    positions = window_rows * window_cols

    @kernel_njit
    def with_any_bias(input, filters, bias):
        layout = layout_of(input, filters)
        rows, cols = layout.out_rows // window_rows, layout.out_cols // window_cols
        out = result((len(input), layout.filters, rows, cols), input)
        mask = result((len(input), rows, cols, positions, mask_words(layout.filters)), np.uint64)
        # A kernel pools at least one window, of zeros.
        if out.size:
            check(convolve_and_pool(1, layout, input, filters, bias, PooledMaps(out, mask)))
        return out, mask

    @kernel_njit
    def biased(input, filters, bias):
        if len(bias) != len(filters):
            raise ValueError("bias has not one element per filter", bias.shape, filters.shape)
        return with_any_bias(input, filters, bias)

    @kernel_njit
    def unbiased(input, filters):
        # No elements, which takes no memory that an exception would leave behind.
        return with_any_bias(input, filters, filters[:0, 0, 0, 0])

    return biased if op.bias else unbiased
