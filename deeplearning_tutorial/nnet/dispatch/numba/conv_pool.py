"""Numba kernels of convolution and max-pooling in one, and of their gradients.

They are built from the pieces of `deeplearning_tutorial.nnet.dispatch.numba.conv`. Only the rows of output
under one row of pooling windows exist at a time.
"""

from functools import cache

import numpy as np
from numba import prange

from deeplearning_tutorial.nnet.conv_pool import (
    ConvMaxPool,
    ConvMaxPoolGradFilters,
    ConvMaxPoolGradInput,
)
from deeplearning_tutorial.nnet.dispatch.numba.conv import (
    BLOCKS,
    add_filters,
    add_pixels,
    block_of,
    channels_first,
    channels_last,
    check_shapes,
    correlate_row,
    in_halves,
    runs_of,
    sum_of_blocks,
)
from deeplearning_tutorial.nnet.dispatch.numba.kernel import kernel_njit, register_kernel
from deeplearning_tutorial.nnet.dispatch.numba.simd import TILE_COLUMNS, half_vector, max_window

# PyTensor's cache of compiled functions does not see an edited kernel: count up whenever one changes.
CACHE_VERSION = 2


@cache
def forward_kernel(half, flip, window_rows, window_cols, tanh):
    """Compile `ConvMaxPool`; the kernel takes the biases, zeros where there are none."""
    pool = max_window(window_rows, window_cols, tanh)

    @kernel_njit(parallel=True)
    def conv_max_pool(input, filters, bias):
        check_shapes(input, filters)
        batch, channels, rows, cols = input.shape
        n_filters, _, filter_rows, filter_cols = filters.shape
        out_rows = (rows - filter_rows + 1) // window_rows
        out_cols = (cols - filter_cols + 1) // window_cols
        padded_cols = (out_cols * window_cols + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS
        halves = in_halves(n_filters, half)
        width = halves * half
        runs = runs_of(filters, flip, width, filter_cols * channels)
        biases = np.zeros(width, input.dtype)
        biases[:n_filters] = bias
        out = np.empty((batch, n_filters, out_rows, out_cols), input.dtype)
        mask = np.empty((batch, out_rows, out_cols, n_filters), np.uint16)
        blocks = min(batch, 4 * BLOCKS)
        for block in prange(blocks):
            image = np.zeros((rows * cols + TILE_COLUMNS) * channels, input.dtype)
            lines = np.empty((window_rows, padded_cols, width), input.dtype)
            pooled = np.empty((out_cols, width), input.dtype)
            chosen = np.empty(width, np.uint16)
            begin, end = block_of(block, blocks, batch)
            for b in range(begin, end):
                channels_last(input[b], image)
                for row in range(out_rows):
                    for r in range(window_rows):
                        correlate_row(lines[r], image, row * window_rows + r, cols, channels, runs, half)
                    for col in range(out_cols):
                        pool(
                            pooled, col * width, chosen, 0,
                            lines, col * window_cols * width, padded_cols * width, width, biases, halves,
                        )  # fmt: skip
                        mask[b, row, col] = chosen[:n_filters]
                    for k in range(n_filters):
                        for col in range(out_cols):
                            out[b, k, row, col] = pooled[col, k]
        return out, mask

    return conv_max_pool


@cache
def filters_gradient_kernel(half, flip, window_rows, window_cols):
    """Compile `ConvMaxPoolGradFilters`."""

    @kernel_njit(parallel=True)
    def conv_max_pool_grad_filters(input, filters, mask, output_gradient):
        check_shapes(input, filters)
        batch, channels, rows, cols = input.shape
        n_filters, _, filter_rows, filter_cols = filters.shape
        out_rows, out_cols = output_gradient.shape[2:]
        length = in_halves(filter_cols * channels, half) * half
        partial = np.zeros((BLOCKS, n_filters, filter_rows, length), input.dtype)
        for block in prange(BLOCKS):
            image = np.zeros(rows * cols * channels + length, input.dtype)
            offsets = np.empty(out_rows * out_cols * window_rows * window_cols + 1, np.int32)
            factors = np.empty(len(offsets), input.dtype)
            begin, end = block_of(block, BLOCKS, batch)
            for b in range(begin, end):
                channels_last(input[b], image)
                for k in range(n_filters):
                    count = 0
                    for row in range(out_rows):
                        for col in range(out_cols):
                            factor = output_gradient[b, k, row, col]
                            bits = mask[b, row, col, k]
                            corner = (row * window_rows * cols + col * window_cols) * channels
                            # Each position is written down, and kept by counting it.
                            for r in range(window_rows):
                                for c in range(window_cols):
                                    offsets[count] = corner + (r * cols + c) * channels
                                    factors[count] = factor
                                    count += (bits >> (r * window_cols + c)) & 1
                    add_pixels(partial, block, k, image, cols * channels, offsets, factors, count, half)
        return sum_of_blocks(partial, filters, flip)

    return conv_max_pool_grad_filters


@cache
def input_gradient_kernel(half, flip, window_rows, window_cols):
    """Compile `ConvMaxPoolGradInput`."""

    @kernel_njit(parallel=True)
    def conv_max_pool_grad_input(input, filters, mask, output_gradient):
        check_shapes(input, filters)
        batch, channels, rows, cols = input.shape
        n_filters, _, filter_rows, filter_cols = filters.shape
        pooled_rows, pooled_cols = output_gradient.shape[2:]
        out_rows, out_cols = pooled_rows * window_rows, pooled_cols * window_cols
        length = in_halves(filter_cols * channels, half) * half
        runs = runs_of(filters, flip, n_filters, length).transpose(0, 2, 1).copy()
        gradient = np.empty(input.shape, filters.dtype)
        blocks = min(batch, 4 * BLOCKS)
        for block in prange(blocks):
            image = np.empty(rows * cols * channels + length, filters.dtype)
            offsets = np.empty((out_rows, out_cols, n_filters + 1), np.int32)
            factors = np.empty((out_rows, out_cols, n_filters + 1), filters.dtype)
            counts = np.empty((out_rows, out_cols), np.int32)
            begin, end = block_of(block, blocks, batch)
            for b in range(begin, end):
                image[:] = 0
                counts[:] = 0
                for row in range(pooled_rows):
                    for col in range(pooled_cols):
                        for r in range(window_rows):
                            for c in range(window_cols):
                                out_row, out_col = row * window_rows + r, col * window_cols + c
                                count = 0
                                for k in range(n_filters):
                                    offsets[out_row, out_col, count] = k * length
                                    factors[out_row, out_col, count] = output_gradient[b, k, row, col]
                                    count += (mask[b, row, col, k] >> (r * window_cols + c)) & 1
                                counts[out_row, out_col] = count
                add_filters(image, cols, channels, runs, offsets, factors, counts, half)
                channels_first(image, gradient[b])
        return gradient

    return conv_max_pool_grad_input


@register_kernel(ConvMaxPool)
def numba_funcify_ConvMaxPool(op, node, **kwargs):
    """Compile `ConvMaxPool`."""
    kernel = forward_kernel(half_vector(np.dtype(node.inputs[0].dtype)), op.filter_flip, *op.ws, op.tanh)
    if op.bias:
        return kernel, CACHE_VERSION

    @kernel_njit
    def conv_max_pool_without_bias(input, filters):
        return kernel(input, filters, np.zeros(len(filters), filters.dtype))

    return conv_max_pool_without_bias, CACHE_VERSION


def _register_gradient(op_class, kernel):
    @register_kernel(op_class)
    def numba_funcify(op, node, **kwargs):
        half = half_vector(np.dtype(node.inputs[0].dtype))
        return kernel(half, op.filter_flip, *op.ws), CACHE_VERSION


_register_gradient(ConvMaxPoolGradFilters, filters_gradient_kernel)
_register_gradient(ConvMaxPoolGradInput, input_gradient_kernel)
