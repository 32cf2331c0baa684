"""Numba kernels of convolution.

A tile of output positions and filters stays in registers while the taps are added up. Work is divided into
blocks of images that do not depend on the number of threads, so any number gives bitwise the same result.
"""

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.conv import Conv2d
from deeplearning_tutorial.nnet.dispatch.numba.conv_layout import (
    BLOCKS,
    LAYOUT,
    empty_image,
    filter_blocks,
    filters_of_block,
    goes_along_maps,
    in_halves,
    is_pointwise,
    layout_function,
    load_image,
    numbers,
    padded_positions,
    tap_offsets,
    tap_weights,
)
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    check,
    contiguous,
    kernel_inline,
    kernel_njit,
    parallel,
    register_kernel,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import TILE_COLUMNS, TILE_HALVES, convolve_tile
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import SUM_ROWS, correlate_rows, vector_copy
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, result, zeros
from deeplearning_tutorial.nnet.dispatch.numba.transpose import transpose

# Weights of so many taps and a tile's filters stay in the first-level cache, for the tiles of so many rows.
CHUNK_TAPS, TILE_ROWS = 128, 2


@kernel_inline
def correlate_tiles(layout, image, row, weights, group, offsets, lines, wanted):
    """Compute rows of the output, from ``row`` on, for all filters of a group.

    ``lines`` receives them as (rows, positions, filters), of each row the tiles that are ``wanted``. What is
    right of the output comes of pixels of another row, or past the image, and is not used.
    """
    rows, positions, step = lines.shape
    width = in_halves(layout.filters, layout.half) * layout.half
    column, n_taps = layout.stride_cols * layout.channels, len(offsets)
    for filter_block in range(filter_blocks(layout, width)):
        lane, halves = filters_of_block(layout, width, filter_block)
        lanes = halves * layout.half
        for tap in range(0, max(1, n_taps), CHUNK_TAPS):
            here = offsets[tap : min(tap + CHUNK_TAPS, n_taps)]
            first = group * n_taps * width + lane * n_taps + tap * lanes
            for r in range(rows):
                pixel = (row + r) * layout.stride_rows * layout.cols * layout.channels
                for col in range(0, positions, TILE_COLUMNS):
                    if wanted[col // TILE_COLUMNS]:
                        convolve_tile(
                            lines, (r * positions + col) * step + lane, step, image, pixel + col * column,
                            column, weights, first, lanes, here, halves, tap > 0,
                        )  # fmt: skip


@parallel(
    lambda real: (LAYOUT, real[:, :, :, ::1], real[:, ::1], types.int64[::1], real[:, :, :, ::1]),
)
def correlate_block(memory, block, blocks, layout, input, weights, offsets, out):
    """Convolve a block of images."""
    channels, n_filters = layout.channels, layout.filters
    width, positions = in_halves(n_filters, layout.half) * layout.half, padded_positions(layout.out_cols)
    image = empty_image(memory, layout, TILE_COLUMNS * layout.stride_cols * channels, input)
    lines = empty(memory, (TILE_ROWS, positions, width), input)
    wanted = empty(memory, positions // TILE_COLUMNS, np.bool_)
    wanted[:] = True
    map_size = layout.out_rows * layout.out_cols
    begin, end = block_of(block, blocks, len(input))
    for b in range(begin, end):
        for group in range(layout.groups):
            load_image(layout, input[b, group * channels : (group + 1) * channels], image)
            first_map = (b * layout.groups + group) * n_filters
            for row in range(0, layout.out_rows, TILE_ROWS):
                rows = min(TILE_ROWS, layout.out_rows - row)
                correlate_tiles(layout, image, row, weights, group, offsets, lines[:rows], wanted)
                for r in range(rows):
                    first = first_map * map_size + (row + r) * layout.out_cols
                    transpose(
                        out, first, map_size, lines, r * positions * width, width, layout.out_cols, n_filters
                    )


@parallel(
    lambda real: (
        LAYOUT, real[:, :, :, ::1], real[:, ::1], types.int64[::1], types.int64, types.int64,
        real[:, :, :, ::1]
    ),
)  # fmt: skip
def correlate_maps_block(memory, block, blocks, layout, input, weights, offsets, filter_cols, triples, out):
    """Convolve a block of images where a group has one channel, few filters and no stride.

    A vector holds neighbouring positions, not filters.
    """
    image, factors = empty_image(memory, layout, 0, input), empty(memory, len(offsets), input)
    # Few filters are a single block of `tap_weights`.
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
                        out, (first + row) * layout.out_cols, layout.out_cols, image, row * layout.cols,
                        layout.cols, offsets, factors, filter_cols, triples, layout.out_cols,
                        min(SUM_ROWS, layout.out_rows - row),
                    )  # fmt: skip


@parallel(lambda real: (LAYOUT, real[:, :, :, ::1], real[:, :, ::1], real[:, :, :, ::1]))
def pointwise_block(memory, block, blocks, layout, input, weights, out):
    """Convolve a block of images with filters of one pixel: a product of two matrices for each image."""
    channels, n_filters, positions = layout.channels, layout.filters, layout.rows * layout.cols
    width = TILE_HALVES * layout.half
    columns, tile = zeros(memory, channels * width, input), empty(memory, TILE_COLUMNS * width, input)
    offsets = numbers(memory, channels)
    begin, end = block_of(block, blocks, len(input))
    for b in range(begin, end):
        for group in range(layout.groups):
            maps, out_maps = (b * layout.groups + group) * channels, (b * layout.groups + group) * n_filters
            for first in range(0, positions, width):
                count = min(width, positions - first)
                for channel in range(channels):
                    vector_copy(columns, channel * width, input, (maps + channel) * positions + first, count)
                for k in range(0, n_filters, TILE_COLUMNS):
                    convolve_tile(
                        tile, 0, width, weights, (group * weights.shape[1] + k) * channels, channels,
                        columns, 0, width, offsets, in_halves(count, layout.half), False,
                    )  # fmt: skip
                    for p in range(min(TILE_COLUMNS, n_filters - k)):
                        vector_copy(out, (out_maps + k + p) * positions + first, tile, p * width, count)


@kernel_njit
def pointwise_weights(memory, layout, filters):
    """Copy filters of one pixel to (groups, filters, channels), with zeros for a whole number of tiles."""
    weights = zeros(
        memory, (layout.groups, padded_positions(layout.filters), layout.channels), filters
    )
    for k in range(len(filters)):
        for channel in range(layout.channels):
            weights[k // layout.filters, k % layout.filters, channel] = filters[k, channel, 0, 0]
    return weights


def arguments_of_whole(real):
    """Types of layout, two arrays of maps, dilation, flip and result: a convolution's or a gradient's."""
    maps = real[:, :, :, :]
    return LAYOUT, maps, maps, types.UniTuple(types.int64, 2), types.boolean, real[:, :, :, ::1]


@parallel(arguments_of_whole, uses=(correlate_block, correlate_maps_block, pointwise_block))
def correlate(memory, block, blocks, layout, input, filters, dilation, flip, out):
    """Compute `Conv2d`, to be called as a single block: it is compiled once, not for each Op."""
    blocks, input = min(len(input), 4 * BLOCKS), contiguous(memory, input)
    if is_pointwise(layout, input):
        check(pointwise_block(blocks, layout, input, pointwise_weights(memory, layout, filters), out))
        return
    weights = tap_weights(memory, layout, filters, flip)
    offsets = tap_offsets(memory, layout, filters, dilation)
    if goes_along_maps(layout):
        # Of a dilated filter, neighbouring rows of taps do not serve neighbouring rows of the output.
        triples = filters.shape[2] // 3 if dilation[0] == 1 else 0
        check(correlate_maps_block(blocks, layout, input, weights, offsets, filters.shape[3], triples, out))
    else:
        check(correlate_block(blocks, layout, input, weights, offsets, out))


@register_kernel(Conv2d)
def make_conv2d(op, node, **kwargs):
    """Compile `Conv2d`."""
    correlate.load(node.outputs[0].dtype)
    lay_out, dilation, flip = layout_function(op), op.filter_dilation, op.filter_flip

    @kernel_njit
    def conv2d(input, filters):
        layout = lay_out(input, filters)
        out = result((len(input), len(filters), layout.out_rows, layout.out_cols), input)
        # Of no channels and no filters there may be any number of groups.
        if out.size:
            check(correlate(1, layout, input, filters, dilation, flip, out))
        return out

    return conv2d
