"""Numba kernels of convolution and max-pooling in one, and of their gradients.

They are built from the pieces of `deeplearning_tutorial.nnet.dispatch.numba.conv`. Only the rows of output
under one row of pooling windows exist at a time.
"""

from functools import cache, partial

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.conv import Conv2d
from deeplearning_tutorial.nnet.conv_pool import (
    ConvMaxPool,
    ConvMaxPoolGradFilters,
    ConvMaxPoolGradInput,
    plain_conv2d,
)
from deeplearning_tutorial.nnet.dispatch.numba.conv import (
    BLOCKS,
    LAYOUT,
    add_filters,
    add_pixels,
    correlate_row,
    empty_image,
    empty_partial,
    in_halves,
    layout_function,
    load_image,
    padded_positions,
    runs_of_weights,
    store_image,
    sum_of_blocks,
    tap_offsets,
    tap_weights,
)
from deeplearning_tutorial.nnet.dispatch.numba.kernel import block_of, kernel_njit, parallel, register_kernel
from deeplearning_tutorial.nnet.dispatch.numba.simd import TILE_COLUMNS, max_window, trailing_zeros

# PyTensor's cache of compiled functions does not see an edited kernel: count up whenever one changes.
CACHE_VERSION = 12

# As many as images have, as opposed to maps of features.
FEW_CHANNELS = 4


@cache
def forward_block(window_rows, window_cols, tanh):
    """Make the kernel that convolves and pools a block of images."""
    pool = max_window(window_rows, window_cols, tanh)

    @parallel(
        lambda real: (
            LAYOUT, real[:, :, :, ::1], real[:, ::1], types.int32[::1], real[::1],
            real[:, :, :, ::1], types.uint16[:, :, :, ::1],
        ),
        CACHE_VERSION, window_rows, window_cols, tanh,
    )  # fmt: skip
    def conv_max_pool_block(block, blocks, layout, input, weights, offsets, biases, out, mask):
        n_filters, width = layout.filters, weights.shape[1]
        out_rows, out_cols = out.shape[2:]
        image = empty_image(layout, TILE_COLUMNS * layout.channels, input)
        lines = np.empty((window_rows, padded_positions(out_cols * window_cols), width), input.dtype)
        pooled = np.empty((out_cols, width), input.dtype)
        chosen = np.empty(width, np.uint16)
        begin, end = block_of(block, blocks, len(input))
        for b in range(begin, end):
            load_image(layout, input[b], image)
            for row in range(out_rows):
                for r in range(window_rows):
                    correlate_row(layout, image, row * window_rows + r, weights, offsets, lines[r])
                for col in range(out_cols):
                    pool(
                        pooled, col * width, chosen, 0,
                        lines, col * window_cols * width, lines.shape[1] * width, width,
                        biases, width // layout.half,
                    )  # fmt: skip
                    # A loop: Numba compiles string formatting into the assignment of a slice.
                    for k in range(n_filters):
                        mask[b, row, col, k] = chosen[k]
                for k in range(n_filters):
                    for col in range(out_cols):
                        out[b, k, row, col] = pooled[col, k]

    return conv_max_pool_block


# In whatever order is fastest on the machine, but in the same one each time.
@partial(kernel_njit, fastmath={"reassoc"})
def total_of(values):
    """Sum in double precision."""
    total = 0.0
    for value in values:
        total += value
    return total


@kernel_njit
def window_positions(window_rows, window_cols, cols, channels):
    """Return the offsets of a window's positions in an image of ``cols`` columns, channels last."""
    positions = np.empty(window_rows * window_cols, np.int32)
    for r in range(window_rows):
        for c in range(window_cols):
            positions[r * window_cols + c] = (r * cols + c) * channels
    return positions


