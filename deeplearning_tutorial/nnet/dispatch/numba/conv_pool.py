"""Numba kernels of convolution and max-pooling in one, and of their gradients.

They are built from the pieces of `deeplearning_tutorial.nnet.dispatch.numba.conv`. Only the rows of output
under one row of pooling windows exist at a time.
"""

from functools import cache, partial

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.conv import Conv2d
from deeplearning_tutorial.nnet.conv_pool import (
    WORD_BITS,
    ConvMaxPool,
    ConvMaxPoolGradFilters,
    ConvMaxPoolGradInput,
    plain_conv2d,
)
from deeplearning_tutorial.nnet.conv_pool import mask_words as words_of
from deeplearning_tutorial.nnet.dispatch.numba.conv import correlate_tiles
from deeplearning_tutorial.nnet.dispatch.numba.conv_gradients import (
    add_filters,
    add_pixels,
    empty_partial,
    runs_of_weights,
    sum_of_blocks,
)
from deeplearning_tutorial.nnet.dispatch.numba.conv_layout import (
    BLOCKS,
    LAYOUT,
    empty_image,
    in_halves,
    layout_function,
    load_image,
    padded_positions,
    store_image,
    tap_offsets,
    tap_weights,
)
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    all_finite,
    block_of,
    keep,
    kernel_njit,
    parallel,
    register_kernel,
    unowned,
)
from deeplearning_tutorial.nnet.dispatch.numba.simd import TILE_COLUMNS, trailing_zeros
from deeplearning_tutorial.nnet.dispatch.numba.transpose import transpose
from deeplearning_tutorial.nnet.dispatch.numba.vectors import copy_elements, vector_tanh
from deeplearning_tutorial.nnet.dispatch.numba.windows import MASK_LANES, max_window
from deeplearning_tutorial.nnet.dispatch.numba.winograd import (
    TILE,
    convolution_of_row,
    empty_band,
    filter_values,
    layout_of_products,
    multiply_band,
    suits_winograd,
)

# PyTensor's cache of compiled functions does not see an edited kernel: count up whenever one changes.
CACHE_VERSION = 34

# As many as images have, as opposed to maps of features.
FEW_CHANNELS = 4

mask_words = kernel_njit(words_of)


@kernel_njit
def find_live_windows(layout, filter_rows, filter_cols, window_rows, window_cols, image, skip, columns, live):
    """Note in ``live`` which pooling windows see a pixel other than zero; all, unless ``skip``.

    Where all pixels are zero so is the convolution, with all maxima tied, and the filters' gradient. On
    images of digits that are about half of the windows. Maps of features are dense, and not looked at.
    ``columns`` is scratch, of a row's pixels.
    """
    if not skip:
        live[:] = True
        return
    seen_rows = window_rows + filter_rows - 1
    seen = (window_cols + filter_cols - 1) * layout.channels
    length, step = len(columns), window_cols * layout.channels
    for row in range(live.shape[0]):
        columns[:] = 0
        for r in range(row * window_rows, row * window_rows + seen_rows):
            for i in range(length):
                columns[i] |= image[r * length + i] != 0
        for col in range(live.shape[1]):
            alive = False
            for i in range(col * step, col * step + seen):
                alive |= columns[i] != 0
            live[row, col] = alive


