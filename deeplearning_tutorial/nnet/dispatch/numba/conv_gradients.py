"""Numba kernels of convolution's gradients.

If the output gradient is dense they keep a tile of sums in registers, as convolution does. Otherwise they
visit only the positions where it is not zero; after max-pooling that is about one element of each window.
Partial sums are added in the order of the blocks of images, so the result is bitwise the same for any number
of threads.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.conv import Conv2dGradFilters, Conv2dGradInput
from deeplearning_tutorial.nnet.dispatch.numba.arrays import all_finite, contiguous
from deeplearning_tutorial.nnet.dispatch.numba.conv import correlate, whole_arguments
from deeplearning_tutorial.nnet.dispatch.numba.conv_layout import (
    BLOCKS,
    CONV_LAYOUT,
    conv_layout_function,
    conv_layout_of,
    empty_image,
    filter_blocks,
    filters_of_block,
    flipped,
    is_pointwise,
    load_image,
    padded_positions,
    span_of,
    store_image,
    suits_map_vectors,
    tap_offsets,
)
from deeplearning_tutorial.nnet.dispatch.numba.jit import exact_njit, kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    check,
    parallel,
    register_kernel,
    tuple_type,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import Elements, Rows
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import (
    GATHER_HALVES,
    SHIFTS,
    TILE_COLUMNS,
    Pieces,
    add_inner_rows,
    convolve_tile,
    gather_add,
    gather_rows,
    in_halves,
)
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, result, zeros
from deeplearning_tutorial.nnet.dispatch.numba.transpose import transpose

# Positions whose gradients a tile adds at once.
CHUNK_POSITIONS = 128

# Elements of filters that the offsets in `FilterLists` can count: these are short, for they are read once for
# each run.
MAX_LISTED = 2**31


class FilterRuns(NamedTuple):
    """Filters as their runs."""

    weights: Any
    """Shape (groups, runs, filters, taps of a run), padded with zeros to whole half vectors."""
    offsets: Any
    """The offset of each run's first tap."""
    finite: bool
    """Whether no weight is infinite or NaN."""


class FilterLists(NamedTuple):
    """Lists, for each position (row, col) of the output, of the filters that have a gradient there."""

    offsets: Any
    """Where each filter's weights of a run begin; shape (rows, cols, filters)."""
    factors: Any
    """The gradients, of the same shape."""
    counts: Any
    """How many filters are listed; shape (rows, cols)."""


def filter_runs_type(real):
    """Return the type of `FilterRuns`."""
    return tuple_type(FilterRuns, real[:, :, :, ::1], types.int64[::1], types.boolean)


@kernel_njit
def filter_runs(memory, layout, filters):
    """Copy filters to `FilterRuns`."""
    weights = runs_of_weights(memory, layout, filters)
    offsets = offsets_of_runs(memory, layout, tap_offsets(memory, layout))
    return FilterRuns(weights, offsets, all_finite(weights.reshape(weights.size)))


@kernel_njit
def runs_of_weights(memory, layout, filters):
    """Copy filters to (groups, runs, filters, taps of a run), padded to whole half vectors."""
    _, channels, rows, cols = filters.shape
    n_runs = rows * cols * channels // layout.run if layout.run else 0
    length = in_halves(layout.run, layout.half) * layout.half
    runs = zeros(memory, (layout.groups, n_runs, layout.filters, length), filters)
    for k in range(len(filters)):
        group, within = divmod(k, layout.filters)
        for channel in range(channels):
            for row in range(rows):
                for col in range(cols):
                    from_row, from_col = flipped(layout, row, col)
                    run, tap = divmod((row * cols + col) * channels + channel, layout.run)
                    runs[group, run, within, tap] = filters[k, channel, from_row, from_col]
    return runs


