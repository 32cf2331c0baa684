"""Numba kernels of the gradients of convolution and max-pooling in one.

They visit only the positions of the maxima, which the mask of the forward pass gives.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.dispatch.numba.arrays import all_finite, contiguous
from deeplearning_tutorial.nnet.dispatch.numba.conv_gradients import (
    add_filters,
    add_filters_tap_by_tap,
    add_pixels,
    check_filters,
    empty_lists,
    filter_runs,
    filter_runs_type,
    offsets_of_runs,
    sum_of_blocks,
    zero_partial,
)
from deeplearning_tutorial.nnet.dispatch.numba.conv_layout import (
    BLOCKS,
    CONV_LAYOUT,
    empty_image,
    load_image,
    store_image,
    tap_offsets,
)
from deeplearning_tutorial.nnet.dispatch.numba.fused.column_sums import total_of
from deeplearning_tutorial.nnet.dispatch.numba.fused.conv_pool import (
    FEW_CHANNELS,
    empty_columns,
    find_nonzero_windows,
    mask_words,
    plain_layout_function,
)
from deeplearning_tutorial.nnet.dispatch.numba.jit import kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    check,
    parallel,
    register_kernel,
    tuple_type,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import Pieces, trailing_zeros
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, missing, result, zeros
from deeplearning_tutorial.nnet.fused.conv_pool import WORD_BITS, ConvMaxPoolGradFilters, ConvMaxPoolGradInput


class PooledGradient(NamedTuple):
    """The gradient of `ConvMaxPool`'s output, with what the gradient of the convolution's also depends on."""

    output_gradient: Any
    output: Any
    """The output, read only if tanh is fused."""
    mask: Any
    tanh: bool


class FilterSums(NamedTuple):
    """Partial sums of each block: (blocks, ...) of the filters' gradient and of the bias's."""

    filters: Any
    bias: Any


def pooled_gradient_type(maps, mask):
    """Return the type of `PooledGradient` for arrays of these types."""
    return tuple_type(PooledGradient, maps, maps, mask, types.boolean)


def contiguous_gradient_type(real):
    """Return the type of `PooledGradient` as its kernels read it."""
    return pooled_gradient_type(real[:, :, :, ::1], types.uint64[:, :, :, :, ::1])


def given_gradient_type(real):
    """Return the type of `PooledGradient` in any order in memory."""
    return pooled_gradient_type(real[:, :, :, :], types.uint64[:, :, :, :, :])


@kernel_njit
def contiguous_gradient(memory, pooled):
    """Return `PooledGradient` with its elements in C order."""
    return PooledGradient(
        contiguous(memory, pooled.output_gradient),
        contiguous(memory, pooled.output),
        contiguous(memory, pooled.mask),
        pooled.tanh,
    )


@kernel_njit
def load_gradient(pooled, b, gradient):
    """Copy image b's gradient to (filters, windows), times the derivative of tanh if that is fused."""
    output_gradient, output = pooled.output_gradient[b], pooled.output[b]
    output_gradients = output_gradient.reshape(output_gradient.size)
    outputs = output.reshape(output.size)
    gradients = gradient.reshape(gradient.size)
    # Of the arrays' type, because with an integer all of it would be computed in double precision.
    one = gradient.dtype.type(1)
    for i in range(len(output_gradients)):
        slope = one - outputs[i] * outputs[i] if pooled.tanh else one
        gradients[i] = output_gradients[i] * slope


