"""Numba kernels of the gradients of convolution and max-pooling in one.

They visit only the positions of the maxima, which the mask of the forward pass tells.
"""

from functools import cache, partial

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.dispatch.numba.conv_gradients import (
    add_filters,
    add_filters_tap_by_tap,
    add_pixels,
    check_filters,
    empty_partial,
    offsets_of_runs,
    runs_of_weights,
    sum_of_blocks,
)
from deeplearning_tutorial.nnet.dispatch.numba.conv_layout import (
    BLOCKS,
    LAYOUT,
    empty_image,
    load_image,
    store_image,
    tap_offsets,
)
from deeplearning_tutorial.nnet.dispatch.numba.fused.conv_pool import (
    FEW_CHANNELS,
    empty_columns,
    find_live_windows,
    mask_words,
    plain_layout,
)
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    all_finite,
    block_of,
    check,
    contiguous,
    kernel_njit,
    parallel,
    register_kernel,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import trailing_zeros
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, missing, result, zeros
from deeplearning_tutorial.nnet.fused.conv_pool import WORD_BITS, ConvMaxPoolGradFilters, ConvMaxPoolGradInput


# In whatever order is fastest on the machine, but in the same one each time.
@partial(kernel_njit, fastmath={"reassoc"})
def total_of(values):
    """Sum in double precision."""
    total = 0.0
    # Numba does not make vectors of ``for value in values``.
    for i in range(len(values)):
        total += values[i]
    return total


@kernel_njit
def load_gradient(tanh, output_gradient, output, pooled_gradient):
    """Copy (filters, rows, cols) to (filters, windows), through the derivative of tanh where it joined."""
    gradients = output_gradient.reshape(output_gradient.size)
    outputs = output.reshape(output.size)
    pooled_gradients = pooled_gradient.reshape(pooled_gradient.size)
    # Of the arrays' type, for an integer makes all of it double precision.
    one = pooled_gradient.dtype.type(1)
    for i in range(len(gradients)):
        slope = one - outputs[i] * outputs[i] if tanh else one
        pooled_gradients[i] = gradients[i] * slope


@cache
def filters_gradient_block(window_rows, window_cols):
    """Make the kernel that sums the filters' gradient over a block of images into ``partial[block]``."""
    positions = window_rows * window_cols

    @parallel(
        lambda real: (
            LAYOUT, types.UniTuple(types.int64, 2), types.boolean, real[:, :, :, ::1],
            types.uint64[:, :, :, :, ::1], real[:, :, :, ::1], real[:, :, :, ::1], types.int64[::1],
            real[:, :, :, :, ::1], types.float64[:, ::1],
        ),
        window_rows, window_cols,
    )  # fmt: skip
    def grad_filters_block(
        memory, block, blocks, layout, filter_shape, tanh, input, mask, output_gradient, output, offsets,
        partial, partial_bias,
    ):  # fmt: skip
        n_filters = layout.filters
        out_rows, out_cols = output_gradient.shape[2:]
        # Flat lists, and unsigned indices, which Numba need not check for their sign.
        windows = out_rows * out_cols
        length = layout.out_rows * layout.out_cols
        room = np.uint64(length)
        image = empty_image(memory, layout, partial.shape[4] + 2 * layout.half, input)
        run_offsets = offsets_of_runs(memory, layout, offsets)
        live, columns = empty(memory, (out_rows, out_cols), np.bool_), empty_columns(memory, layout, input)
        gradients = empty(memory, (n_filters, windows), input)
        pixels = empty(memory, n_filters * length, np.int64)
        factors = empty(memory, n_filters * length, input)
        ends = empty(memory, n_filters, np.uint64)
        flat_gradients = gradients.reshape(gradients.size)
        begin, end = block_of(block, blocks, len(input))
        for b in range(begin, end):
            load_image(layout, input[b], image)
            load_gradient(tanh, output_gradient[b], output[b], gradients)
            skip = layout.channels <= FEW_CHANNELS
            # Zero times what is not finite is not zero: then all positions are listed, in their order.
            every = not all_finite(image)
            if every:
                for k in range(n_filters):
                    for position in range(length):
                        row, col = divmod(position, layout.out_cols)
                        pixels[k * length + position] = (row * layout.cols + col) * layout.channels
                factors[:] = 0
            for k in range(n_filters):
                total = total_of(gradients[k])
                partial_bias[block, k] += total
                skip &= np.isfinite(total)
                ends[k] = np.uint64(k) * room
            find_live_windows(layout, *filter_shape, window_rows, window_cols, image, skip, columns, live)
            for row in range(out_rows):
                for col in range(out_cols):
                    for p in range(positions if live[row, col] else 0):
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
                add_pixels(layout, partial[block, 0], k, image, run_offsets, pixels, factors, first, count)

    return grad_filters_block