@kernel_njit
def offsets_of_runs(memory, layout, offsets):
    """Return the offsets of the runs' first taps; ``offsets`` are those of all taps."""
    step = max(1, layout.run)
    firsts = empty(memory, (len(offsets) + step - 1) // step, np.int64)
    for run in range(len(firsts)):
        firsts[run] = offsets[run * step]
    return firsts


@exact_njit
def add_pixels(layout, gradient, k, image, run_offsets, pixels):
    """Add the runs at some pixels, `Pieces` of the image, to filter ``k``.

    ``gradient`` is (filters, runs, taps of a run).
    """
    _, n_runs, length = gradient.shape
    halves = length // layout.half
    for begin in range(0, halves, GATHER_HALVES):
        taken = min(GATHER_HALVES, halves - begin)
        at_once = gather_rows(taken)
        for run in range(0, n_runs, at_once):
            gather_add(
                Rows(gradient, (k * n_runs + run) * length + begin * layout.half, length),
                Elements(image, begin * layout.half),
                Elements(run_offsets, run),
                min(at_once, n_runs - run),
                pixels,
                taken,
            )


@kernel_njit
def sum_of_blocks(layout, partial, gradient):
    """Add the blocks in their order, and write the sum to ``gradient``, which has the filters' shape.

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
                    to_row, to_col = flipped(layout, row, col)
                    gradient[k, channel, to_row, to_col] = total[
                        k // layout.filters, k % layout.filters, tap // layout.run, tap % layout.run
                    ]


@kernel_njit
def add_filters_tap_by_tap(layout, image, runs, group, lists):
    """Do as `add_filters`, but add no more than a run: its padding, times infinity, would not be zero."""
    _, n_runs, n_filters, length = runs.weights.shape
    weights = runs.weights.reshape(runs.weights.size)
    for run in range(n_runs):
        for row in range(lists.counts.shape[0]):
            for col in range(lists.counts.shape[1]):
                pixel = (row * layout.stride_rows * layout.cols + col * layout.stride_cols) * layout.channels
                first = pixel + runs.offsets[run]
                for i in range(lists.counts[row, col]):
                    weight = (group * n_runs + run) * n_filters * length + lists.offsets[row, col, i]
                    factor = lists.factors[row, col, i]
                    for tap in range(layout.run):
                        image[first + tap] += factor * weights[weight + tap]


@exact_njit
def add_filters(memory, layout, image, runs, group, lists):
    """Add to the pixels under each output position the runs of a group's filters, times their gradients.

    ``runs`` are `FilterRuns`, ``lists`` `FilterLists`. All gradients are finite.
    """
    _, n_runs, n_filters, length = runs.weights.shape
    out_rows, out_cols, room = lists.offsets.shape
    halves = length // layout.half
    one_row = zeros(memory, 1, np.int32)
    # The loop over runs is the outermost: a run's taps, of all filters, stay in the first-level cache.
    for run in range(n_runs):
        for row in range(out_rows):
            for col in range(out_cols):
                pixel = (row * layout.stride_rows * layout.cols + col * layout.stride_cols) * layout.channels
                for begin in range(0, halves, GATHER_HALVES):
                    first_weight = (group * n_runs + run) * n_filters * length + begin * layout.half
                    position = row * out_cols + col
                    gather_add(
                        Rows(image, pixel + runs.offsets[run] + begin * layout.half, 0),
                        Elements(runs.weights, first_weight),
                        Elements(one_row, 0),
                        1,
                        Pieces(lists.offsets, lists.factors, position * room, lists.counts[row, col]),
                        min(GATHER_HALVES, halves - begin),
                    )


@parallel(
    lambda real: (
        CONV_LAYOUT, real[:, :, :, ::1], real[:, :, :, ::1], types.int64[::1], real[:, :, :, :, ::1]
    ),
)  # fmt: skip
def filters_gradient_block(memory, block, blocks, layout, input, output_gradient, offsets, partial):
    """Sum the filters' gradient over a block of images into ``partial[block]``."""
    channels, n_filters = layout.channels, layout.filters
    room = layout.out_rows * layout.out_cols + 1
    image = empty_image(memory, layout, partial.shape[4], input)
    run_offsets = offsets_of_runs(memory, layout, offsets)
    pixels, factors = empty(memory, room, np.int64), empty(memory, room, input)
    begin, end = block_of(block, blocks, len(input))
    for b in range(begin, end):
        for group in range(layout.groups):
            load_image(layout, input[b, group * channels : (group + 1) * channels], image)
            # Zero times infinity or NaN is not zero.
            every = not all_finite(image)
            for k in range(n_filters):
                count = 0
                for row in range(layout.out_rows):
                    first = row * layout.stride_rows * layout.cols * channels
                    for col in range(layout.out_cols):
                        factor = output_gradient[b, group * n_filters + k, row, col]
                        # Each position is written, and the next one overwrites it unless it is counted: there
                        # is no branch to mispredict.
                        pixels[count] = first + col * layout.stride_cols * channels
                        factors[count] = factor
                        count += every | (factor != 0)
                pieces = Pieces(pixels, factors, 0, count)
                add_pixels(layout, partial[block, group], k, image, run_offsets, pieces)


@parallel(
    lambda real: (
        CONV_LAYOUT, real[:, :, :, ::1], real[:, :, :, ::1], types.int64[::1], real[:, :, :, :, ::1]
    ),
)  # fmt: skip
def dense_filters_gradient_block(memory, block, blocks, layout, input, output_gradient, offsets, partial):
    """Do as `filters_gradient_block` with all positions: a product of pixels and gradients, tile by tile."""
    channels, n_filters, run_length = layout.channels, layout.filters, layout.run
    positions, width = layout.out_rows * layout.out_cols, in_halves(n_filters, layout.half) * layout.half
    n_runs, room = partial.shape[3], padded_positions(run_length)
    n_taps = n_runs * room
    image, pixels = empty_image(memory, layout, TILE_COLUMNS, input), empty(memory, positions, np.int64)
    gradients = zeros(memory, positions * width, input)
    sums = zeros(memory, layout.groups * width * n_taps, input)
    # Filters of one pixel read the input as it is: neighbouring taps then are a map apart.
    planar = is_pointwise(layout, input) and channels % TILE_COLUMNS == 0
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
            maps = (b * layout.groups + group) * n_filters
            # Each block of filters by itself, as (positions, filters).
            for filter_block in range(filter_blocks(layout, width)):
                lane, halves = filters_of_block(layout, width, filter_block)
                lanes = halves * layout.half
                of_block = Rows(output_gradient, (maps + lane) * positions, positions)
                n_maps = min(lanes, n_filters - lane)
                transpose(Rows(gradients, lane * positions, lanes), of_block, n_maps, positions)
            # The sums of a run stay in the second-level cache; positions and filters are taken a few at a
            # time, so that their gradients stay in the first-level cache.
            for run in range(n_runs):
                for filter_block in range(filter_blocks(layout, width)):
                    lane, halves = filters_of_block(layout, width, filter_block)
                    lanes = halves * layout.half
                    for first in range(0, positions, CHUNK_POSITIONS):
                        chunk = pixels[first : min(first + CHUNK_POSITIONS, positions)]
                        for tap in range(0, run_length, TILE_COLUMNS):
                            first_tap = origin + offsets[run * run_length] + tap * tap_step
                            at = (group * width + lane) * n_taps + (run * room + tap) * lanes
                            convolve_tile(
                                Rows(sums, at, lanes),
                                Rows(source, first_tap, tap_step),
                                Rows(gradients, lane * positions + first * lanes, lanes),
                                chunk,
                                halves,
                                True,
                            )
    for group in range(layout.groups):
        for filter_block in range(filter_blocks(layout, width)):
            lane, halves = filters_of_block(layout, width, filter_block)
            lanes = halves * layout.half
            for run in range(n_runs):
                for tap in range(run_length):
                    at = (group * width + lane) * n_taps + (run * room + tap) * lanes
                    for k in range(lane, min(lane + lanes, n_filters)):
                        partial[block, group, k, run, tap] = sums[at + k - lane]


@parallel(
    lambda real: (
        CONV_LAYOUT, real[:, :, :, ::1], real[:, :, :, ::1], types.int64[::1], real[:, :, :, :, ::1]
    ),
)  # fmt: skip
def maps_gradient_block(memory, block, blocks, layout, input, output_gradient, offsets, partial):
    """Do as `filters_gradient_block` along rows, for groups of one channel and few filters without stride."""
    image, sums = empty_image(memory, layout, 0, input), zeros(memory, len(offsets), input)
    begin, end = block_of(block, blocks, len(input))
    for b in range(begin, end):
        for group in range(layout.groups):
            load_image(layout, input[b, group : group + 1], image)
            for k in range(layout.filters):
                first = ((b * layout.groups + group) * layout.filters + k) * layout.out_rows * layout.out_cols
                sums[:] = 0
                for tap in range(0, len(offsets), SHIFTS):
                    add_inner_rows(
                        Elements(sums, tap),
                        Rows(output_gradient, first, layout.out_cols),
                        Rows(image, 0, layout.cols),
                        Elements(offsets, tap),
                        layout.out_rows,
                        layout.out_cols,
                        min(SHIFTS, len(offsets) - tap),
                    )
                for tap in range(len(offsets)):
                    partial[block, group, k, tap // layout.run, tap % layout.run] += sums[tap]


@parallel(
    lambda real: (CONV_LAYOUT, filter_runs_type(real), real[:, :, :, ::1], real[:, :, :, ::1]),
)
def input_gradient_block(memory, block, blocks, layout, runs, output_gradient, gradient):
    """Compute the gradient of a block of images.

    Filters are left out where the output's gradient is zero, if all weights are finite.
    """
    channels, n_filters, every = layout.channels, layout.filters, not runs.finite
    length = runs.weights.shape[3]
    image = empty_image(memory, layout, length, runs.weights)
    lists = empty_lists(memory, (layout.out_rows, layout.out_cols, n_filters + 1), runs.weights)
    begin, end = block_of(block, blocks, len(gradient))
    for b in range(begin, end):
        for group in range(layout.groups):
            image[:] = 0
            lists.counts[:] = 0
            for k in range(n_filters):
                for row in range(layout.out_rows):
                    for col in range(layout.out_cols):
                        factor = output_gradient[b, group * n_filters + k, row, col]
                        count = lists.counts[row, col]
                        lists.offsets[row, col, count] = k * length
                        lists.factors[row, col, count] = factor
                        lists.counts[row, col] = count + (every | (factor != 0))
            maps = output_gradient[b, group * n_filters : (group + 1) * n_filters]
            if all_finite(maps.reshape(maps.size)):
                add_filters(memory, layout, image, runs, group, lists)
            else:
                add_filters_tap_by_tap(layout, image, runs, group, lists)
            store_image(layout, image, gradient[b, group * channels : (group + 1) * channels])


@kernel_njit
def empty_lists(memory, shape, like):
    """Return `FilterLists` for a ``shape`` of (rows, cols, filters) with all values yet to be set."""
    offsets, factors = empty(memory, shape, np.int32), empty(memory, shape, like)
    return FilterLists(offsets, factors, empty(memory, shape[:2], np.int32))


@kernel_njit
def check_gradient(layout, input, filters, output_gradient):
    """Raise ValueError unless the gradient has the output's shape."""
    if output_gradient.shape != (len(input), len(filters), layout.out_rows, layout.out_cols):
        raise ValueError("output_gradient does not have the output's shape", output_gradient.shape)


@kernel_njit
def check_filters(layout, filters):
    """Raise ValueError if the filters have more elements than the offsets in `FilterLists` can count."""
    if layout.filters * in_halves(layout.run, layout.half) * layout.half > MAX_LISTED:
        raise ValueError("filters has too many elements for the input's gradient", filters.shape)


@kernel_njit
def zero_partial(memory, layout, filters):
    """Return zeros for the sums of all blocks: (blocks, groups, filters, runs, taps of a run)."""
    n_taps = filters.shape[1] * filters.shape[2] * filters.shape[3]
    n_runs = n_taps // layout.run if layout.run else 0
    length = in_halves(layout.run, layout.half) * layout.half
    return zeros(memory, (BLOCKS, layout.groups, layout.filters, n_runs, length), filters)


@kernel_njit
def is_dense(output_gradient):
    """Tell whether most of the first image's gradient is not zero; the other images will be alike."""
    if output_gradient.size == 0:
        return False
    count = 0
    for gradient in output_gradient[0].flat:
        count += gradient != 0
    return 2 * count > output_gradient[0].size


@parallel(
    whole_arguments,
    uses=(filters_gradient_block, dense_filters_gradient_block, maps_gradient_block),
)
def filters_gradient(memory, block, blocks, layout, input, output_gradient, gradient):
    """Compute `Conv2dGradFilters` in a single block, so that it is compiled once, not for each Op."""
    partial, offsets = zero_partial(memory, layout, gradient), tap_offsets(memory, layout)
    arrays = contiguous(memory, input), contiguous(memory, output_gradient), offsets, partial
    dense = is_dense(output_gradient)
    if dense and suits_map_vectors(layout):
        check(maps_gradient_block(BLOCKS, layout, *arrays))
    # Few filters leave most of a tile's vectors empty.
    elif dense and 2 * layout.filters >= layout.half:
        check(dense_filters_gradient_block(BLOCKS, layout, *arrays))
    else:
        check(filters_gradient_block(BLOCKS, layout, *arrays))
    sum_of_blocks(layout, partial, gradient)


@kernel_njit
def transposed_pads(layout, input):
    """Return the padding for a convolution of the output gradient that gives the input's; unless negative."""
    rows = span_of(layout.filter_rows, layout.dilation_rows) - 1
    cols = span_of(layout.filter_cols, layout.dilation_cols) - 1
    bottom, right = layout.rows - layout.top - input.shape[2], layout.cols - layout.left - input.shape[3]
    return (rows - layout.top, rows - bottom), (cols - layout.left, cols - right)


@kernel_njit
def transposed_filters(memory, layout, filters):
    """Copy filters, swapping filters and channels within each group."""
    _, channels, rows, cols = filters.shape
    transposed = empty(memory, (layout.groups * channels, layout.filters, rows, cols), filters)
    for k in range(len(filters)):
        group, within = divmod(k, layout.filters)
        for channel in range(channels):
            for row in range(rows):
                for col in range(cols):
                    transposed[group * channels + channel, within, row, col] = filters[k, channel, row, col]
    return transposed


@parallel(whole_arguments, uses=(correlate, input_gradient_block))
def input_gradient(memory, block, blocks, layout, filters, output_gradient, gradient):
    """Compute `Conv2dGradInput` in a single block, so that it is compiled once, not for each Op."""
    pads = transposed_pads(layout, gradient)
    overlap = min(pads[0][0], pads[0][1], pads[1][0], pads[1][1]) >= 0
    # A convolution also multiplies its padding: zero times infinity or NaN is not zero.
    finite = all_finite(contiguous(memory, filters).reshape(filters.size))
    plain = layout.stride_rows == layout.stride_cols == 1 and overlap and finite
    if plain and is_dense(output_gradient):
        filters = transposed_filters(memory, layout, filters)
        dilation, flip = (layout.dilation_rows, layout.dilation_cols), not layout.flip
        layout = conv_layout_of(output_gradient, filters, pads, (1, 1), dilation, layout.groups, flip)
        check(correlate(1, layout, output_gradient, filters, gradient))
        return
    runs = filter_runs(memory, layout, filters)
    blocks = min(len(gradient), 4 * BLOCKS)
    output_gradient = contiguous(memory, output_gradient)
    check(input_gradient_block(blocks, layout, runs, output_gradient, gradient))


@register_kernel(Conv2dGradFilters, lambda op: filters_gradient)
def make_conv2d_grad_filters(op, differentiate):
    """Compile `Conv2dGradFilters`."""
    layout_of = conv_layout_function(op)

    @kernel_njit
    def conv2d_grad_filters(input, filters, output_gradient):
        layout = layout_of(input, filters)
        check_gradient(layout, input, filters, output_gradient)
        gradient = result(filters.shape, filters)
        if gradient.size:
            check(differentiate(1, layout, input, output_gradient, gradient))
        return gradient

    return conv2d_grad_filters


@register_kernel(Conv2dGradInput, lambda op: input_gradient)
def make_conv2d_grad_input(op, differentiate):
    """Compile `Conv2dGradInput`."""
    layout_of = conv_layout_function(op)

    @kernel_njit
    def conv2d_grad_input(input, filters, output_gradient):
        layout = layout_of(input, filters)
        check_gradient(layout, input, filters, output_gradient)
        check_filters(layout, filters)
        gradient = result(input.shape, filters)
        if gradient.size:
            check(differentiate(1, layout, filters, output_gradient, gradient))
        return gradient

    return conv2d_grad_input