@cache
def filters_gradient_block(window_rows, window_cols):
    """Make the kernel that sums the filters' gradient over a block of images into ``partial[block]``."""
    positions = window_rows * window_cols

    @parallel(
        lambda real: (
            CONV_LAYOUT, real[:, :, :, ::1], contiguous_gradient_type(real), types.int64[::1],
            tuple_type(FilterSums, real[:, :, :, :, ::1], types.float64[:, ::1]),
        ),
        window_rows, window_cols,
    )  # fmt: skip
    def grad_filters_block(memory, block, blocks, layout, input, pooled, offsets, sums):
        n_filters, mask = layout.filters, pooled.mask
        out_rows, out_cols = pooled.output_gradient.shape[2:]
        # Flat lists and unsigned indices, because Numba checks the sign of others.
        windows = out_rows * out_cols
        length = layout.out_rows * layout.out_cols
        room = np.uint64(length)
        image = empty_image(memory, layout, sums.filters.shape[4] + 2 * layout.half, input)
        run_offsets = offsets_of_runs(memory, layout, offsets)
        nonzero, columns = empty(memory, (out_rows, out_cols), np.bool_), empty_columns(memory, layout, input)
        gradients = empty(memory, (n_filters, windows), input)
        pixels = empty(memory, n_filters * length, np.int64)
        factors = empty(memory, n_filters * length, input)
        ends = empty(memory, n_filters, np.uint64)
        flat_gradients = gradients.reshape(gradients.size)
        begin, end = block_of(block, blocks, len(input))
        for b in range(begin, end):
            load_image(layout, input[b], image)
            load_gradient(pooled, b, gradients)
            examine = layout.channels <= FEW_CHANNELS
            # Zero times infinity or NaN is not zero: then all positions are listed, in their order.
            every = not all_finite(image)
            if every:
                for k in range(n_filters):
                    for position in range(length):
                        row, col = divmod(position, layout.out_cols)
                        pixels[k * length + position] = (row * layout.cols + col) * layout.channels
                factors[:] = 0
            for k in range(n_filters):
                total = total_of(gradients[k])
                sums.bias[block, k] += total
                examine &= np.isfinite(total)
                ends[k] = np.uint64(k) * room
            find_nonzero_windows(layout, (window_rows, window_cols), image, examine, columns, nonzero)
            for row in range(out_rows):
                for col in range(out_cols):
                    for p in range(positions if nonzero[row, col] else 0):
                        at_row, at_col = divmod(p, window_cols)
                        at_row += row * window_rows
                        at_col += col * window_cols
                        pixel = (at_row * layout.cols + at_col) * layout.channels
                        position = np.uint64(at_row * layout.out_cols + at_col)
                        for word in range(mask.shape[4]):
                            bits = mask[b, row, col, p, word]
                            while bits:
                                k = np.uint64(word * WORD_BITS) + trailing_zeros(bits)
                                bits &= bits - np.uint64(1)
                                end_of_list = k * room + position if every else ends[k]
                                pixels[end_of_list] = pixel
                                window = np.uint64(row * out_cols + col)
                                factors[end_of_list] = flat_gradients[k * np.uint64(windows) + window]
                                ends[k] = end_of_list + np.uint64(1)
            for k in range(n_filters):
                first = k * length
                count = length if every else np.int64(ends[k]) - first
                pieces = Pieces(pixels, factors, first, count)
                add_pixels(layout, sums.filters[block, 0], k, image, run_offsets, pieces)

    return grad_filters_block


@cache
def filters_gradient(window_rows, window_cols):
    """Make the kernel of `ConvMaxPoolGradFilters`, which runs as a single block."""
    run_blocks = filters_gradient_block(window_rows, window_cols)

    @parallel(
        lambda real: (
            CONV_LAYOUT, real[:, :, :, :], given_gradient_type(real), real[:, :, :, ::1], real[::1]
        ),
        window_rows, window_cols, uses=[run_blocks],
    )  # fmt: skip
    def grad_filters(memory, block, blocks, layout, input, pooled, gradient, bias_gradient):
        input, pooled = contiguous(memory, input), contiguous_gradient(memory, pooled)
        offsets = tap_offsets(memory, layout)
        bias_sums = zeros(memory, (BLOCKS, layout.filters), np.float64)
        sums = FilterSums(zero_partial(memory, layout, gradient), bias_sums)
        check(run_blocks(BLOCKS, layout, input, pooled, offsets, sums))
        sum_of_blocks(layout, sums.filters, gradient)
        for k in range(layout.filters):
            total = 0.0
            for block in range(BLOCKS):
                total += sums.bias[block, k]
            bias_gradient[k] = total

    return grad_filters


@cache
def input_gradient_block(window_rows, window_cols):
    """Make the kernel that computes the input's gradient for a block of images."""
    positions = window_rows * window_cols

    @parallel(
        lambda real: (
            CONV_LAYOUT, filter_runs_type(real), contiguous_gradient_type(real), real[:, :, :, ::1]
        ),
        window_rows, window_cols,
    )  # fmt: skip
    def grad_input_block(memory, block, blocks, layout, runs, pooled, gradient):
        n_filters, length, mask = layout.filters, runs.weights.shape[3], pooled.mask
        out_rows, out_cols = pooled.output_gradient.shape[2:]
        rows, cols = out_rows * window_rows, out_cols * window_cols
        # Zero times infinity or NaN is not zero.
        every = not runs.finite
        # Beyond the last windows all gradients are zero.
        shape = (layout.out_rows, layout.out_cols, n_filters) if every else (rows, cols, n_filters)
        image = empty_image(memory, layout, length, runs.weights)
        gradients = empty(memory, (n_filters, out_rows * out_cols), runs.weights)
        lists = empty_lists(memory, shape, runs.weights)
        if every:
            lists.counts[:] = n_filters
            for k in range(n_filters):
                lists.offsets[:, :, k] = k * length
        begin, end = block_of(block, blocks, len(gradient))
        for b in range(begin, end):
            image[:] = 0
            if every:
                lists.factors[:] = 0
            load_gradient(pooled, b, gradients)
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
                                place = k if every else np.uint64(count)
                                lists.offsets[at_row, at_col, place] = k * np.uint64(length)
                                lists.factors[at_row, at_col, place] = gradients[k, row * out_cols + col]
                                count += 1
                        if not every:
                            lists.counts[at_row, at_col] = count
            if all_finite(gradients.reshape(gradients.size)):
                add_filters(memory, layout, image, runs, 0, lists)
            else:
                add_filters_tap_by_tap(layout, image, runs, 0, lists)
            store_image(layout, image, gradient[b])

    return grad_input_block


