"""Numba kernels of convolution and max-pooling in one.

They are built from the pieces of `deeplearning_tutorial.nnet.dispatch.numba.conv`. Only the rows of output
under one row of pooling windows exist at a time.
"""

from functools import cache

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.conv import Conv2d
from deeplearning_tutorial.nnet.dispatch.numba.conv import correlate_tiles
from deeplearning_tutorial.nnet.dispatch.numba.conv_layout import (
    BLOCKS,
    LAYOUT,
    empty_image,
    in_halves,
    layout_function,
    load_image,
    numbers,
    padded_positions,
    tap_offsets,
    tap_weights,
)
from deeplearning_tutorial.nnet.dispatch.numba.fused.winograd import (
    TILE,
    convolution_of_row,
    empty_band,
    filter_values,
    layout_of_products,
    multiply_band,
    suits_winograd,
)
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    all_finite,
    block_of,
    check,
    contiguous,
    kernel_njit,
    parallel,
    register_kernel,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import TILE_COLUMNS
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import (
    copy_elements,
    vector_copy,
    vector_or,
    vector_tanh,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.windows import MASK_LANES, max_window
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, result, zeros
from deeplearning_tutorial.nnet.dispatch.numba.transpose import transpose
from deeplearning_tutorial.nnet.fused.conv_pool import WORD_BITS, ConvMaxPool, plain_conv2d
from deeplearning_tutorial.nnet.fused.conv_pool import mask_words as words_of

# As many as images have, as opposed to maps of features.
FEW_CHANNELS = 4

mask_words = kernel_njit(words_of)
plain_layout = layout_function(plain_conv2d(Conv2d, True))


@kernel_njit
def find_live_windows(layout, filter_rows, filter_cols, window_rows, window_cols, image, skip, columns, live):
    """Note in ``live`` which pooling windows see a pixel other than zero; all, unless ``skip``.

    Where all pixels are zero so is the convolution, with all maxima tied, and the filters' gradient. On
    images of digits that are about half of the windows. Maps of features are dense, and not looked at.
    ``columns`` is scratch, of a row's pixels in whole vectors.
    """
    if not skip:
        live[:] = True
        return
    seen_rows = window_rows + filter_rows - 1
    seen = (window_cols + filter_cols - 1) * layout.channels
    length, step = layout.cols * layout.channels, window_cols * layout.channels
    for row in range(live.shape[0]):
        first = row * window_rows * length
        vector_copy(columns, 0, image, first, len(columns))
        for r in range(1, seen_rows):
            vector_or(columns, 0, image, first + r * length, len(columns))
        begin, last = 0, -1
        for col in range(live.shape[1]):
            end = col * step + seen
            for i in range(begin, end):
                if columns[i] != 0:
                    last = i
            live[row, col] = last >= col * step
            begin = end


@kernel_njit
def empty_columns(memory, layout, image):
    """Room for a row of pixels in whole vectors."""
    return empty(memory, 2 * in_halves(layout.cols * layout.channels, 2 * layout.half) * layout.half, image)


@cache
def forward_block(window_rows, window_cols, tanh):
    """Make the kernel that convolves and pools a block of images.

    If ``by_winograd`` is True, which the window must be a tile for, it takes the filters' values at the
    points, and notes in ``finite[block]`` whether the convolution is finite; if not, it may be wrong.
    """
    pool = max_window(window_rows, window_cols)
    positions = window_rows * window_cols
    in_tiles = (window_rows, window_cols) == (TILE, TILE)

    @parallel(
        lambda real: (
            LAYOUT, types.UniTuple(types.int64, 2), types.boolean, real[:, :, :, ::1],
            real[:, ::1], types.int64[::1], real[::1],
            real[:, :, :, ::1], types.uint64[:, :, :, :, ::1], types.boolean[::1],
        ),
        window_rows, window_cols, tanh,
    )  # fmt: skip
    def conv_max_pool_block(
        memory, block, blocks, layout, filter_shape, by_winograd, input, weights, offsets, biases, out, mask,
        finite,
    ):  # fmt: skip
        n_filters, lanes = layout.filters, len(biases)
        out_rows, out_cols = out.shape[2:]
        words = mask.shape[4]
        last_bits = ~np.uint64(0) >> np.uint64(WORD_BITS * words - n_filters)
        skip = layout.channels <= FEW_CHANNELS and all_finite(weights.reshape(weights.size))
        size, conv_positions = n_filters * out_rows * out_cols, padded_positions(out_cols * window_cols)
        # What is read back soon lies in scratch: the mask and the output, new memory, may not be in a cache.
        image = empty_image(memory, layout, TILE_COLUMNS * layout.channels + 2 * layout.half, input)
        live = empty(memory, (out_rows, out_cols), np.bool_)
        columns = empty_columns(memory, layout, input)
        lines = zeros(memory, (window_rows, conv_positions, lanes), input)
        wanted = empty(memory, conv_positions // TILE_COLUMNS, np.bool_)
        pooled = empty(memory, (out_cols + 1, lanes), input)
        chosen = zeros(memory, (out_cols + 1) * positions * words, np.uint64)
        maxima = empty(memory, size, input)
        tile_rows, tile_cols = (out_rows, out_cols) if by_winograd else (0, 0)
        products = layout_of_products(layout, tile_rows, tile_cols)
        band = empty_band(memory, layout, products, input) if in_tiles else (lines,)
        # After the last window, what pooling gives where the convolution is zero.
        n_octets, dead = lanes // MASK_LANES, out_cols
        pool(pooled, dead * lanes, chosen, dead * positions * words, words, lines, 0, 0, 0, biases, n_octets)
        begin, end = block_of(block, blocks, len(input))
        for b in range(begin, end):
            load_image(layout, input[b], image)
            find_live_windows(layout, *filter_shape, window_rows, window_cols, image, skip, columns, live)
            for row in range(out_rows):
                if in_tiles and by_winograd:
                    row_of_band = row % products.out_rows
                    if row_of_band == 0:
                        rows = min(products.out_rows, out_rows - row)
                        multiply_band(layout, products, image, row, rows, weights, offsets, band)
                    convolution_of_row(products, row_of_band, band, lines)
                    finite[block] &= all_finite(lines.reshape(lines.size))
                else:
                    for tile in range(len(wanted)):
                        col = tile * TILE_COLUMNS
                        alive = False
                        for window in range(col // window_cols, (col + TILE_COLUMNS - 1) // window_cols + 1):
                            alive |= live[row, min(window, out_cols - 1)]
                        wanted[tile] = alive
                    correlate_tiles(layout, image, row * window_rows, weights, 0, offsets, lines, wanted)
                for col in range(out_cols):
                    word = col * positions * words
                    if live[row, col]:
                        pool(
                            pooled, col * lanes, chosen, word, words,
                            lines, col * window_cols * lanes, lines.shape[1] * lanes, lanes,
                            biases, n_octets,
                        )  # fmt: skip
                    else:
                        copy_elements(pooled, col * lanes, pooled, dead * lanes, lanes)
                        copy_elements(chosen, word, chosen, dead * positions * words, positions * words)
                transpose(maxima, row * out_cols, out_rows * out_cols, pooled, 0, lanes, out_cols, n_filters)
                word = 0
                for col in range(out_cols):
                    for p in range(positions):
                        for i in range(words):
                            bits = chosen[word]
                            mask[b, row, col, p, i] = bits & last_bits if i == words - 1 else bits
                            word += 1
            if tanh:
                vector_tanh(out, b * size, maxima, 0, size)
            else:
                copy_elements(out, b * size, maxima, 0, size)

    return conv_max_pool_block


@cache
def forward(window_rows, window_cols, tanh):
    """Make the kernel of `ConvMaxPool`, to be called as a single block."""
    convolve_block = forward_block(window_rows, window_cols, tanh)
    in_tiles = (window_rows, window_cols) == (TILE, TILE)

    @parallel(
        lambda real: (
            LAYOUT, types.boolean, real[:, :, :, :], real[:, :, :, :], real[:], real[:, :, :, ::1],
            types.uint64[:, :, :, :, ::1],
        ),
        window_rows, window_cols, tanh, uses=[convolve_block],
    )  # fmt: skip
    def conv_max_pool(memory, block, blocks, layout, flip, input, filters, bias, out, mask):
        biases = zeros(memory, in_halves(layout.filters, MASK_LANES) * MASK_LANES, input)
        for k in range(len(bias)):
            biases[k] = bias[k]
        weights = tap_weights(memory, layout, filters, flip)
        offsets = tap_offsets(memory, layout, filters, (1, 1))
        blocks = min(len(input), 4 * BLOCKS)
        input, filter_shape = contiguous(memory, input), filters.shape[2:]
        finite = empty(memory, blocks, np.bool_)
        finite[:] = True
        if in_tiles and suits_winograd(layout, filter_shape):
            values, channels = filter_values(memory, layout, weights[0]), numbers(memory, layout.channels)
            check(
                convolve_block(
                    blocks, layout, filter_shape, True, input, values, channels, biases, out, mask, finite
                )
            )
            if finite.all():
                return
        check(
            convolve_block(
                blocks, layout, filter_shape, False, input, weights, offsets, biases, out, mask, finite
            )
        )

    return conv_max_pool


@register_kernel(ConvMaxPool)
def make_conv_max_pool(op, node, **kwargs):
    """Compile `ConvMaxPool`."""
    flip, (window_rows, window_cols) = op.filter_flip, op.ws
    positions = window_rows * window_cols
    convolve_and_pool = forward(window_rows, window_cols, op.tanh)
    convolve_and_pool.load(node.outputs[0].dtype)

    @kernel_njit
    def with_any_bias(input, filters, bias):
        layout = plain_layout(input, filters)
        rows, cols = layout.out_rows // window_rows, layout.out_cols // window_cols
        out = result((len(input), layout.filters, rows, cols), input)
        mask = result((len(input), rows, cols, positions, mask_words(layout.filters)), np.uint64)
        # A kernel pools one window at least: what it gives where the convolution is zero.
        if out.size:
            check(convolve_and_pool(1, layout, flip, input, filters, bias, out, mask))
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
