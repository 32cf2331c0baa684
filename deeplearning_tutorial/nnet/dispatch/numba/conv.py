"""Numba kernels of convolution and its gradients.

An image is copied channels-last, with its padding, so that the pixels under a row of a filter, of all
channels, lie side by side. An element of a filter is here called a *tap*; its offset is where its pixel lies,
counted from the pixel under the filter's first tap. Taps with neighbouring pixels form a *run*: a row of a
filter, or a single position where the filter is dilated. The forward pass keeps a tile of output positions
and filters in registers. So do the gradients where the output gradient is dense. Else they walk only the
positions where it is not zero; after max-pooling that is about one in as many as a window has elements.

Work is divided into blocks of images that do not depend on the number of threads, and partial sums are added
in the order of the blocks, so any number of threads gives bitwise the same result.
"""

from typing import NamedTuple

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.conv import (
    Conv2d,
    Conv2dGradFilters,
    Conv2dGradInput,
    conv_output_length,
    dilated_length,
)
from deeplearning_tutorial.nnet.dispatch.numba import simd
from deeplearning_tutorial.nnet.dispatch.numba.emitter import REGISTER_BYTES
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    keep,
    kernel_inline,
    kernel_njit,
    parallel,
    register_kernel,
    unowned,
)
from deeplearning_tutorial.nnet.dispatch.numba.simd import (
    GATHER_HALVES,
    SHIFTS,
    TILE_COLUMNS,
    TILE_HALVES,
    add_inner_rows,
    convolve_tile,
    gather_add,
)
from deeplearning_tutorial.nnet.dispatch.numba.transpose import transpose
from deeplearning_tutorial.nnet.dispatch.numba.vectors import SUM_ROWS, vector_add, vector_copy, weighted_sums

# PyTensor's cache of compiled functions does not see an edited kernel: count up whenever one changes.
CACHE_VERSION = 18

# Enough for many cores; few enough that the partial filter gradients stay small.
BLOCKS = 16

# Filters of a group that would leave most of a tile's vectors empty.
FEW_FILTERS = 2

# Positions whose gradients a tile adds at once.
CHUNK_POSITIONS = 128

# Padding that is known once the filter's length is.
HALF, FULL = -1, -2

in_halves = kernel_njit(simd.in_halves)
gather_rows = kernel_njit(simd.gather_rows)
output_length = kernel_njit(conv_output_length)
span_of = kernel_njit(dilated_length)


class Layout(NamedTuple):
    """Sizes that the kernels share: those of one group's image, padded, and of its filters."""

    groups: int
    channels: int
    filters: int
    rows: int
    cols: int
    top: int
    left: int
    out_rows: int
    out_cols: int
    stride_rows: int
    stride_cols: int
    run: int
    """Taps in a run."""
    half: int
    """Elements in half a vector register."""


LAYOUT = types.NamedUniTuple(types.int64, len(Layout._fields), Layout)


@kernel_njit
def padding(pad, span):
    """Resolve `HALF` and `FULL`."""
    if pad == HALF:
        return span // 2
    return span - 1 if pad == FULL else pad


@kernel_njit
def layout_of(input, filters, pads, subsample, dilation, num_groups):
    """Return the layout; raise ValueError where the data do not fit."""
    if input.shape[1] != filters.shape[1] * num_groups:
        raise ValueError("input and filters do not have matching channels", input.shape, filters.shape)
    if filters.shape[0] % num_groups:
        groups = np.int64(num_groups)  # for the reason that `reported` has
        raise ValueError("num_groups does not divide the number of filters", groups, filters.shape)
    if filters.shape[2] < 1 or filters.shape[3] < 1:
        raise ValueError("filters have no rows or no columns", filters.shape)
    rows_span, cols_span = span_of(filters.shape[2], dilation[0]), span_of(filters.shape[3], dilation[1])
    top, bottom = padding(pads[0][0], rows_span), padding(pads[0][1], rows_span)
    left, right = padding(pads[1][0], cols_span), padding(pads[1][1], cols_span)
    rows, cols = input.shape[2] + top + bottom, input.shape[3] + left + right
    if rows < rows_span or cols < cols_span:
        raise ValueError("filters are larger than the input: no output is left", input.shape, filters.shape)
    channels = filters.shape[1]
    return Layout(
        num_groups,
        channels,
        filters.shape[0] // num_groups,
        rows,
        cols,
        top,
        left,
        (rows - rows_span) // subsample[0] + 1,
        (cols - cols_span) // subsample[1] + 1,
        subsample[0],
        subsample[1],
        channels * filters.shape[3] if dilation[1] == 1 else channels,
        REGISTER_BYTES // input.itemsize // 2,
    )