@cache
def forward_block(window_rows, window_cols, tanh, by_winograd):
    """Make the kernel that convolves and pools a block of images.

    With ``by_winograd`` it takes the filters' values at the points, and notes in ``finite[block]`` whether
    the convolution is finite; if not, it may be wrong. The window is then a tile.
    """
    pool = max_window(window_rows, window_cols)
    positions = window_rows * window_cols

    @parallel(
        lambda real: (
            LAYOUT, types.UniTuple(types.int64, 2), real[:, :, :, ::1], real[:, ::1], types.int32[::1],
            real[::1], real[:, :, :, ::1], types.uint64[:, :, :, :, ::1], types.boolean[::1],
        ),
        CACHE_VERSION, window_rows, window_cols, tanh, by_winograd,
    )  # fmt: skip
    def conv_max_pool_block(
        block, blocks, layout, filter_shape, input, weights, offsets, biases, out, mask, finite
    ):
        n_filters, lanes = layout.filters, len(biases)
        out_rows, out_cols = out.shape[2:]
        words = mask.shape[4]
        last_bits = ~np.uint64(0) >> np.uint64(WORD_BITS * words - n_filters)
        skip = layout.channels <= FEW_CHANNELS and all_finite(weights.reshape(weights.size))
        size, conv_positions = n_filters * out_rows * out_cols, padded_positions(out_cols * window_cols)
        # What is read back soon lies in scratch: the mask and the output, new memory, may not be in a cache.
        scratch = (
            empty_image(layout, TILE_COLUMNS * layout.channels, input),
            np.empty((out_rows, out_cols), np.bool_),
            np.empty(layout.cols * layout.channels, np.uint8),
            np.zeros((window_rows, conv_positions, lanes), input.dtype),
            np.empty(conv_positions // TILE_COLUMNS, np.bool_),
            np.empty((out_cols + 1, lanes), input.dtype),
            np.zeros((out_cols + 1) * positions * words, np.uint64),
            np.empty(size, input.dtype),
        )
        image, live, columns, lines, wanted, pooled, chosen, maxima = unowned(scratch)
        products = layout_of_products(layout, out_rows, out_cols)
        band = empty_band(layout, products, input) if by_winograd else (lines,)
        # After the last window, what pooling gives where the convolution is zero.
        n_octets, dead = lanes // MASK_LANES, out_cols
        pool(pooled, dead * lanes, chosen, dead * positions * words, words, lines, 0, 0, 0, biases, n_octets)
        begin, end = block_of(block, blocks, len(input))
        for b in range(begin, end):
            load_image(layout, input[b], image)
            find_live_windows(layout, *filter_shape, window_rows, window_cols, image, skip, columns, live)
            for row in range(out_rows):
                if by_winograd:
                    row_of_band = row % products.out_rows
                    if row_of_band == 0:
                        rows = min(products.out_rows, out_rows - row)
                        multiply_band(layout, products, image, row, rows, weights, offsets, unowned(band))
                    convolution_of_row(products, row_of_band, unowned(band), lines)
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
        keep(scratch)
        keep(band)

    return conv_max_pool_block


@cache
def forward(window_rows, window_cols, tanh):
    """Make the kernel of `ConvMaxPool`, to be called as a single block."""
    by_sums = forward_block(window_rows, window_cols, tanh, False)
    in_tiles = (window_rows, window_cols) == (TILE, TILE)
    by_winograd = forward_block(window_rows, window_cols, tanh, True) if in_tiles else by_sums

    @parallel(
        lambda real: (
            LAYOUT, types.boolean, real[:, :, :, :], real[:, :, :, :], real[:], real[:, :, :, ::1],
            types.uint64[:, :, :, :, ::1],
        ),
        CACHE_VERSION, window_rows, window_cols, tanh, uses={by_sums, by_winograd},
    )  # fmt: skip
    def conv_max_pool(block, blocks, layout, flip, input, filters, bias, out, mask):
        biases = np.zeros(in_halves(layout.filters, MASK_LANES) * MASK_LANES, input.dtype)
        for k in range(layout.filters):
            biases[k] = bias[k]
        weights, offsets = tap_weights(layout, filters, flip), tap_offsets(layout, filters, (1, 1))
        # A mask of no filters has no last word.
        blocks = min(len(input), 4 * BLOCKS) if layout.filters else 0
        input, filter_shape = np.ascontiguousarray(input), filters.shape[2:]
        finite = np.ones(max(1, blocks), np.bool_)
        if in_tiles and suits_winograd(layout, filter_shape):
            values, channels = filter_values(layout, weights[0]), np.arange(layout.channels).astype(np.int32)
            by_winograd(
                blocks, layout, filter_shape, input, values, channels, biases, out, mask, finite
            )
            if finite.all():
                return
        by_sums(blocks, layout, filter_shape, input, weights, offsets, biases, out, mask, finite)

    return conv_max_pool


# In whatever order is fastest on the machine, but in the same one each time.
@partial(kernel_njit, fastmath={"reassoc"})
def total_of(values):
    """Sum in double precision."""
    total = 0.0
    # Numba does not make vectors of ``for value in values``.
    for i in range(len(values)):
        total += values[i]
    return total


@kernel_njit
def load_gradient(tanh, output_gradient, output, pooled_gradient):
    """Copy (filters, rows, cols) to (filters, windows), through the derivative of tanh where it joined."""
    gradients = output_gradient.reshape(output_gradient.size)
    outputs = output.reshape(output.size)
    pooled_gradients = pooled_gradient.reshape(pooled_gradient.size)
    # Of the arrays' type, for an integer makes all of it double precision.
    one = pooled_gradient.dtype.type(1)
    for i in range(len(gradients)):
        slope = one - outputs[i] * outputs[i] if tanh else one
        pooled_gradients[i] = gradients[i] * slope


@cache
def filters_gradient_block(window_rows, window_cols):
    """Make the kernel that sums the filters' gradient over a block of images into ``partial[block]``."""
    positions = window_rows * window_cols

    @parallel(
        lambda real: (
            LAYOUT, types.UniTuple(types.int64, 2), types.boolean, real[:, :, :, ::1],
            types.uint64[:, :, :, :, ::1], real[:, :, :, ::1], real[:, :, :, ::1], types.int32[::1],
            real[:, :, :, :, ::1], types.float64[:, ::1],
        ),
        CACHE_VERSION, window_rows, window_cols,
    )  # fmt: skip
    def grad_filters_block(
        block, blocks, layout, filter_shape, tanh, input, mask, output_gradient, output, offsets, partial,
        partial_bias,
    ):  # fmt: skip
        n_filters = layout.filters
        out_rows, out_cols = output_gradient.shape[2:]
        # Flat lists, and unsigned indices, which Numba need not check for their sign.
        windows = out_rows * out_cols
        room = np.uint64(windows * positions)
        scratch = (
            empty_image(layout, partial.shape[4], input),
            offsets[:: max(1, layout.run)].copy(),
            np.empty((out_rows, out_cols), np.bool_),
            np.empty(layout.cols * layout.channels, np.uint8),
            np.empty((n_filters, windows), input.dtype),
            np.empty(n_filters * windows * positions, np.int32),
            np.empty(n_filters * windows * positions, input.dtype),
            np.empty(n_filters, np.uint64),
        )
        image, run_offsets, live, columns, gradients, pixels, factors, ends = unowned(scratch)
        flat_gradients = gradients.reshape(gradients.size)
        begin, end = block_of(block, blocks, len(input))
        for b in range(begin, end):
            load_image(layout, input[b], image)
            load_gradient(tanh, output_gradient[b], output[b], gradients)
            skip = layout.channels <= FEW_CHANNELS
            for k in range(n_filters):
                total = total_of(gradients[k])
                partial_bias[block, k] += total
                skip &= np.isfinite(total)
                ends[k] = np.uint64(k) * room
            find_live_windows(layout, *filter_shape, window_rows, window_cols, image, skip, columns, live)
            for row in range(out_rows):
                for col in range(out_cols):
                    for p in range(positions if live[row, col] else 0):
                        at_row, at_col = divmod(p, window_cols)
                        at_row += row * window_rows
                        pixel = (at_row * layout.cols + col * window_cols + at_col) * layout.channels
                        for word in range(mask.shape[4]):
                            bits = mask[b, row, col, p, word]
                            while bits:
                                k = np.uint64(word * WORD_BITS) + trailing_zeros(bits)
                                bits &= bits - np.uint64(1)
                                end_of_list = ends[k]
                                pixels[end_of_list] = pixel
                                window = np.uint64(row * out_cols + col)
                                factors[end_of_list] = flat_gradients[k * np.uint64(windows) + window]
                                ends[k] = end_of_list + np.uint64(1)
            for k in range(n_filters):
                first = k * np.int64(room)
                count = np.int64(ends[k]) - first
                add_pixels(layout, partial[block, 0], k, image, run_offsets, pixels, factors, first, count)
        keep(scratch)

    return grad_filters_block


@cache
def filters_gradient(window_rows, window_cols):
    """Make the kernel of `ConvMaxPoolGradFilters`, to be called as a single block."""
    run_blocks = filters_gradient_block(window_rows, window_cols)

    @parallel(
        lambda real: (
            LAYOUT, types.boolean, types.boolean, real[:, :, :, :], types.uint64[:, :, :, :, :],
            real[:, :, :, :], real[:, :, :, :], real[:, :, :, ::1], real[::1],
        ),
        CACHE_VERSION, window_rows, window_cols, uses=[run_blocks],
    )  # fmt: skip
    def grad_filters(
        block, blocks, layout, flip, tanh, input, mask, output_gradient, output, gradient, bias_gradient
    ):
        partial, offsets = empty_partial(layout, gradient), tap_offsets(layout, gradient, (1, 1))
        partial_bias = np.zeros((BLOCKS, layout.filters))
        run_blocks(
            BLOCKS, layout, gradient.shape[2:], tanh, np.ascontiguousarray(input),
            np.ascontiguousarray(mask), np.ascontiguousarray(output_gradient), np.ascontiguousarray(output),
            offsets, partial, partial_bias,
        )  # fmt: skip
        sum_of_blocks(layout, partial, flip, gradient)
        for k in range(layout.filters):
            total = 0.0
            for block in range(BLOCKS):
                total += partial_bias[block, k]
            bias_gradient[k] = total

    return grad_filters


@cache
def input_gradient_block(window_rows, window_cols):
    """Make the kernel that computes the input's gradient for a block of images."""
    positions = window_rows * window_cols

    @parallel(
        lambda real: (
            LAYOUT, types.boolean, real[:, :, :, ::1], types.uint64[:, :, :, :, ::1], real[:, :, :, ::1],
            real[:, :, :, ::1], types.int32[::1], real[:, :, :, ::1],
        ),
        CACHE_VERSION, window_rows, window_cols,
    )  # fmt: skip
    def grad_input_block(block, blocks, layout, tanh, runs, mask, output_gradient, output, offsets, gradient):
        n_filters = layout.filters
        out_rows, out_cols = output_gradient.shape[2:]
        length = runs.shape[3]
        shape = out_rows * window_rows, out_cols * window_cols, n_filters
        scratch = (
            empty_image(layout, length, runs),
            offsets[:: max(1, layout.run)].copy(),
            np.empty((n_filters, out_rows * out_cols), runs.dtype),
            np.empty(shape, np.int32),
            np.empty(shape, runs.dtype),
            np.empty(shape[:2], np.int32),
        )
        image, run_offsets, gradients, chosen, factors, counts = unowned(scratch)
        begin, end = block_of(block, blocks, len(gradient))
        for b in range(begin, end):
            image[:] = 0
            load_gradient(tanh, output_gradient[b], output[b], gradients)
            for row in range(out_rows):
                for col in range(out_cols):
                    for p in range(positions):
                        at_row, at_col = divmod(p, window_cols)
                        at_row, at_col = at_row + row * window_rows, at_col + col * window_cols
                        count = 0
                        for word in range(mask.shape[4]):
                            bits = mask[b, row, col, p, word]
                            while bits:
                                k = np.uint64(word * WORD_BITS) + trailing_zeros(bits)
                                bits &= bits - np.uint64(1)
                                chosen[at_row, at_col, count] = k * np.uint64(length)
                                factors[at_row, at_col, count] = gradients[k, row * out_cols + col]
                                count += 1
                        counts[at_row, at_col] = count
            add_filters(layout, image, runs[0], run_offsets, chosen, factors, counts)
            store_image(layout, image, gradient[b])
        keep(scratch)

    return grad_input_block


@cache
def input_gradient(window_rows, window_cols):
    """Make the kernel of `ConvMaxPoolGradInput`, to be called as a single block."""
    run_blocks = input_gradient_block(window_rows, window_cols)

    @parallel(
        lambda real: (
            LAYOUT, types.boolean, types.boolean, real[:, :, :, :], types.uint64[:, :, :, :, :],
            real[:, :, :, :], real[:, :, :, :], real[:, :, :, ::1],
        ),
        CACHE_VERSION, window_rows, window_cols, uses=[run_blocks],
    )  # fmt: skip
    def grad_input(block, blocks, layout, flip, tanh, filters, mask, output_gradient, output, gradient):
        runs, offsets = runs_of_weights(layout, filters, flip), tap_offsets(layout, filters, (1, 1))
        run_blocks(
            min(len(gradient), 4 * BLOCKS), layout, tanh, runs, np.ascontiguousarray(mask),
            np.ascontiguousarray(output_gradient), np.ascontiguousarray(output), offsets, gradient,
        )  # fmt: skip

    return grad_input


@kernel_njit
def check_gradient(layout, ws, input, mask, output_gradient, output):
    """Raise ValueError unless mask and gradient have the output's shape."""
    rows, cols = layout.out_rows // ws[0], layout.out_cols // ws[1]
    shape = (len(input), layout.filters, rows, cols)
    if output_gradient.shape != shape or output.shape != shape:
        raise ValueError("output_gradient does not have the output's shape", output_gradient.shape)
    if mask.shape != (len(input), rows, cols, ws[0] * ws[1], mask_words(layout.filters)):
        raise ValueError("mask does not have the output's shape", mask.shape)


plain_layout = layout_function(plain_conv2d(Conv2d, True))


@register_kernel(ConvMaxPool)
def make_conv_max_pool(op, node, **kwargs):
    """Compile `ConvMaxPool`."""
    flip, (window_rows, window_cols) = op.filter_flip, op.ws
    positions = window_rows * window_cols
    convolve_and_pool = forward(window_rows, window_cols, op.tanh)
    convolve_and_pool.load(node.outputs[0].dtype)

    @kernel_njit
    def biased(input, filters, bias):
        layout = plain_layout(input, filters)
        if len(bias) != layout.filters:
            raise ValueError("bias has not one element per filter", bias.shape, filters.shape)
        rows, cols = layout.out_rows // window_rows, layout.out_cols // window_cols
        out = np.empty((len(input), layout.filters, rows, cols), input.dtype)
        mask = np.empty((len(input), rows, cols, positions, mask_words(layout.filters)), np.uint64)
        convolve_and_pool(1, layout, flip, input, filters, bias, out, mask)
        return out, mask

    if op.bias:
        return biased, CACHE_VERSION

    @kernel_njit
    def unbiased(input, filters):
        return biased(input, filters, np.zeros(len(filters), filters.dtype))

    return unbiased, CACHE_VERSION


def with_or_without_output(op, kernel):
    """Make the Op's function of ``kernel``, which always takes the output."""
    if op.tanh:
        return kernel

    @kernel_njit
    def without_output(input, filters, mask, output_gradient):
        return kernel(input, filters, mask, output_gradient, output_gradient)

    return without_output


@register_kernel(ConvMaxPoolGradFilters)
def make_conv_max_pool_grad_filters(op, node, **kwargs):
    """Compile `ConvMaxPoolGradFilters`."""
    flip, ws, tanh = op.filter_flip, op.ws, op.tanh
    differentiate = filters_gradient(*ws)
    differentiate.load(node.outputs[0].dtype)

    @kernel_njit
    def conv_max_pool_grad_filters(input, filters, mask, output_gradient, output):
        layout = plain_layout(input, filters)
        check_gradient(layout, ws, input, mask, output_gradient, output)
        gradient = np.empty(filters.shape, filters.dtype)
        bias_gradient = np.empty(layout.filters, filters.dtype)
        differentiate(1, layout, flip, tanh, input, mask, output_gradient, output, gradient, bias_gradient)
        return gradient, bias_gradient

    return with_or_without_output(op, conv_max_pool_grad_filters), CACHE_VERSION


@register_kernel(ConvMaxPoolGradInput)
def make_conv_max_pool_grad_input(op, node, **kwargs):
    """Compile `ConvMaxPoolGradInput`."""
    flip, ws, tanh = op.filter_flip, op.ws, op.tanh
    differentiate = input_gradient(*ws)
    differentiate.load(node.outputs[0].dtype)

    @kernel_njit
    def conv_max_pool_grad_input(input, filters, mask, output_gradient, output):
        layout = plain_layout(input, filters)
        check_gradient(layout, ws, input, mask, output_gradient, output)
        gradient = np.empty(input.shape, filters.dtype)
        differentiate(1, layout, flip, tanh, filters, mask, output_gradient, output, gradient)
        return gradient

    return with_or_without_output(op, conv_max_pool_grad_input), CACHE_VERSION
