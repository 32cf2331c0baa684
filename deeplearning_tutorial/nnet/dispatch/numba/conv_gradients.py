"""Numba kernels of convolution's gradients.

Where the output gradient is dense they keep a tile of sums in registers, as convolution does. Else they walk
only the positions where it is not zero; after max-pooling that is about one in as many as a window has
elements. Partial sums are added in the order of the blocks of images, so any number of threads gives bitwise
the same result.
"""

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.conv import Conv2dGradFilters, Conv2dGradInput
from deeplearning_tutorial.nnet.dispatch.numba.conv import arguments_of_whole, correlate
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
    layout_of,
    load_image,
    padded_positions,
    span_of,
    store_image,
    tap_offsets,
)
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    all_finite,
    block_of,
    check,
    contiguous,
    kernel_inline,
    kernel_njit,
    parallel,
    register_kernel,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm import tiles
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import (
    GATHER_HALVES,
    SHIFTS,
    TILE_COLUMNS,
    add_inner_rows,
    convolve_tile,
    gather_add,
)
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, result, zeros
from deeplearning_tutorial.nnet.dispatch.numba.transpose import transpose

# Positions whose gradients a tile adds at once.
CHUNK_POSITIONS = 128

# Elements of filters that the lists of `add_filters` tell apart: they are read once for each run.
MAX_LISTED = 2**31

gather_rows = kernel_njit(tiles.gather_rows)


@kernel_njit
def runs_of_weights(memory, layout, filters, flip):
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
                    from_row = rows - 1 - row if flip else row
                    from_col = cols - 1 - col if flip else col
                    run, tap = divmod((row * cols + col) * channels + channel, layout.run)
                    runs[group, run, within, tap] = filters[k, channel, from_row, from_col]
    return runs