@kernel_njit
def tap_offsets(layout, filters, dilation):
    """Offsets of a filter's taps, in the order (rows, cols, channels)."""
    channels = layout.channels
    filter_rows, filter_cols = filters.shape[2:]
    offsets = np.empty(filter_rows * filter_cols * channels, np.int32)
    for row in range(filter_rows):
        for col in range(filter_cols):
            pixel = (row * dilation[0] * layout.cols + col * dilation[1]) * channels
            for channel in range(channels):
                offsets[(row * filter_cols + col) * channels + channel] = pixel + channel
    return offsets


@kernel_njit
def tap_weights(layout, filters, flip):
    """Copy filters to (groups, taps, filters), the last axis padded with zeros to whole half vectors."""
    _, channels, rows, cols = filters.shape
    width = in_halves(layout.filters, layout.half) * layout.half
    weights = np.zeros((layout.groups, rows * cols * channels, width), filters.dtype)
    for k in range(len(filters)):
        for channel in range(channels):
            for row in range(rows):
                for col in range(cols):
                    from_row = rows - 1 - row if flip else row
                    from_col = cols - 1 - col if flip else col
                    tap = (row * cols + col) * channels + channel
                    weights[k // layout.filters, tap, k % layout.filters] = filters[
                        k, channel, from_row, from_col
                    ]
    return weights


@kernel_njit
def runs_of_weights(layout, filters, flip):
    """Copy filters to (groups, runs, filters, taps of a run), padded to whole half vectors."""
    weights = tap_weights(layout, filters, flip)
    n_runs = weights.shape[1] // layout.run if layout.run else 0
    length = in_halves(layout.run, layout.half) * layout.half
    runs = np.zeros((layout.groups, n_runs, layout.filters, length), filters.dtype)
    for group in range(layout.groups):
        for run in range(n_runs):
            for k in range(layout.filters):
                for tap in range(layout.run):
                    runs[group, run, k, tap] = weights[group, run * layout.run + tap, k]
    return runs


@kernel_njit
def empty_image(layout, extra, like):
    """Zeros for a padded image, channels-last and flat, and ``extra`` elements for vectors to run over."""
    return np.zeros(layout.rows * layout.cols * layout.channels + extra, like.dtype)


@kernel_njit
def load_image(layout, maps, image):
    """Copy (channels, rows, cols) into the flat image, inside its padding."""
    channels, rows, cols = maps.shape
    for row in range(rows):
        first = ((row + layout.top) * layout.cols + layout.left) * channels
        if channels == 1:
            vector_copy(image, first, maps, row * cols, cols)
        else:
            transpose(image, first, channels, maps, row * cols, rows * cols, channels, cols)


@kernel_njit
def store_image(layout, image, maps):
    """Copy what is inside the padding back to (channels, rows, cols)."""
    channels, rows, cols = maps.shape
    for row in range(rows):
        first = ((row + layout.top) * layout.cols + layout.left) * channels
        transpose(maps, row * cols, rows * cols, image, first, channels, cols, channels)


@kernel_inline
def convolve_filters(out, out_at, out_step, image, pixel, column, filters, filters_at, width, offsets, half):
    """Run `convolve_tile` over all ``width`` filters; ``out_step`` lies between positions in ``out``."""
    halves = width // half
    filter_blocks = (halves + TILE_HALVES - 1) // TILE_HALVES
    for filter_block in range(filter_blocks):
        begin, end = block_of(filter_block, filter_blocks, halves)
        lane = begin * half
        convolve_tile(
            out, out_at + lane, out_step, image, pixel, column, filters, filters_at + lane, width, offsets,
            end - begin,
        )  # fmt: skip


