"""Numba kernels of convolution and its gradients for border_mode 'valid' and stride 1.

An image is copied channels-last first, so that for each row of a filter the pixels under it, of all channels,
lie side by side: ``filter cols * channels`` elements, here called a *run*. The forward pass keeps a tile of
output positions and filters in registers. The gradients walk only the positions whose output gradient is not
zero; after max-pooling that is about one in as many as a pooling window has elements.

Work is divided into blocks of images that do not depend on the number of threads, and partial sums are added
in the order of the blocks, so any number of threads gives bitwise the same result.
"""

from functools import cache

import numpy as np
from numba import prange
from pytensor.link.numba.dispatch.basic import (
    generate_fallback_impl,
    numba_njit,
    register_funcify_default_op_cache_key,
)

from deeplearning_tutorial.nnet.conv import Conv2d, Conv2dGradFilters, Conv2dGradInput
from deeplearning_tutorial.nnet.dispatch.numba.simd import (
    GATHER_HALVES,
    TILE_COLUMNS,
    TILE_HALVES,
    convolve_tile,
    gather_add,
    half_vector,
    in_halves,
)

# PyTensor's cache of compiled functions does not see an edited kernel: count up whenever one changes.
CACHE_VERSION = 1

# Enough for many cores; few enough that the partial filter gradients stay small.
BLOCKS = 16

in_halves_jit = numba_njit(in_halves)


def _is_plain(op):
    return (
        op.border_mode == ((0, 0), (0, 0))
        and op.subsample == (1, 1)
        and op.filter_dilation == (1, 1)
        and op.num_groups == 1
    )


@numba_njit
def check_shapes(input, filters):
    """Raise what THEANO_API asks where static types did not tell."""
    if input.shape[1] != filters.shape[1]:
        raise ValueError("input and filters have different numbers of channels", input.shape, filters.shape)
    if input.shape[2] < filters.shape[2] or input.shape[3] < filters.shape[3]:
        raise ValueError("filters are larger than input: no output is left", input.shape, filters.shape)


@numba_njit
def channels_last(image, out):
    """Copy (channels, rows, cols) to flat (rows, cols, channels)."""
    channels, rows, cols = image.shape
    for channel in range(channels):
        for row in range(rows):
            for col in range(cols):
                out[(row * cols + col) * channels + channel] = image[channel, row, col]


@numba_njit
def runs_of_filters(filters, flip, length, runs):
    """Copy filters to ``runs[row, filter, run]``, flipped for a correlation, with zeros beyond the run."""
    n_filters, channels, rows, cols = filters.shape
    runs[:] = 0
    for k in range(n_filters):
        for channel in range(channels):
            for row in range(rows):
                for col in range(cols):
                    weight = (
                        filters[k, channel, rows - 1 - row, cols - 1 - col]
                        if flip
                        else filters[k, channel, row, col]
                    )
                    runs[row, k, col * channels + channel] = weight