@kernel_njit
def offsets_of_runs(memory, layout, offsets):
    """Offsets of the runs' first taps, of those of all taps."""
    step = max(1, layout.run)
    firsts = empty(memory, (len(offsets) + step - 1) // step, np.int64)
    for run in range(len(firsts)):
        firsts[run] = offsets[run * step]
    return firsts


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


@kernel_njit
def add_filters_tap_by_tap(layout, image, runs, run_offsets, offsets, factors, counts):
    """Do as `add_filters`, but add no more than a run: what pads it, times infinity, would not be zero."""
    n_runs, n_filters, length = runs.shape
    weights = runs.reshape(runs.size)
    for run in range(n_runs):
        for row in range(counts.shape[0]):
            for col in range(counts.shape[1]):
                pixel = (row * layout.stride_rows * layout.cols + col * layout.stride_cols) * layout.channels
                first = pixel + run_offsets[run]
                for i in range(counts[row, col]):
                    weight, factor = run * n_filters * length + offsets[row, col, i], factors[row, col, i]
                    for tap in range(layout.run):
                        image[first + tap] += factor * weights[weight + tap]


@kernel_inline
def add_filters(memory, layout, image, runs, run_offsets, offsets, factors, counts):
    """Add to the pixels under each output position the filters' runs there, times ``factors``.

    ``runs`` is (runs, filters, taps of a run); ``offsets`` and ``factors`` list for each (row, col) of the
    output the filters that have a gradient there, ``counts`` how many they are. All factors are finite.
    """
    n_runs, n_filters, length = runs.shape
    out_rows, out_cols, room = offsets.shape
    halves = length // layout.half
    here = zeros(memory, 1, np.int32)
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
    lambda real: (
        LAYOUT, real[:, :, :, ::1], real[:, :, :, ::1], types.int64[::1], real[:, :, :, :, ::1]
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
            # Zero times what is not finite is not zero.
            every = not all_finite(image)
            for k in range(n_filters):
                count = 0
                for row in range(layout.out_rows):
                    first = row * layout.stride_rows * layout.cols * channels
                    for col in range(layout.out_cols):
                        factor = output_gradient[b, group * n_filters + k, row, col]
                        # Each position is written down, and kept by counting it: no branch to mispredict.
                        pixels[count] = first + col * layout.stride_cols * channels
                        factors[count] = factor
                        count += every | (factor != 0)
                add_pixels(layout, partial[block, group], k, image, run_offsets, pixels, factors, 0, count)


@parallel(
    lambda real: (
        LAYOUT, real[:, :, :, ::1], real[:, :, :, ::1], types.int64[::1], real[:, :, :, :, ::1]
    ),
)  # fmt: skip
def dense_filters_gradient_block(memory, block, blocks, layout, input, output_gradient, offsets, partial):
    """Compute the same from all positions: a product of pixels and gradients, tile by tile of taps."""
    channels, n_filters, run_length = layout.channels, layout.filters, layout.run
    positions, width = layout.out_rows * layout.out_cols, in_halves(n_filters, layout.half) * layout.half
    n_runs, room = partial.shape[3], padded_positions(run_length)
    n_taps = n_runs * room
    image, pixels = empty_image(memory, layout, TILE_COLUMNS, input), empty(memory, positions, np.int64)
    gradients = zeros(memory, positions * width, input)
    sums = zeros(memory, layout.groups * width * n_taps, input)
    # Filters of one pixel need no other layout: neighbouring taps then lie a map apart.
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
                transpose(
                    gradients, lane * positions, lanes, output_gradient, (maps + lane) * positions, positions,
                    min(lanes, n_filters - lane), positions,
                )  # fmt: skip
            # The sums of a run stay in the second-level cache while so few positions and filters are taken
            # at a time that their gradients stay in the first-level one.
            for run in range(n_runs):
                for filter_block in range(filter_blocks(layout, width)):
                    lane, halves = filters_of_block(layout, width, filter_block)
                    lanes = halves * layout.half
                    for first in range(0, positions, CHUNK_POSITIONS):
                        here = pixels[first : min(first + CHUNK_POSITIONS, positions)]
                        for tap in range(0, run_length, TILE_COLUMNS):
                            first_tap = origin + offsets[run * run_length] + tap * tap_step
                            at = (group * width + lane) * n_taps + (run * room + tap) * lanes
                            convolve_tile(
                                sums, at, lanes, source, first_tap, tap_step,
                                gradients, lane * positions + first * lanes, lanes, here, halves, True,
                            )  # fmt: skip
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
        LAYOUT, real[:, :, :, ::1], real[:, :, :, ::1], types.int64[::1], real[:, :, :, :, ::1]
    ),
)  # fmt: skip
def maps_gradient_block(memory, block, blocks, layout, input, output_gradient, offsets, partial):
    """Compute the same where a group has one channel, few filters and no stride, along the rows of maps."""
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
                        sums, tap, output_gradient, first, layout.out_cols, image, 0, layout.cols,
                        offsets, tap, layout.out_rows, layout.out_cols, min(SHIFTS, len(offsets) - tap),
                    )  # fmt: skip
                for tap in range(len(offsets)):
                    partial[block, group, k, tap // layout.run, tap % layout.run] += sums[tap]


@parallel(
    lambda real: (
        LAYOUT, types.boolean, real[:, :, :, ::1], real[:, :, :, ::1], types.int64[::1], real[:, :, :, ::1]
    ),
)  # fmt: skip
def input_gradient_block(memory, block, blocks, layout, every, runs, output_gradient, offsets, gradient):
    """Compute the gradient of a block of images.

    Where the output's gradient is zero it passes over the filters, unless it is to take ``every`` one.
    """
    channels, n_filters = layout.channels, layout.filters
    length = runs.shape[3]
    shape = layout.out_rows, layout.out_cols, n_filters + 1
    image, run_offsets = empty_image(memory, layout, length, runs), offsets_of_runs(memory, layout, offsets)
    chosen, factors = empty(memory, shape, np.int32), empty(memory, shape, runs)
    counts = empty(memory, shape[:2], np.int32)
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
                        counts[row, col] = count + (every | (factor != 0))
            maps = output_gradient[b, group * n_filters : (group + 1) * n_filters]
            if all_finite(maps.reshape(maps.size)):
                add_filters(memory, layout, image, runs[group], run_offsets, chosen, factors, counts)
            else:
                add_filters_tap_by_tap(layout, image, runs[group], run_offsets, chosen, factors, counts)
            store_image(layout, image, gradient[b, group * channels : (group + 1) * channels])


@kernel_njit
def check_gradient(layout, input, filters, output_gradient):
    """Raise ValueError unless the gradient has the output's shape."""
    if output_gradient.shape != (len(input), len(filters), layout.out_rows, layout.out_cols):
        raise ValueError("output_gradient does not have the output's shape", output_gradient.shape)


@kernel_njit
def check_filters(layout, filters):
    """Raise ValueError if the filters are more than the lists of `add_filters` tell apart."""
    if layout.filters * in_halves(layout.run, layout.half) * layout.half > MAX_LISTED:
        raise ValueError("filters has too many elements for the input's gradient", filters.shape)


@kernel_njit
def empty_partial(memory, layout, filters):
    """Zeros for the sums of all blocks: (blocks, groups, filters, runs, taps of a run)."""
    n_taps = filters.shape[1] * filters.shape[2] * filters.shape[3]
    n_runs = n_taps // layout.run if layout.run else 0
    length = in_halves(layout.run, layout.half) * layout.half
    return zeros(memory, (BLOCKS, layout.groups, layout.filters, n_runs, length), filters)


@kernel_njit
def is_dense(output_gradient):
    """Tell whether most of the first image's gradient is not zero; the others will be alike."""
    if output_gradient.size == 0:
        return False
    count = 0
    for gradient in output_gradient[0].flat:
        count += gradient != 0
    return 2 * count > output_gradient[0].size


@parallel(
    arguments_of_whole,
    uses=(filters_gradient_block, dense_filters_gradient_block, maps_gradient_block),
)
def filters_gradient(memory, block, blocks, layout, input, output_gradient, dilation, flip, gradient):
    """Compute `Conv2dGradFilters`, to be called as a single block: it is compiled once, not for each Op."""
    partial = empty_partial(memory, layout, gradient)
    offsets = tap_offsets(memory, layout, gradient, dilation)
    arrays = contiguous(memory, input), contiguous(memory, output_gradient), offsets, partial
    dense = is_dense(output_gradient)
    if dense and goes_along_maps(layout):
        check(maps_gradient_block(BLOCKS, layout, *arrays))
    # A few filters leave most of a tile's vectors empty.
    elif dense and 2 * layout.filters >= layout.half:
        check(dense_filters_gradient_block(BLOCKS, layout, *arrays))
    else:
        check(filters_gradient_block(BLOCKS, layout, *arrays))
    sum_of_blocks(layout, partial, flip, gradient)


@kernel_njit
def transposed_pads(layout, input, filters, dilation):
    """Return the padding with which the output gradient, convolved, gives the input's; usable from 0 on."""
    rows, cols = span_of(filters.shape[2], dilation[0]) - 1, span_of(filters.shape[3], dilation[1]) - 1
    bottom, right = layout.rows - layout.top - input.shape[2], layout.cols - layout.left - input.shape[3]
    return (rows - layout.top, rows - bottom), (cols - layout.left, cols - right)


@kernel_njit
def transposed_filters(memory, layout, filters):
    """Copy filters with those and channels swapped within each group."""
    _, channels, rows, cols = filters.shape
    transposed = empty(memory, (layout.groups * channels, layout.filters, rows, cols), filters)
    for k in range(len(filters)):
        group, within = divmod(k, layout.filters)
        for channel in range(channels):
            for row in range(rows):
                for col in range(cols):
                    transposed[group * channels + channel, within, row, col] = filters[k, channel, row, col]
    return transposed


@parallel(arguments_of_whole, uses=(correlate, input_gradient_block))
def input_gradient(memory, block, blocks, layout, filters, output_gradient, dilation, flip, gradient):
    """Compute `Conv2dGradInput`, to be called as a single block: it is compiled once, not for each Op."""
    pads = transposed_pads(layout, gradient, filters, dilation)
    overlap = min(pads[0][0], pads[0][1], pads[1][0], pads[1][1]) >= 0
    # In a convolution the padding counts, too: zero times what is not finite.
    every = not all_finite(contiguous(memory, filters).reshape(filters.size))
    plain = layout.stride_rows == layout.stride_cols == 1 and overlap and not every
    if plain and is_dense(output_gradient):
        filters = transposed_filters(memory, layout, filters)
        layout = layout_of(output_gradient, filters, pads, (1, 1), dilation, layout.groups)
        check(correlate(1, layout, output_gradient, filters, dilation, not flip, gradient))
        return
    runs = runs_of_weights(memory, layout, filters, flip)
    offsets = tap_offsets(memory, layout, filters, dilation)
    blocks = min(len(gradient), 4 * BLOCKS)
    output_gradient = contiguous(memory, output_gradient)
    check(input_gradient_block(blocks, layout, every, runs, output_gradient, offsets, gradient))


@register_kernel(Conv2dGradFilters)
def make_conv2d_grad_filters(op, node, **kwargs):
    """Compile `Conv2dGradFilters`."""
    filters_gradient.load(node.outputs[0].dtype)
    lay_out, dilation, flip = layout_function(op), op.filter_dilation, op.filter_flip

    @kernel_njit
    def conv2d_grad_filters(input, filters, output_gradient):
        layout = lay_out(input, filters)
        check_gradient(layout, input, filters, output_gradient)
        gradient = result(filters.shape, filters)
        if gradient.size:
            check(filters_gradient(1, layout, input, output_gradient, dilation, flip, gradient))
        return gradient

    return conv2d_grad_filters


@register_kernel(Conv2dGradInput)
def make_conv2d_grad_input(op, node, **kwargs):
    """Compile `Conv2dGradInput`."""
    input_gradient.load(node.outputs[0].dtype)
    lay_out, dilation, flip = layout_function(op), op.filter_dilation, op.filter_flip

    @kernel_njit
    def conv2d_grad_input(input, filters, output_gradient):
        layout = lay_out(input, filters)
        check_gradient(layout, input, filters, output_gradient)
        check_filters(layout, filters)
        gradient = result(input.shape, filters)
        if gradient.size:
            check(input_gradient(1, layout, filters, output_gradient, dilation, flip, gradient))
        return gradient

    return conv2d_grad_input