@kernel_inline
def correlate_tile(layout, image, row, col, weights, group, offsets, lines, first, lanes):
    """Compute TILE_COLUMNS output positions of one row, from ``col`` on, for all filters of a group.

    ``lines`` receives them from ``first`` on as (positions, lanes). What lies right of the output comes of
    pixels of another row, or past the image, and is not used.
    """
    _, taps, width = weights.shape
    column = layout.stride_cols * layout.channels
    pixel = (row * layout.stride_rows * layout.cols + col * layout.stride_cols) * layout.channels
    convolve_filters(
        lines, first + col * lanes, lanes, image, pixel, column,
        weights, group * taps * width, width, offsets, layout.half,
    )  # fmt: skip


@kernel_njit
def padded_positions(positions):
    """``positions`` rounded up to a multiple of TILE_COLUMNS."""
    return (positions + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS


@kernel_inline
def add_pixels(layout, gradient, k, image, run_offsets, offsets, factors, first, count):
    """Add the runs of pixels at ``offsets``, times ``factors``, to filter ``k``.

    ``gradient`` is (filters, runs, taps of a run); ``offsets`` and ``factors`` are read from ``first`` on.
    """
    _, n_runs, length = gradient.shape
    halves = length // layout.half
    for begin in range(0, halves, GATHER_HALVES):
        taken = min(GATHER_HALVES, halves - begin)
        at_once = gather_rows(taken)
        for run in range(0, n_runs, at_once):
            gather_add(
                gradient, (k * n_runs + run) * length + begin * layout.half, length,
                image, begin * layout.half, run_offsets, run, min(at_once, n_runs - run),
                offsets, factors, first, count, taken,
            )  # fmt: skip


@kernel_njit
def sum_of_blocks(layout, partial, flip, gradient):
    """Add the blocks in their order; bring the sum to the filters' shape, that of ``gradient``.

    ``partial`` is (blocks, groups, filters, runs, taps of a run).
    """
    _, channels, rows, cols = gradient.shape
    total = partial[0]
    flat_total = total.reshape(total.size)
    # A loop, for which Numba compiles less than for ``total += partial[block]``.
    for block in range(1, len(partial)):
        flat = partial[block].reshape(total.size)
        for i in range(total.size):
            flat_total[i] += flat[i]
    for k in range(len(gradient)):
        for channel in range(channels):
            for row in range(rows):
                for col in range(cols):
                    tap = (row * cols + col) * channels + channel
                    to_row = rows - 1 - row if flip else row
                    to_col = cols - 1 - col if flip else col
                    gradient[k, channel, to_row, to_col] = total[
                        k // layout.filters, k % layout.filters, tap // layout.run, tap % layout.run
                    ]


@kernel_inline
def add_filters(layout, image, runs, run_offsets, offsets, factors, counts):
    """Add to the pixels under each output position the filters' runs there, times ``factors``.

    ``runs`` is (runs, filters, taps of a run); ``offsets`` and ``factors`` list for each (row, col) of the
    output the filters that have a gradient there, ``counts`` how many they are.
    """
    n_runs, n_filters, length = runs.shape
    out_rows, out_cols, room = offsets.shape
    halves = length // layout.half
    here = np.zeros(1, np.int32)
    # The run outermost: its taps, of all filters, stay in the first-level cache.
    for run in range(n_runs):
        for row in range(out_rows):
            for col in range(out_cols):
                pixel = (row * layout.stride_rows * layout.cols + col * layout.stride_cols) * layout.channels
                for begin in range(0, halves, GATHER_HALVES):
                    gather_add(
                        image, pixel + run_offsets[run] + begin * layout.half, 0,
                        runs, run * n_filters * length + begin * layout.half, here, 0, 1,
                        offsets, factors, (row * out_cols + col) * room, counts[row, col],
                        min(GATHER_HALVES, halves - begin),
                    )  # fmt: skip


@parallel(
    lambda real: (LAYOUT, real[:, :, :, ::1], real[:, :, ::1], types.int32[::1], real[:, :, :, ::1]),
    CACHE_VERSION,
)
def correlate_block(block, blocks, layout, input, weights, offsets, out):
    """Convolve a block of images."""
    channels, n_filters = layout.channels, layout.filters
    scratch = (
        empty_image(layout, TILE_COLUMNS * layout.stride_cols * channels, input),
        np.empty((padded_positions(layout.out_cols), weights.shape[2]), input.dtype),
    )
    image, line = unowned(scratch)
    begin, end = block_of(block, blocks, len(input))
    for b in range(begin, end):
        for group in range(layout.groups):
            load_image(layout, input[b, group * channels : (group + 1) * channels], image)
            for row in range(layout.out_rows):
                for col in range(0, len(line), TILE_COLUMNS):
                    correlate_tile(layout, image, row, col, weights, group, offsets, line, 0, line.shape[1])
                first = ((b * out.shape[1] + group * n_filters) * layout.out_rows + row) * layout.out_cols
                map_size = layout.out_rows * layout.out_cols
                transpose(out, first, map_size, line, 0, line.shape[1], layout.out_cols, n_filters)
    keep(scratch)


@parallel(
    lambda real: (LAYOUT, real[:, :, :, ::1], real[:, :, ::1], types.int32[::1], real[:, :, :, ::1]),
    CACHE_VERSION,
)
def correlate_maps_block(block, blocks, layout, input, weights, offsets, out):
    """Convolve a block of images where a group has one channel, few filters and no stride.

    A vector holds neighbouring positions, not filters.
    """
    scratch = empty_image(layout, 0, input), np.empty(len(offsets), input.dtype)
    image, factors = unowned(scratch)
    begin, end = block_of(block, blocks, len(input))
    for b in range(begin, end):
        for group in range(layout.groups):
            load_image(layout, input[b, group : group + 1], image)
            for k in range(layout.filters):
                for tap in range(len(offsets)):
                    factors[tap] = weights[group, tap, k]
                first = ((b * layout.groups + group) * layout.filters + k) * layout.out_rows
                for row in range(0, layout.out_rows, SUM_ROWS):
                    weighted_sums(
                        out, (first + row) * layout.out_cols, layout.out_cols, image, row * layout.cols,
                        layout.cols, offsets, factors, layout.out_cols, min(SUM_ROWS, layout.out_rows - row),
                    )  # fmt: skip
    keep(scratch)


@parallel(
    lambda real: (LAYOUT, real[:, :, :, ::1], real[:, :, ::1], real[:, :, :, ::1]), CACHE_VERSION
)
def pointwise_block(block, blocks, layout, input, weights, out):
    """Convolve a block of images with filters of one pixel: a product of two matrices for each image."""
    channels, n_filters, positions = layout.channels, layout.filters, layout.rows * layout.cols
    width = TILE_HALVES * layout.half
    scratch = (
        np.zeros(channels * width, input.dtype),
        np.empty(TILE_COLUMNS * width, input.dtype),
        np.arange(channels).astype(np.int32),
    )
    columns, tile, offsets = unowned(scratch)
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
                        columns, 0, width, offsets, in_halves(count, layout.half),
                    )  # fmt: skip
                    for p in range(min(TILE_COLUMNS, n_filters - k)):
                        vector_copy(out, (out_maps + k + p) * positions + first, tile, p * width, count)
    keep(scratch)


