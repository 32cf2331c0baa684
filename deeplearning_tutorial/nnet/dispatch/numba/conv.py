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
from pytensor.link.numba.dispatch.basic import generate_fallback_impl

from deeplearning_tutorial.nnet.conv import Conv2d, Conv2dGradFilters, Conv2dGradInput
from deeplearning_tutorial.nnet.conv_pool import plain_conv2d
from deeplearning_tutorial.nnet.dispatch.numba import simd
from deeplearning_tutorial.nnet.dispatch.numba.kernel import kernel_njit, register_kernel
from deeplearning_tutorial.nnet.dispatch.numba.simd import (
    GATHER_HALVES,
    TILE_COLUMNS,
    TILE_HALVES,
    convolve_tile,
    gather_add,
    half_vector,
)

# PyTensor's cache of compiled functions does not see an edited kernel: count up whenever one changes.
CACHE_VERSION = 3

# Enough for many cores; few enough that the partial filter gradients stay small.
BLOCKS = 16

in_halves = kernel_njit(simd.in_halves)
gather_rows = kernel_njit(simd.gather_rows)


@kernel_njit
def check_shapes(input, filters):
    """Raise ValueError where the data do not fit; static types tell the same while the graph is built."""
    if input.shape[1] != filters.shape[1]:
        raise ValueError("input and filters have different numbers of channels", input.shape, filters.shape)
    if input.shape[2] < filters.shape[2] or input.shape[3] < filters.shape[3]:
        raise ValueError("filters are larger than input: no output is left", input.shape, filters.shape)


@kernel_njit
def block_of(block, blocks, batch):
    """First image of a block and of the next."""
    return block * batch // blocks, (block + 1) * batch // blocks


@kernel_njit
def channels_last(image, out):
    """Copy (channels, rows, cols) to flat (rows, cols, channels)."""
    channels, rows, cols = image.shape
    for channel in range(channels):
        for row in range(rows):
            for col in range(cols):
                out[(row * cols + col) * channels + channel] = image[channel, row, col]


@kernel_njit
def channels_first(flat, image):
    """Copy flat (rows, cols, channels) to (channels, rows, cols)."""
    channels, rows, cols = image.shape
    for channel in range(channels):
        for row in range(rows):
            for col in range(cols):
                image[channel, row, col] = flat[(row * cols + col) * channels + channel]


@kernel_njit
def runs_of(filters, flip, width, length):
    """Copy filters to (filter rows, length of a run, width), where neighbouring filters fill a vector.

    ``width`` and ``length`` are at least the numbers of filters and of a run's elements; the rest is zero.
    """
    n_filters, channels, rows, cols = filters.shape
    runs = np.zeros((rows, length, width), filters.dtype)
    for k in range(n_filters):
        for channel in range(channels):
            for row in range(rows):
                for col in range(cols):
                    from_row = rows - 1 - row if flip else row
                    from_col = cols - 1 - col if flip else col
                    runs[row, col * channels + channel, k] = filters[k, channel, from_row, from_col]
    return runs


@kernel_njit
def correlate_row(line, image, row, cols, channels, runs, half):
    """Compute one row of output positions for all filters.

    ``line`` receives (positions, filters), both padded: positions to a multiple of TILE_COLUMNS. The last
    tile reads some pixels too many; what comes of them is not used.
    """
    n_rows, length, width = runs.shape
    halves = width // half
    filter_blocks = (halves + TILE_HALVES - 1) // TILE_HALVES
    for filter_block in range(filter_blocks):
        begin, end = block_of(filter_block, filter_blocks, halves)
        for col in range(0, len(line), TILE_COLUMNS):
            convolve_tile(
                line, col * width + begin * half, width,
                image, (row * cols + col) * channels, channels, cols * channels,
                runs, begin * half, width,
                n_rows, length, end - begin,
            )  # fmt: skip


@kernel_njit
def add_pixels(partial, block, k, image, image_row, offsets, factors, count, half):
    """Add to filter ``k``'s gradient the runs of pixels at ``offsets``, times ``factors``."""
    _, n_filters, n_rows, length = partial.shape
    halves = length // half
    for begin in range(0, halves, GATHER_HALVES):
        taken = min(GATHER_HALVES, halves - begin)
        at_once = gather_rows(taken)
        for row in range(0, n_rows, at_once):
            gather_add(
                partial, ((block * n_filters + k) * n_rows + row) * length + begin * half, length,
                image, row * image_row + begin * half, image_row,
                offsets, factors, 0, count, min(at_once, n_rows - row), taken,
            )  # fmt: skip


@kernel_njit
def sum_of_blocks(partial, filters, flip):
    """Add the blocks in their order; bring the sum from runs back to the filters' shape."""
    n_filters, channels, rows, cols = filters.shape
    total = partial[0]
    for block in range(1, len(partial)):
        total += partial[block]
    gradient = np.empty(filters.shape, filters.dtype)
    for k in range(n_filters):
        for channel in range(channels):
            for row in range(rows):
                for col in range(cols):
                    to_row = rows - 1 - row if flip else row
                    to_col = cols - 1 - col if flip else col
                    gradient[k, channel, to_row, to_col] = total[k, row, col * channels + channel]
    return gradient