@cache
def filters_gradient(window_rows, window_cols):
    """Make the kernel of `ConvMaxPoolGradFilters`, to be called as a single block."""
    run_blocks = filters_gradient_block(window_rows, window_cols)

    @parallel(
        lambda real: (
            LAYOUT, types.boolean, types.boolean, real[:, :, :, :], types.uint64[:, :, :, :, :],
            real[:, :, :, :], real[:, :, :, :], real[:, :, :, ::1], real[::1],
        ),
        window_rows, window_cols, uses=[run_blocks],
    )  # fmt: skip
    def grad_filters(
        memory, block, blocks, layout, flip, tanh, input, mask, output_gradient, output, gradient,
        bias_gradient,
    ):  # fmt: skip
        partial = empty_partial(memory, layout, gradient)
        offsets = tap_offsets(memory, layout, gradient, (1, 1))
        partial_bias = zeros(memory, (BLOCKS, layout.filters), np.float64)
        check(
            run_blocks(
                BLOCKS, layout, gradient.shape[2:], tanh, contiguous(memory, input),
                contiguous(memory, mask), contiguous(memory, output_gradient), contiguous(memory, output),
                offsets, partial, partial_bias,
            )
        )  # fmt: skip
        sum_of_blocks(layout, partial, flip, gradient)
        for k in range(layout.filters):
            total = 0.0
            for block in range(BLOCKS):
                total += partial_bias[block, k]
            bias_gradient[k] = total

    return grad_filters


@cache
def input_gradient_block(window_rows, window_cols):
    """Make the kernel that computes the input's gradient for a block of images."""
    positions = window_rows * window_cols

    @parallel(
        lambda real: (
            LAYOUT, types.boolean, types.boolean, real[:, :, :, ::1], types.uint64[:, :, :, :, ::1],
            real[:, :, :, ::1], real[:, :, :, ::1], types.int64[::1], real[:, :, :, ::1],
        ),
        window_rows, window_cols,
    )  # fmt: skip
    def grad_input_block(
        memory, block, blocks, layout, tanh, every, runs, mask, output_gradient, output, offsets, gradient
    ):
        n_filters = layout.filters
        out_rows, out_cols = output_gradient.shape[2:]
        length = runs.shape[3]
        rows, cols = out_rows * window_rows, out_cols * window_cols
        # Beyond the last windows all gradients are zero.
        shape = (layout.out_rows, layout.out_cols, n_filters) if every else (rows, cols, n_filters)
        image = empty_image(memory, layout, length, runs)
        run_offsets = offsets_of_runs(memory, layout, offsets)
        gradients = empty(memory, (n_filters, out_rows * out_cols), runs)
        chosen, factors = empty(memory, shape, np.int32), empty(memory, shape, runs)
        counts = empty(memory, shape[:2], np.int32)
        if every:
            counts[:] = n_filters
            for k in range(n_filters):
                chosen[:, :, k] = k * length
        begin, end = block_of(block, blocks, len(gradient))
        for b in range(begin, end):
            image[:] = 0
            if every:
                factors[:] = 0
            load_gradient(tanh, output_gradient[b], output[b], gradients)
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
                                chosen[at_row, at_col, place] = k * np.uint64(length)
                                factors[at_row, at_col, place] = gradients[k, row * out_cols + col]
                                count += 1
                        if not every:
                            counts[at_row, at_col] = count
            if all_finite(gradients.reshape(gradients.size)):
                add_filters(memory, layout, image, runs[0], run_offsets, chosen, factors, counts)
            else:
                add_filters_tap_by_tap(layout, image, runs[0], run_offsets, chosen, factors, counts)
            store_image(layout, image, gradient[b])

    return grad_input_block