@parallel(
    lambda real: (
        LAYOUT, real[:, :, :, ::1], real[:, :, :, ::1], types.int32[::1], real[:, :, :, :, ::1]
    ),
    CACHE_VERSION,
)  # fmt: skip
def filters_gradient_block(block, blocks, layout, input, output_gradient, offsets, partial):
    """Sum the filters' gradient over a block of images into ``partial[block]``."""
    channels, n_filters = layout.channels, layout.filters
    room = layout.out_rows * layout.out_cols + 1
    scratch = (
        empty_image(layout, partial.shape[4], input),
        offsets[:: max(1, layout.run)].copy(),
        np.empty(room, np.int32),
        np.empty(room, input.dtype),
    )
    image, run_offsets, pixels, factors = unowned(scratch)
    begin, end = block_of(block, blocks, len(input))
    for b in range(begin, end):
        for group in range(layout.groups):
            load_image(layout, input[b, group * channels : (group + 1) * channels], image)
            for k in range(n_filters):
                count = 0
                for row in range(layout.out_rows):
                    first = row * layout.stride_rows * layout.cols * channels
                    for col in range(layout.out_cols):
                        factor = output_gradient[b, group * n_filters + k, row, col]
                        # Each position is written down, and kept by counting it: no branch to mispredict.
                        pixels[count] = first + col * layout.stride_cols * channels
                        factors[count] = factor
                        count += factor != 0
                add_pixels(layout, partial[block, group], k, image, run_offsets, pixels, factors, 0, count)
    keep(scratch)