@cache
def correlate_kernel(half, flip):
    """``Conv2d``: (batch, channels, rows, cols) and filters to (batch, filters, rows', cols')."""

    @numba_njit(parallel=True)
    def conv2d(input, filters):
        check_shapes(input, filters)
        batch, channels, rows, cols = input.shape
        n_filters, _, filter_rows, filter_cols = filters.shape
        out_rows = rows - filter_rows + 1
        out_cols = cols - filter_cols + 1
        padded_cols = (out_cols + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS
        halves = in_halves_jit(n_filters, half)
        width = halves * half
        run = filter_cols * channels
        # Filters vary fastest, so that one vector holds the same weight of neighbouring filters.
        weights = np.zeros((filter_rows, run, width), input.dtype)
        for k in range(n_filters):
            for channel in range(channels):
                for row in range(filter_rows):
                    for col in range(filter_cols):
                        if flip:
                            weight = filters[k, channel, filter_rows - 1 - row, filter_cols - 1 - col]
                        else:
                            weight = filters[k, channel, row, col]
                        weights[row, col * channels + channel, k] = weight

        # Blocks of filters as equal as can be.
        filter_blocks = (halves + TILE_HALVES - 1) // TILE_HALVES
        out = np.empty((batch, n_filters, out_rows, out_cols), input.dtype)
        blocks = min(batch, 4 * BLOCKS)
        for block in prange(blocks):
            # The last tile of a row reads some columns too many; their results are not used.
            image = np.zeros((rows * cols + TILE_COLUMNS) * channels, input.dtype)
            line = np.empty((padded_cols, width), input.dtype)
            for b in range(block * batch // blocks, (block + 1) * batch // blocks):
                channels_last(input[b], image)
                for row in range(out_rows):
                    for filter_block in range(filter_blocks):
                        begin = filter_block * halves // filter_blocks
                        end = (filter_block + 1) * halves // filter_blocks
                        for col in range(0, padded_cols, TILE_COLUMNS):
                            convolve_tile(
                                line, col * width + begin * half, width,
                                image, (row * cols + col) * channels, channels, cols * channels,
                                weights, begin * half, width,
                                filter_rows, run, end - begin,
                            )  # fmt: skip
                    for k in range(n_filters):
                        for col in range(out_cols):
                            out[b, k, row, col] = line[col, k]
        return out

    return conv2d


@cache
def filters_gradient_kernel(half, flip):
    """``Conv2dGradFilters``: sum over images and positions of output gradient times the pixels there."""

    @numba_njit(parallel=True)
    def conv2d_grad_filters(input, filters, output_gradient):
        check_shapes(input, filters)
        batch, channels, rows, cols = input.shape
        n_filters, _, filter_rows, filter_cols = filters.shape
        out_rows, out_cols = output_gradient.shape[2:]
        run = filter_cols * channels
        halves = in_halves_jit(run, half)
        length = halves * half
        partial = np.zeros((BLOCKS, n_filters, filter_rows, length), input.dtype)
        for block in prange(BLOCKS):
            image = np.zeros(rows * cols * channels + length, input.dtype)
            offsets = np.empty(out_rows * out_cols + 1, np.int32)
            factors = np.empty(out_rows * out_cols + 1, input.dtype)
            for b in range(block * batch // BLOCKS, (block + 1) * batch // BLOCKS):
                channels_last(input[b], image)
                for k in range(n_filters):
                    count = 0
                    for row in range(out_rows):
                        for col in range(out_cols):
                            factor = output_gradient[b, k, row, col]
                            offsets[count] = (row * cols + col) * channels
                            factors[count] = factor
                            count += factor != 0
                    for row in range(filter_rows):
                        for begin in range(0, halves, GATHER_HALVES):
                            gather_add(
                                partial,
                                ((block * n_filters + k) * filter_rows + row) * length + begin * half,
                                image, row * cols * channels + begin * half,
                                offsets, factors, 0, count, min(GATHER_HALVES, halves - begin),
                            )  # fmt: skip

        total = partial[0]
        for block in range(1, BLOCKS):
            total += partial[block]
        gradient = np.empty(filters.shape, input.dtype)
        for k in range(n_filters):
            for channel in range(channels):
                for row in range(filter_rows):
                    for col in range(filter_cols):
                        to_row = filter_rows - 1 - row if flip else row
                        to_col = filter_cols - 1 - col if flip else col
                        gradient[k, channel, to_row, to_col] = total[k, row, col * channels + channel]
        return gradient

    return conv2d_grad_filters


@cache
def input_gradient_kernel(half, flip):
    """``Conv2dGradInput``: add each filter, times the output gradient, to the pixels it was applied to."""

    @numba_njit(parallel=True)
    def conv2d_grad_input(input, filters, output_gradient):
        check_shapes(input, filters)
        batch, channels, rows, cols = input.shape
        n_filters, _, filter_rows, filter_cols = filters.shape
        out_rows, out_cols = output_gradient.shape[2:]
        halves = in_halves_jit(filter_cols * channels, half)
        length = halves * half
        runs = np.empty((filter_rows, n_filters, length), filters.dtype)
        runs_of_filters(filters, flip, length, runs)
        gradient = np.empty(input.shape, filters.dtype)
        blocks = min(batch, 4 * BLOCKS)
        for block in prange(blocks):
            image = np.empty(rows * cols * channels + length, filters.dtype)
            offsets = np.empty((out_rows, out_cols, n_filters + 1), np.int32)
            factors = np.empty((out_rows, out_cols, n_filters + 1), filters.dtype)
            counts = np.empty((out_rows, out_cols), np.int32)
            for b in range(block * batch // blocks, (block + 1) * batch // blocks):
                image[:] = 0
                counts[:] = 0
                # Ordered by position: each run of the image is then loaded and stored once for all filters.
                for k in range(n_filters):
                    for row in range(out_rows):
                        for col in range(out_cols):
                            factor = output_gradient[b, k, row, col]
                            count = counts[row, col]
                            offsets[row, col, count] = k * length
                            factors[row, col, count] = factor
                            counts[row, col] = count + (factor != 0)
                # The filter's row outermost: its runs, of all filters, stay in the first-level cache.
                for filter_row in range(filter_rows):
                    for row in range(out_rows):
                        for col in range(out_cols):
                            for begin in range(0, halves, GATHER_HALVES):
                                gather_add(
                                    image, ((row + filter_row) * cols + col) * channels + begin * half,
                                    runs, filter_row * n_filters * length + begin * half,
                                    offsets, factors,
                                    (row * out_cols + col) * (n_filters + 1), counts[row, col],
                                    min(GATHER_HALVES, halves - begin),
                                )  # fmt: skip
                for channel in range(channels):
                    for row in range(rows):
                        for col in range(cols):
                            gradient[b, channel, row, col] = image[(row * cols + col) * channels + channel]
        return gradient

    return conv2d_grad_input


def _register(op_class, kernel):
    @register_funcify_default_op_cache_key(op_class)
    def numba_funcify(op, node, **kwargs):
        if not _is_plain(op):
            return generate_fallback_impl(op, node=node, **kwargs)
        return kernel(half_vector(np.dtype(node.inputs[0].dtype)), op.filter_flip), CACHE_VERSION


_register(Conv2d, correlate_kernel)
_register(Conv2dGradFilters, filters_gradient_kernel)
_register(Conv2dGradInput, input_gradient_kernel)
