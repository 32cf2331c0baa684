"""Numba kernels of convolution.

A tile of output positions and filters stays in registers while the taps are added up. The work is divided
into blocks of images that do not depend on the number of threads, so the result is bitwise the same for any
number.
"""

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.conv import Conv2d
from deeplearning_tutorial.nnet.dispatch.numba.arrays import contiguous
from deeplearning_tutorial.nnet.dispatch.numba.conv_layout import (
    BLOCKS,
    CONV_LAYOUT,
    consecutive_offsets,
    conv_layout_function,
    empty_image,
    filter_blocks,
    filters_of_block,
    is_pointwise,
    load_image,
    padded_positions,
    suits_map_vectors,
    tap_offsets,
    tap_weights,
)
from deeplearning_tutorial.nnet.dispatch.numba.jit import exact_njit, kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.kernel import block_of, check, parallel, register_kernel
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import Rows
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import (
    TILE_COLUMNS,
    TILE_HALVES,
    convolve_tile,
    in_halves,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import SUM_ROWS, Taps, correlate_rows, vector_copy
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, result, zeros
from deeplearning_tutorial.nnet.dispatch.numba.transpose import transpose

# The weights of so many taps, for a tile's filters, stay in the first-level cache for tiles of so many rows.
CHUNK_TAPS, TILE_ROWS = 128, 2


@exact_njit
def correlate_tiles(layout, image, row, weights, group, offsets, lines, tile_mask):
    """Compute rows of the output, from ``row`` on, for all filters of a group.

    ``lines`` receives them as (rows, positions, filters); of each row those tiles are computed that
    ``tile_mask`` selects. Positions right of the output see pixels of another row, or past the image, and are
    not used.
    """
    rows, positions, step = lines.shape
    width = in_halves(layout.filters, layout.half) * layout.half
    column, n_taps = layout.stride_cols * layout.channels, len(offsets)
    for filter_block in range(filter_blocks(layout, width)):
        lane, halves = filters_of_block(layout, width, filter_block)
        lanes = halves * layout.half
        for tap in range(0, max(1, n_taps), CHUNK_TAPS):
            chunk = offsets[tap : min(tap + CHUNK_TAPS, n_taps)]
            first = group * n_taps * width + lane * n_taps + tap * lanes
            for r in range(rows):
                pixel = (row + r) * layout.stride_rows * layout.cols * layout.channels
                for col in range(0, positions, TILE_COLUMNS):
                    if tile_mask[col // TILE_COLUMNS]:
                        convolve_tile(
                            Rows(lines, (r * positions + col) * step + lane, step),
                            Rows(image, pixel + col * column, column),
                            Rows(weights, first, lanes),
                            chunk,
                            halves,
                            tap > 0,
                        )


@parallel(
    lambda real: (CONV_LAYOUT, real[:, :, :, ::1], real[:, ::1], types.int64[::1], real[:, :, :, ::1]),
)
def correlate_block(memory, block, blocks, layout, input, weights, offsets, out):
    """Convolve a block of images."""
    channels, n_filters = layout.channels, layout.filters
    width, positions = in_halves(n_filters, layout.half) * layout.half, padded_positions(layout.out_cols)
    image = empty_image(memory, layout, TILE_COLUMNS * layout.stride_cols * channels, input)
    lines = empty(memory, (TILE_ROWS, positions, width), input)
    tile_mask = empty(memory, positions // TILE_COLUMNS, np.bool_)
    tile_mask[:] = True
    map_size = layout.out_rows * layout.out_cols
    begin, end = block_of(block, blocks, len(input))
    for b in range(begin, end):
        for group in range(layout.groups):
            load_image(layout, input[b, group * channels : (group + 1) * channels], image)
            first_map = (b * layout.groups + group) * n_filters
            for row in range(0, layout.out_rows, TILE_ROWS):
                rows = min(TILE_ROWS, layout.out_rows - row)
                correlate_tiles(layout, image, row, weights, group, offsets, lines[:rows], tile_mask)
                for r in range(rows):
                    first = first_map * map_size + (row + r) * layout.out_cols
                    line = Rows(lines, r * positions * width, width)
                    transpose(Rows(out, first, map_size), line, layout.out_cols, n_filters)


@parallel(
    lambda real: (CONV_LAYOUT, real[:, :, :, ::1], real[:, ::1], types.int64[::1], real[:, :, :, ::1]),
)
def correlate_maps_block(memory, block, blocks, layout, input, weights, offsets, out):
    """Convolve a block of images where a group has one channel, few filters and no stride.

    A vector holds neighbouring positions, not filters.
    """
    # Neighbouring rows of taps of a dilated filter do not serve neighbouring rows of the output.
    triples = layout.filter_rows // 3 if layout.dilation_rows == 1 else 0
    image, factors = empty_image(memory, layout, 0, input), empty(memory, len(offsets), input)
    # Few filters form a single block of `tap_weights`.
    width = in_halves(layout.filters, layout.half) * layout.half
    begin, end = block_of(block, blocks, len(input))
    for b in range(begin, end):
        for group in range(layout.groups):
            load_image(layout, input[b, group : group + 1], image)
            for k in range(layout.filters):
                for tap in range(len(offsets)):
                    factors[tap] = weights[group, tap * width + k]
                first = ((b * layout.groups + group) * layout.filters + k) * layout.out_rows
                for row in range(0, layout.out_rows, SUM_ROWS):
                    correlate_rows(
                        Rows(out, (first + row) * layout.out_cols, layout.out_cols),
                        Rows(image, row * layout.cols, layout.cols),
                        Taps(offsets, factors, layout.filter_cols, triples),
                        layout.out_cols,
                        min(SUM_ROWS, layout.out_rows - row),
                    )


@parallel(lambda real: (CONV_LAYOUT, real[:, :, :, ::1], real[:, :, ::1], real[:, :, :, ::1]))
def pointwise_block(memory, block, blocks, layout, input, weights, out):
    """Convolve a block of images with filters of one pixel: a product of two matrices for each image."""
    channels, n_filters, positions = layout.channels, layout.filters, layout.rows * layout.cols
    width = TILE_HALVES * layout.half
    columns, tile = zeros(memory, channels * width, input), empty(memory, TILE_COLUMNS * width, input)
    offsets = consecutive_offsets(memory, channels)
    begin, end = block_of(block, blocks, len(input))
    for b in range(begin, end):
        for group in range(layout.groups):
            maps, out_maps = (b * layout.groups + group) * channels, (b * layout.groups + group) * n_filters
            for first in range(0, positions, width):
                count = min(width, positions - first)
                for channel in range(channels):
                    vector_copy(columns, channel * width, input, (maps + channel) * positions + first, count)
                for k in range(0, n_filters, TILE_COLUMNS):
                    filters = Rows(weights, (group * weights.shape[1] + k) * channels, channels)
                    halves = in_halves(count, layout.half)
                    convolve_tile(
                        Rows(tile, 0, width), filters, Rows(columns, 0, width), offsets, halves, False
                    )
                    for p in range(min(TILE_COLUMNS, n_filters - k)):
                        vector_copy(out, (out_maps + k + p) * positions + first, tile, p * width, count)


@kernel_njit
def pointwise_weights(memory, layout, filters):
    """Copy filters of one pixel to (groups, filters, channels), with zeros for a whole number of tiles."""
    weights = zeros(memory, (layout.groups, padded_positions(layout.filters), layout.channels), filters)
    for k in range(len(filters)):
        for channel in range(layout.channels):
            weights[k // layout.filters, k % layout.filters, channel] = filters[k, channel, 0, 0]
    return weights


def whole_arguments(real):
    """Return the types of the arguments of a convolution or a gradient: layout, two arrays and the result."""
    maps = real[:, :, :, :]
    return CONV_LAYOUT, maps, maps, real[:, :, :, ::1]


@parallel(whole_arguments, uses=(correlate_block, correlate_maps_block, pointwise_block))
def correlate(memory, block, blocks, layout, input, filters, out):
    """Compute `Conv2d` in a single block, so that it is compiled once, not for each Op."""
    blocks, input = min(len(input), 4 * BLOCKS), contiguous(memory, input)
    if is_pointwise(layout, input):
        check(pointwise_block(blocks, layout, input, pointwise_weights(memory, layout, filters), out))
        return
    weights, offsets = tap_weights(memory, layout, filters), tap_offsets(memory, layout)
    if suits_map_vectors(layout):
        check(correlate_maps_block(blocks, layout, input, weights, offsets, out))
    else:
        check(correlate_block(blocks, layout, input, weights, offsets, out))


@register_kernel(Conv2d, lambda op: correlate)
def make_conv2d(op, convolve):
    """Compile `Conv2d`."""
    layout_of = conv_layout_function(op)

    @kernel_njit
    def conv2d(input, filters):
        layout = layout_of(input, filters)
        out = result((len(input), len(filters), layout.out_rows, layout.out_cols), input)
        # Without channels and filters there may be any number of groups.
        if out.size:
            check(convolve(1, layout, input, filters, out))
        return out

    return conv2d