@parallel(
    lambda real: (
        LAYOUT, real[:, :, :, ::1], real[:, :, :, ::1], types.int32[::1], real[:, :, :, :, ::1]
    ),
    CACHE_VERSION,
)  # fmt: skip
def dense_filters_gradient_block(block, blocks, layout, input, output_gradient, offsets, partial):
    """Compute the same from all positions: a product of pixels and gradients, tile by tile of taps."""
    channels, n_filters, run_length = layout.channels, layout.filters, layout.run
    positions, width = layout.out_rows * layout.out_cols, in_halves(n_filters, layout.half) * layout.half
    n_runs, room = partial.shape[3], padded_positions(run_length)
    n_taps, filter_blocks = n_runs * room, (width // layout.half + TILE_HALVES - 1) // TILE_HALVES
    scratch = (
        empty_image(layout, TILE_COLUMNS, input),
        np.empty(positions, np.int32),
        np.zeros((positions, width), input.dtype),
        np.zeros(layout.groups * width * n_taps, input.dtype),
        np.empty(TILE_COLUMNS * width, input.dtype),
    )
    image, pixels, gradients, sums, tile = unowned(scratch)
    # Filters of one pixel need no other layout: neighbouring taps then lie a map apart.
    planar = positions == input.shape[2] * input.shape[3] == layout.rows * layout.cols and (
        n_runs == 1 and run_length == channels and channels % TILE_COLUMNS == 0
    )
    pixel_step, tap_step = (1, positions) if planar else (channels, 1)
    source, origin = input.reshape(input.size) if planar else image, 0
    for row in range(layout.out_rows):
        for col in range(layout.out_cols):
            pixel = row * layout.stride_rows * layout.cols + col * layout.stride_cols
            pixels[row * layout.out_cols + col] = pixel * pixel_step
    begin, end = block_of(block, blocks, len(input))
    for b in range(begin, end):
        for group in range(layout.groups):
            if planar:
                origin = (b * layout.groups + group) * channels * positions
            else:
                load_image(layout, input[b, group * channels : (group + 1) * channels], image)
            maps = (b * layout.groups + group) * n_filters * positions
            transpose(gradients, 0, width, output_gradient, maps, positions, n_filters, positions)
            # So few positions and filters at a time that their gradients stay in the first-level cache.
            for first in range(0, positions, CHUNK_POSITIONS):
                here = pixels[first : min(first + CHUNK_POSITIONS, positions)]
                for filter_block in range(filter_blocks):
                    begin_half, end_half = block_of(filter_block, filter_blocks, width // layout.half)
                    lane, lanes = begin_half * layout.half, (end_half - begin_half) * layout.half
                    for run in range(n_runs):
                        for tap in range(0, run_length, TILE_COLUMNS):
                            first_tap = origin + offsets[run * run_length] + tap * tap_step
                            convolve_tile(
                                tile, 0, lanes, source, first_tap, tap_step,
                                gradients, first * width + lane, width, here, end_half - begin_half,
                            )  # fmt: skip
                            at = (group * width + lane) * n_taps + (run * room + tap) * lanes
                            vector_add(sums, at, tile, 0, TILE_COLUMNS * lanes)
    for group in range(layout.groups):
        for filter_block in range(filter_blocks):
            begin_half, end_half = block_of(filter_block, filter_blocks, width // layout.half)
            lane, lanes = begin_half * layout.half, (end_half - begin_half) * layout.half
            for run in range(n_runs):
                for tap in range(run_length):
                    at = (group * width + lane) * n_taps + (run * room + tap) * lanes
                    for k in range(lane, min(lane + lanes, n_filters)):
                        partial[block, group, k, run, tap] = sums[at + k - lane]
    keep(scratch)


@parallel(
    lambda real: (
        LAYOUT, real[:, :, :, ::1], real[:, :, :, ::1], types.int32[::1], real[:, :, :, :, ::1]
    ),
    CACHE_VERSION,
)  # fmt: skip
def maps_gradient_block(block, blocks, layout, input, output_gradient, offsets, partial):
    """Compute the same where a group has one channel, few filters and no stride, along the rows of maps."""
    scratch = empty_image(layout, 0, input), np.zeros(len(offsets), input.dtype)
    image, sums = unowned(scratch)
    begin, end = block_of(block, blocks, len(input))
    for b in range(begin, end):
        for group in range(layout.groups):
            load_image(layout, input[b, group : group + 1], image)
            for k in range(layout.filters):
                first = ((b * layout.groups + group) * layout.filters + k) * layout.out_rows * layout.out_cols
                sums[:] = 0
                for tap in range(0, len(offsets), SHIFTS):
                    add_inner_rows(
                        sums, tap, output_gradient, first, layout.out_cols, image, 0, layout.cols,
                        offsets, tap, layout.out_rows, layout.out_cols, min(SHIFTS, len(offsets) - tap),
                    )  # fmt: skip
                for tap in range(len(offsets)):
                    partial[block, group, k, tap // layout.run, tap % layout.run] += sums[tap]
    keep(scratch)


@parallel(
    lambda real: (
        LAYOUT, real[:, :, :, ::1], real[:, :, :, ::1], types.int32[::1], real[:, :, :, ::1]
    ),
    CACHE_VERSION,
)  # fmt: skip
def input_gradient_block(block, blocks, layout, runs, output_gradient, offsets, gradient):
    """Compute the gradient of a block of images."""
    channels, n_filters = layout.channels, layout.filters
    length = runs.shape[3]
    shape = layout.out_rows, layout.out_cols, n_filters + 1
    scratch = (
        empty_image(layout, length, runs),
        offsets[:: max(1, layout.run)].copy(),
        np.empty(shape, np.int32),
        np.empty(shape, runs.dtype),
        np.empty(shape[:2], np.int32),
    )
    image, run_offsets, chosen, factors, counts = unowned(scratch)
    begin, end = block_of(block, blocks, len(gradient))
    for b in range(begin, end):
        for group in range(layout.groups):
            image[:] = 0
            counts[:] = 0
            for k in range(n_filters):
                for row in range(layout.out_rows):
                    for col in range(layout.out_cols):
                        factor = output_gradient[b, group * n_filters + k, row, col]
                        count = counts[row, col]
                        chosen[row, col, count] = k * length
                        factors[row, col, count] = factor
                        counts[row, col] = count + (factor != 0)
            add_filters(layout, image, runs[group], run_offsets, chosen, factors, counts)
            store_image(layout, image, gradient[b, group * channels : (group + 1) * channels])
    keep(scratch)


@kernel_njit
def check_gradient(layout, input, filters, output_gradient):
    """Raise ValueError unless the gradient has the output's shape."""
    if output_gradient.shape != (len(input), len(filters), layout.out_rows, layout.out_cols):
        raise ValueError("output_gradient does not have the output's shape", output_gradient.shape)


@kernel_njit
def goes_along_maps(layout):
    """Tell whether vectors of neighbouring positions are better than vectors of filters."""
    return layout.channels == layout.stride_rows == layout.stride_cols == 1 and layout.filters <= FEW_FILTERS


@kernel_njit
def is_pointwise(layout, input, filters):
    """Tell whether each output pixel comes of one pixel, and there are as many."""
    sizes = layout.out_rows, layout.out_cols
    return filters.shape[2:] == (1, 1) and sizes == input.shape[2:] == (layout.rows, layout.cols)


@kernel_njit
def pointwise_weights(layout, filters):
    """Copy filters of one pixel to (groups, filters, channels), with zeros for a whole number of tiles."""
    weights = np.zeros((layout.groups, padded_positions(layout.filters), layout.channels), filters.dtype)
    for k in range(len(filters)):
        for channel in range(layout.channels):
            weights[k // layout.filters, k % layout.filters, channel] = filters[k, channel, 0, 0]
    return weights


@kernel_njit
def correlate(layout, input, filters, dilation, flip):
    """Compute `Conv2d`."""
    out = np.empty((len(input), len(filters), layout.out_rows, layout.out_cols), input.dtype)
    blocks, input = min(len(input), 4 * BLOCKS), np.ascontiguousarray(input)
    if is_pointwise(layout, input, filters):
        pointwise_block(blocks, layout, input, pointwise_weights(layout, filters), out)
        return out
    weights, offsets = tap_weights(layout, filters, flip), tap_offsets(layout, filters, dilation)
    if goes_along_maps(layout):
        correlate_maps_block(blocks, layout, input, weights, offsets, out)
    else:
        correlate_block(blocks, layout, input, weights, offsets, out)
    return out


@kernel_njit
def empty_partial(layout, filters):
    """Zeros for the sums of all blocks: (blocks, groups, filters, runs, taps of a run)."""
    n_taps = filters.shape[1] * filters.shape[2] * filters.shape[3]
    n_runs = n_taps // layout.run if layout.run else 0
    length = in_halves(layout.run, layout.half) * layout.half
    return np.zeros((BLOCKS, layout.groups, layout.filters, n_runs, length), filters.dtype)


@kernel_njit
def is_dense(output_gradient):
    """Tell whether most of the first image's gradient is not zero; the others will be alike."""
    if output_gradient.size == 0:
        return False
    count = 0
    for gradient in output_gradient[0].flat:
        count += gradient != 0
    return 2 * count > output_gradient[0].size


@kernel_njit
def filters_gradient(layout, input, filters, output_gradient, dilation, flip):
    """Compute `Conv2dGradFilters`."""
    check_gradient(layout, input, filters, output_gradient)
    partial = empty_partial(layout, filters)
    offsets = tap_offsets(layout, filters, dilation)
    arrays = np.ascontiguousarray(input), np.ascontiguousarray(output_gradient), offsets, partial
    dense = is_dense(output_gradient)
    if dense and goes_along_maps(layout):
        maps_gradient_block(BLOCKS, layout, *arrays)
    # A few filters leave most of a tile's vectors empty.
    elif dense and 2 * layout.filters >= layout.half:
        dense_filters_gradient_block(BLOCKS, layout, *arrays)
    else:
        filters_gradient_block(BLOCKS, layout, *arrays)
    gradient = np.empty(filters.shape, filters.dtype)
    sum_of_blocks(layout, partial, flip, gradient)
    return gradient


@kernel_njit
def transposed_pads(layout, input, filters, dilation):
    """Return the padding with which the output gradient, convolved, gives the input's; usable from 0 on."""
    rows, cols = span_of(filters.shape[2], dilation[0]) - 1, span_of(filters.shape[3], dilation[1]) - 1
    bottom, right = layout.rows - layout.top - input.shape[2], layout.cols - layout.left - input.shape[3]
    return (rows - layout.top, rows - bottom), (cols - layout.left, cols - right)


@kernel_njit
def transposed_filters(layout, filters):
    """Copy filters with those and channels swapped within each group."""
    _, channels, rows, cols = filters.shape
    transposed = np.empty((layout.groups * channels, layout.filters, rows, cols), filters.dtype)
    for k in range(len(filters)):
        group, within = divmod(k, layout.filters)
        for channel in range(channels):
            for row in range(rows):
                for col in range(cols):
                    transposed[group * channels + channel, within, row, col] = filters[k, channel, row, col]
    return transposed


@kernel_njit
def input_gradient(layout, input, filters, output_gradient, dilation, flip):
    """Compute `Conv2dGradInput`."""
    check_gradient(layout, input, filters, output_gradient)
    pads = transposed_pads(layout, input, filters, dilation)
    overlap = min(pads[0][0], pads[0][1], pads[1][0], pads[1][1]) >= 0
    if layout.stride_rows == layout.stride_cols == 1 and overlap and is_dense(output_gradient):
        filters = transposed_filters(layout, filters)
        layout = layout_of(output_gradient, filters, pads, (1, 1), dilation, layout.groups)
        return correlate(layout, output_gradient, filters, dilation, not flip)
    gradient = np.empty(input.shape, filters.dtype)
    runs, offsets = runs_of_weights(layout, filters, flip), tap_offsets(layout, filters, dilation)
    blocks = min(len(input), 4 * BLOCKS)
    output_gradient = np.ascontiguousarray(output_gradient)
    input_gradient_block(blocks, layout, runs, output_gradient, offsets, gradient)
    return gradient


def layout_function(op):
    """Make ``layout(input, filters)`` for an Op's parameters."""
    symbolic = {"half": ((HALF, HALF), (HALF, HALF)), "full": ((FULL, FULL), (FULL, FULL))}
    pads = symbolic[op.border_mode] if isinstance(op.border_mode, str) else op.border_mode
    subsample, dilation, num_groups = op.subsample, op.filter_dilation, op.num_groups

    @kernel_njit
    def layout(input, filters):
        return layout_of(input, filters, pads, subsample, dilation, num_groups)

    return layout


@register_kernel(Conv2d)
def make_conv2d(op, node, **kwargs):
    """Compile `Conv2d`."""
    correlate_block.load(node.outputs[0].dtype)
    correlate_maps_block.load(node.outputs[0].dtype)
    pointwise_block.load(node.outputs[0].dtype)
    layout, dilation, flip = layout_function(op), op.filter_dilation, op.filter_flip

    @kernel_njit
    def conv2d(input, filters):
        return correlate(layout(input, filters), input, filters, dilation, flip)

    return conv2d, CACHE_VERSION


@register_kernel(Conv2dGradFilters)
def make_conv2d_grad_filters(op, node, **kwargs):
    """Compile `Conv2dGradFilters`."""
    filters_gradient_block.load(node.outputs[0].dtype)
    dense_filters_gradient_block.load(node.outputs[0].dtype)
    maps_gradient_block.load(node.outputs[0].dtype)
    layout, dilation, flip = layout_function(op), op.filter_dilation, op.filter_flip

    @kernel_njit
    def conv2d_grad_filters(input, filters, output_gradient):
        return filters_gradient(layout(input, filters), input, filters, output_gradient, dilation, flip)

    return conv2d_grad_filters, CACHE_VERSION


@register_kernel(Conv2dGradInput)
def make_conv2d_grad_input(op, node, **kwargs):
    """Compile `Conv2dGradInput`."""
    input_gradient_block.load(node.outputs[0].dtype)
    correlate_block.load(node.outputs[0].dtype)
    correlate_maps_block.load(node.outputs[0].dtype)
    pointwise_block.load(node.outputs[0].dtype)
    layout, dilation, flip = layout_function(op), op.filter_dilation, op.filter_flip

    @kernel_njit
    def conv2d_grad_input(input, filters, output_gradient):
        return input_gradient(layout(input, filters), input, filters, output_gradient, dilation, flip)

    return conv2d_grad_input, CACHE_VERSION