@kernel_njit
def add_filters(image, cols, channels, runs, offsets, factors, counts, half):
    """Add to the pixels under each output position the filters' runs there, times ``factors``.

    ``runs`` is (filter rows, filters, length); ``offsets`` and ``factors`` list for each (row, col) of the
    output the filters that have a gradient there, ``counts`` how many they are.
    """
    n_rows, n_filters, length = runs.shape
    out_rows, out_cols, room = offsets.shape
    halves = length // half
    # The filter's row outermost: its runs, of all filters, stay in the first-level cache.
    for filter_row in range(n_rows):
        for row in range(out_rows):
            for col in range(out_cols):
                for begin in range(0, halves, GATHER_HALVES):
                    gather_add(
                        image, ((row + filter_row) * cols + col) * channels + begin * half, 0,
                        runs, filter_row * n_filters * length + begin * half, 0,
                        offsets, factors, (row * out_cols + col) * room, counts[row, col],
                        1, min(GATHER_HALVES, halves - begin),
                    )  # fmt: skip


@cache
def correlate_kernel(half, flip):
    """Compile `Conv2d`."""

    @kernel_njit(parallel=True)
    def conv2d(input, filters):
        check_shapes(input, filters)
        batch, channels, rows, cols = input.shape
        n_filters, _, filter_rows, filter_cols = filters.shape
        out_rows = rows - filter_rows + 1
        out_cols = cols - filter_cols + 1
        padded_cols = (out_cols + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS
        runs = runs_of(filters, flip, in_halves(n_filters, half) * half, filter_cols * channels)
        out = np.empty((batch, n_filters, out_rows, out_cols), input.dtype)
        blocks = min(batch, 4 * BLOCKS)
        for block in prange(blocks):
            image = np.zeros((rows * cols + TILE_COLUMNS) * channels, input.dtype)
            line = np.empty((padded_cols, runs.shape[2]), input.dtype)
            begin, end = block_of(block, blocks, batch)
            for b in range(begin, end):
                channels_last(input[b], image)
                for row in range(out_rows):
                    correlate_row(line, image, row, cols, channels, runs, half)
                    for k in range(n_filters):
                        for col in range(out_cols):
                            out[b, k, row, col] = line[col, k]
        return out

    return conv2d


@cache
def filters_gradient_kernel(half, flip):
    """Compile `Conv2dGradFilters`."""

    @kernel_njit(parallel=True)
    def conv2d_grad_filters(input, filters, output_gradient):
        check_shapes(input, filters)
        batch, channels, rows, cols = input.shape
        n_filters, _, filter_rows, filter_cols = filters.shape
        out_rows, out_cols = output_gradient.shape[2:]
        length = in_halves(filter_cols * channels, half) * half
        partial = np.zeros((BLOCKS, n_filters, filter_rows, length), input.dtype)
        for block in prange(BLOCKS):
            image = np.zeros(rows * cols * channels + length, input.dtype)
            offsets = np.empty(out_rows * out_cols + 1, np.int32)
            factors = np.empty(out_rows * out_cols + 1, input.dtype)
            begin, end = block_of(block, BLOCKS, batch)
            for b in range(begin, end):
                channels_last(input[b], image)
                for k in range(n_filters):
                    count = 0
                    for row in range(out_rows):
                        for col in range(out_cols):
                            factor = output_gradient[b, k, row, col]
                            offsets[count] = (row * cols + col) * channels
                            factors[count] = factor
                            count += factor != 0
                    add_pixels(partial, block, k, image, cols * channels, offsets, factors, count, half)
        return sum_of_blocks(partial, filters, flip)

    return conv2d_grad_filters


@cache
def input_gradient_kernel(half, flip):
    """Compile `Conv2dGradInput`."""

    @kernel_njit(parallel=True)
    def conv2d_grad_input(input, filters, output_gradient):
        check_shapes(input, filters)
        batch, channels, rows, cols = input.shape
        n_filters, _, filter_rows, filter_cols = filters.shape
        out_rows, out_cols = output_gradient.shape[2:]
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
                for k in range(n_filters):
                    for row in range(out_rows):
                        for col in range(out_cols):
                            factor = output_gradient[b, k, row, col]
                            count = counts[row, col]
                            offsets[row, col, count] = k * length
                            factors[row, col, count] = factor
                            counts[row, col] = count + (factor != 0)
                add_filters(image, cols, channels, runs, offsets, factors, counts, half)
                channels_first(image, gradient[b])
        return gradient

    return conv2d_grad_input


def _register(op_class, kernel):
    @register_kernel(op_class)
    def numba_funcify(op, node, **kwargs):
        if op != plain_conv2d(op_class, op.filter_flip):
            return generate_fallback_impl(op, node=node, **kwargs)
        return kernel(half_vector(np.dtype(node.inputs[0].dtype)), op.filter_flip), CACHE_VERSION


_register(Conv2d, correlate_kernel)
_register(Conv2dGradFilters, filters_gradient_kernel)
_register(Conv2dGradInput, input_gradient_kernel)