@cache
def input_gradient(window_rows, window_cols):
    """Make the kernel of `ConvMaxPoolGradInput`, to be called as a single block."""
    run_blocks = input_gradient_block(window_rows, window_cols)

    @parallel(
        lambda real: (
            LAYOUT, types.boolean, types.boolean, real[:, :, :, :], types.uint64[:, :, :, :, :],
            real[:, :, :, :], real[:, :, :, :], real[:, :, :, ::1],
        ),
        window_rows, window_cols, uses=[run_blocks],
    )  # fmt: skip
    def grad_input(
        memory, block, blocks, layout, flip, tanh, filters, mask, output_gradient, output, gradient
    ):
        runs = runs_of_weights(memory, layout, filters, flip)
        offsets = tap_offsets(memory, layout, filters, (1, 1))
        # Zero times what is not finite is not zero.
        every = not all_finite(runs.reshape(runs.size))
        check(
            run_blocks(
                min(len(gradient), 4 * BLOCKS), layout, tanh, every, runs, contiguous(memory, mask),
                contiguous(memory, output_gradient), contiguous(memory, output), offsets, gradient,
            )
        )  # fmt: skip

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


def with_or_without_output(op, kernel):
    """Make the Op's function of ``kernel``, which always takes the output."""
    if op.tanh:
        return kernel

    @kernel_njit
    def without_output(input, filters, mask, output_gradient):
        return kernel(input, filters, mask, output_gradient, output_gradient)

    return without_output


@register_kernel(ConvMaxPoolGradFilters)
def make_conv_max_pool_grad_filters(op, node, **kwargs):
    """Compile `ConvMaxPoolGradFilters`."""
    flip, ws, tanh = op.filter_flip, op.ws, op.tanh
    differentiate = filters_gradient(*ws)
    differentiate.load(node.outputs[0].dtype)

    @kernel_njit
    def conv_max_pool_grad_filters(input, filters, mask, output_gradient, output):
        layout = plain_layout(input, filters)
        check_gradient(layout, ws, input, mask, output_gradient, output)
        gradient, bias_gradient = result(filters.shape, filters), result(layout.filters, filters)
        if output_gradient.size == 0:
            check(missing(gradient) or missing(bias_gradient))
            gradient[...] = 0
            bias_gradient[:] = 0
            return gradient, bias_gradient
        check(
            differentiate(
                1, layout, flip, tanh, input, mask, output_gradient, output, gradient, bias_gradient
            )
        )
        return gradient, bias_gradient

    return with_or_without_output(op, conv_max_pool_grad_filters)


@register_kernel(ConvMaxPoolGradInput)
def make_conv_max_pool_grad_input(op, node, **kwargs):
    """Compile `ConvMaxPoolGradInput`."""
    flip, ws, tanh = op.filter_flip, op.ws, op.tanh
    differentiate = input_gradient(*ws)
    differentiate.load(node.outputs[0].dtype)

    @kernel_njit
    def conv_max_pool_grad_input(input, filters, mask, output_gradient, output):
        layout = plain_layout(input, filters)
        check_gradient(layout, ws, input, mask, output_gradient, output)
        check_filters(layout, filters)
        gradient = result(input.shape, filters)
        if output_gradient.size == 0:
            check(missing(gradient))
            gradient[...] = 0
            return gradient
        check(differentiate(1, layout, flip, tanh, filters, mask, output_gradient, output, gradient))
        return gradient

    return with_or_without_output(op, conv_max_pool_grad_input)