@cache
def input_gradient(window_rows, window_cols):
    """Make the kernel of `ConvMaxPoolGradInput`, which runs as a single block."""
    run_blocks = input_gradient_block(window_rows, window_cols)

    @parallel(
        lambda real: (CONV_LAYOUT, real[:, :, :, :], given_gradient_type(real), real[:, :, :, ::1]),
        window_rows, window_cols, uses=[run_blocks],
    )  # fmt: skip
    def grad_input(memory, block, blocks, layout, filters, pooled, gradient):
        blocks, pooled = min(len(gradient), 4 * BLOCKS), contiguous_gradient(memory, pooled)
        check(run_blocks(blocks, layout, filter_runs(memory, layout, filters), pooled, gradient))

    return grad_input


@kernel_njit
def check_gradient(layout, ws, input, mask, output_gradient, output):
    """Raise ValueError unless mask, gradient and output have the output's shape."""
    rows, cols = layout.out_rows // ws[0], layout.out_cols // ws[1]
    shape = (len(input), layout.filters, rows, cols)
    if output_gradient.shape != shape:
        raise ValueError("output_gradient does not have the output's shape", output_gradient.shape, shape)
    if output.shape != shape:
        raise ValueError("output does not have the shape that follows from the input", output.shape, shape)
    if mask.shape != (len(input), rows, cols, ws[0] * ws[1], mask_words(layout.filters)):
        raise ValueError("mask does not have the output's shape", mask.shape)


def with_or_without_output(op, function):
    """Make the Op's function from ``function``, which always takes the output."""
    if op.tanh:
        return function

    @kernel_njit
    def without_output(input, filters, mask, output_gradient):
        return function(input, filters, mask, output_gradient, output_gradient)

    return without_output


@register_kernel(ConvMaxPoolGradFilters, lambda op: filters_gradient(*op.ws))
def make_conv_max_pool_grad_filters(op, differentiate):
    """Compile `ConvMaxPoolGradFilters`."""
    layout_of, ws, tanh = plain_layout_function(op), op.ws, op.tanh

    @kernel_njit
    def conv_max_pool_grad_filters(input, filters, mask, output_gradient, output):
        layout = layout_of(input, filters)
        check_gradient(layout, ws, input, mask, output_gradient, output)
        gradient, bias_gradient = result(filters.shape, filters), result(layout.filters, filters)
        if output_gradient.size == 0:
            check(missing(gradient) or missing(bias_gradient))
            gradient[...] = 0
            bias_gradient[:] = 0
            return gradient, bias_gradient
        pooled = PooledGradient(output_gradient, output, mask, tanh)
        check(differentiate(1, layout, input, pooled, gradient, bias_gradient))
        return gradient, bias_gradient

    return with_or_without_output(op, conv_max_pool_grad_filters)


@register_kernel(ConvMaxPoolGradInput, lambda op: input_gradient(*op.ws))
def make_conv_max_pool_grad_input(op, differentiate):
    """Compile `ConvMaxPoolGradInput`."""
    layout_of, ws, tanh = plain_layout_function(op), op.ws, op.tanh

    @kernel_njit
    def conv_max_pool_grad_input(input, filters, mask, output_gradient, output):
        layout = layout_of(input, filters)
        check_gradient(layout, ws, input, mask, output_gradient, output)
        check_filters(layout, filters)
        gradient = result(input.shape, filters)
        if output_gradient.size == 0:
            check(missing(gradient))
            gradient[...] = 0
            return gradient
        pooled = PooledGradient(output_gradient, output, mask, tanh)
        check(differentiate(1, layout, filters, pooled, gradient))
        return gradient

    return with_or_without_output(op, conv_max_pool_grad_input)