@kernel_njit
def find_live_windows(layout, window_rows, window_cols, filter_rows, filter_cols, image, live):
    """Write to ``live`` each pooling window that sees a pixel other than zero, and its corner; count them.

    The others add nothing to the filters' gradient. On images of digits they are about half, those with the
    most tied maxima. Maps of features are dense, and not looked at.
    """
    count = 0
    seen_rows = window_rows + filter_rows - 1
    seen = (window_cols + filter_cols - 1) * layout.channels
    for row in range(layout.out_rows // window_rows):
        for col in range(layout.out_cols // window_cols):
            alive = layout.channels > FEW_CHANNELS
            first = (row * window_rows * layout.cols + col * window_cols) * layout.channels
            last = first + seen_rows * layout.cols * layout.channels
            while not alive and first < last:
                for at in range(first, first + seen):
                    alive |= image[at] != 0
                first += layout.cols * layout.channels
            live[count, 0] = row * (layout.out_cols // window_cols) + col
            live[count, 1] = (row * window_rows * layout.cols + col * window_cols) * layout.channels
            count += alive
    return count


@cache
def filters_gradient_block(window_rows, window_cols):
    """Make the kernel that sums the filters' gradient over a block of images into ``partial[block]``."""

    @parallel(
        lambda real: (
            LAYOUT, real[:, :, :, ::1], types.uint16[:, :, :, ::1], real[:, :, :, ::1], types.int32[::1],
            real[:, :, :, :, ::1], types.float64[:, ::1],
        ),
        CACHE_VERSION, window_rows, window_cols,
    )  # fmt: skip
    def grad_filters_block(
        block, blocks, layout, input, mask, output_gradient, offsets, partial, partial_bias
    ):
        out_rows, out_cols = output_gradient.shape[2:]
        cols, channels = layout.cols, layout.channels
        image = empty_image(layout, partial.shape[4], input)
        run_offsets = offsets[:: max(1, layout.run)].copy()
        # Unsigned, for Numba checks signed indices for their sign.
        live = np.empty((out_rows * out_cols + 1, 2), np.uint64)
        one = np.uint64(1)
        positions = window_positions(window_rows, window_cols, cols, channels)
        gradients = output_gradient.reshape((len(input), layout.filters, out_rows * out_cols))
        masks = mask.reshape((len(input), out_rows * out_cols, layout.filters))
        filter_cols = layout.run // channels if channels else 0
        filter_rows = len(run_offsets)
        pixels = np.empty(out_rows * out_cols * window_rows * window_cols + 1, np.int32)
        factors = np.empty(len(pixels), input.dtype)
        begin, end = block_of(block, blocks, len(input))
        for b in range(begin, end):
            load_image(layout, input[b], image)
            n_live = find_live_windows(
                layout, window_rows, window_cols, filter_rows, filter_cols, image, live
            )
            for k in range(layout.filters):
                partial_bias[block, k] += total_of(gradients[b, k])
                count = 0
                for n in range(n_live):
                    window, corner = live[n, 0], np.int64(live[n, 1])
                    bits = np.uint64(masks[b, window, k])
                    # Nearly always once, so the branch is seldom mispredicted.
                    while bits:
                        pixels[count] = corner + positions[trailing_zeros(bits)]
                        factors[count] = gradients[b, k, window]
                        count += 1
                        bits &= bits - one
                add_pixels(layout, partial[block, 0], k, image, run_offsets, pixels, factors, count)

    return grad_filters_block


@cache
def input_gradient_block(window_rows, window_cols):
    """Make the kernel that computes the input's gradient for a block of images."""

    @parallel(
        lambda real: (
            LAYOUT, real[:, :, :, ::1], types.uint16[:, :, :, ::1], real[:, :, :, ::1], types.int32[::1],
            real[:, :, :, ::1],
        ),
        CACHE_VERSION, window_rows, window_cols,
    )  # fmt: skip
    def grad_input_block(block, blocks, layout, runs, mask, output_gradient, offsets, gradient):
        n_filters = layout.filters
        out_rows, out_cols = output_gradient.shape[2:]
        length = runs.shape[3]
        image = empty_image(layout, length, runs)
        run_offsets = offsets[:: max(1, layout.run)].copy()
        chosen = np.empty((out_rows * window_rows, out_cols * window_cols, n_filters + 1), np.int32)
        factors = np.empty(chosen.shape, runs.dtype)
        counts = np.empty(chosen.shape[:2], np.int32)
        begin, end = block_of(block, blocks, len(gradient))
        for b in range(begin, end):
            image[:] = 0
            for row in range(out_rows):
                for col in range(out_cols):
                    for r in range(window_rows):
                        for c in range(window_cols):
                            at_row, at_col = row * window_rows + r, col * window_cols + c
                            count = 0
                            # Each filter is written down, and kept by counting it: no branch to mispredict.
                            for k in range(n_filters):
                                chosen[at_row, at_col, count] = k * length
                                factors[at_row, at_col, count] = output_gradient[b, k, row, col]
                                count += (mask[b, row, col, k] >> (r * window_cols + c)) & 1
                            counts[at_row, at_col] = count
            add_filters(layout, image, runs[0], run_offsets, chosen, factors, counts)
            store_image(layout, image, gradient[b])

    return grad_input_block


@kernel_njit
def check_gradient(layout, ws, input, mask, output_gradient):
    """Raise ValueError unless mask and gradient have the output's shape."""
    rows, cols = layout.out_rows // ws[0], layout.out_cols // ws[1]
    if output_gradient.shape != (len(input), layout.filters, rows, cols):
        raise ValueError("output_gradient does not have the output's shape", output_gradient.shape)
    if mask.shape != (len(input), rows, cols, layout.filters):
        raise ValueError("mask does not have the output's shape", mask.shape)


plain_layout = layout_function(plain_conv2d(Conv2d, True))


@register_kernel(ConvMaxPool)
def make_conv_max_pool(op, node, **kwargs):
    """Compile `ConvMaxPool`."""
    flip, (window_rows, window_cols) = op.filter_flip, op.ws
    run_blocks = forward_block(window_rows, window_cols, op.tanh)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def biased(input, filters, bias):
        layout = plain_layout(input, filters)
        if len(bias) != layout.filters:
            raise ValueError("bias has not one element per filter", bias.shape, filters.shape)
        biases = np.zeros(in_halves(layout.filters, layout.half) * layout.half, input.dtype)
        for k in range(layout.filters):
            biases[k] = bias[k]
        rows, cols = layout.out_rows // window_rows, layout.out_cols // window_cols
        out = np.empty((len(input), layout.filters, rows, cols), input.dtype)
        mask = np.empty((len(input), rows, cols, layout.filters), np.uint16)
        blocks = min(len(input), 4 * BLOCKS)
        weights, offsets = tap_weights(layout, filters, flip)[0], tap_offsets(layout, filters, (1, 1))
        run_blocks(blocks, layout, np.ascontiguousarray(input), weights, offsets, biases, out, mask)
        return out, mask

    if op.bias:
        return biased, CACHE_VERSION

    @kernel_njit
    def unbiased(input, filters):
        return biased(input, filters, np.zeros(len(filters), filters.dtype))

    return unbiased, CACHE_VERSION


@register_kernel(ConvMaxPoolGradFilters)
def make_conv_max_pool_grad_filters(op, node, **kwargs):
    """Compile `ConvMaxPoolGradFilters`."""
    flip, ws = op.filter_flip, op.ws
    run_blocks = filters_gradient_block(*ws)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def conv_max_pool_grad_filters(input, filters, mask, output_gradient):
        layout = plain_layout(input, filters)
        check_gradient(layout, ws, input, mask, output_gradient)
        partial, offsets = empty_partial(layout, filters), tap_offsets(layout, filters, (1, 1))
        input, mask = np.ascontiguousarray(input), np.ascontiguousarray(mask)
        partial_bias = np.zeros((BLOCKS, layout.filters))
        output_gradient = np.ascontiguousarray(output_gradient)
        run_blocks(BLOCKS, layout, input, mask, output_gradient, offsets, partial, partial_bias)
        bias_gradient = np.empty(layout.filters, filters.dtype)
        for k in range(layout.filters):
            total = 0.0
            for block in range(BLOCKS):
                total += partial_bias[block, k]
            bias_gradient[k] = total
        return sum_of_blocks(layout, partial, filters, flip), bias_gradient

    return conv_max_pool_grad_filters, CACHE_VERSION


@register_kernel(ConvMaxPoolGradInput)
def make_conv_max_pool_grad_input(op, node, **kwargs):
    """Compile `ConvMaxPoolGradInput`."""
    flip, ws = op.filter_flip, op.ws
    run_blocks = input_gradient_block(*ws)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def conv_max_pool_grad_input(input, filters, mask, output_gradient):
        layout = plain_layout(input, filters)
        check_gradient(layout, ws, input, mask, output_gradient)
        gradient = np.empty(input.shape, filters.dtype)
        runs, offsets = runs_of_weights(layout, filters, flip), tap_offsets(layout, filters, (1, 1))
        blocks = min(len(input), 4 * BLOCKS)
        arrays = np.ascontiguousarray(mask), np.ascontiguousarray(output_gradient)
        run_blocks(blocks, layout, runs, *arrays, offsets, gradient)
        return gradient

    return conv_max_pool_grad_input, CACHE_VERSION
