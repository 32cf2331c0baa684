"""Numba kernels of pooling and its gradients, for every mode, stride and padding.

The leading axes are one: ``(maps, rows, cols)``. Each kernel says only what it does with one row of windows.
It works on all columns side by side, as if a window started at each of them, in vectors; where the stride
leaves only some of the windows, that is still faster than one window after the other.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    keep,
    kernel_njit,
    parallel,
    register_kernel,
    reported,
    unowned,
)
from deeplearning_tutorial.nnet.dispatch.numba.simd import (
    copy_elements,
    vector_add,
    vector_add_where_equal,
    vector_divide,
    vector_maximum,
)
from deeplearning_tutorial.nnet.pool import (
    AveragePoolGrad,
    MaxPoolGrad,
    MaxPoolGradGrad,
    Pool,
    pool_output_length,
)

# PyTensor's cache of compiled functions does not see an edited kernel: count up whenever one changes.
CACHE_VERSION = 10

BLOCKS = 64

output_length = kernel_njit(pool_output_length)


class Layout(NamedTuple):
    """Sizes of the maps and of the windows on them."""

    maps: int
    rows: int
    cols: int
    out_rows: int
    out_cols: int
    window_rows: int
    window_cols: int
    stride_rows: int
    stride_cols: int
    pad_rows: int
    pad_cols: int
    divisor: int
    """What a window's sum is divided by; 0 stands for the number of elements that are not padding."""


LAYOUT = types.NamedUniTuple(types.int64, len(Layout._fields), Layout)


@kernel_njit
def layout_of(x, ws, stride, pad, ignore_border, divide, count_padding):
    """Return the layout; raise where window, stride and padding do not go together."""
    if len(ws) != 2 or len(stride) != 2 or len(pad) != 2:
        raise ValueError("ws, stride and pad take two elements each", len(ws), len(stride), len(pad))
    if min(ws[0], ws[1], stride[0], stride[1]) < 1:
        raise ValueError("ws and stride must be 1 or more", reported(ws), reported(stride))
    if min(pad[0], pad[1]) < 0:
        raise ValueError("pad must be 0 or more", reported(pad))
    if max(pad[0], pad[1]) > 0 and not ignore_border:
        raise NotImplementedError("pad needs ignore_border=True", reported(pad))
    if pad[0] >= ws[0] or pad[1] >= ws[1]:
        raise NotImplementedError("pad must be less than ws", reported(pad), reported(ws))
    rows, cols = x.shape[-2:]
    maps = 1
    for axis in range(x.ndim - 2):
        maps *= x.shape[axis]
    divisor = 1
    if divide:
        divisor = ws[0] * ws[1] if count_padding and ignore_border else 0
    return Layout(
        maps,
        rows,
        cols,
        output_length(rows, ws[0], stride[0], pad[0], ignore_border),
        output_length(cols, ws[1], stride[1], pad[1], ignore_border),
        ws[0],
        ws[1],
        stride[0],
        stride[1],
        pad[0],
        pad[1],
        divisor,
    )


@kernel_njit
def window_starts(layout):
    """Columns of the padded input, from the first window's to the last one's, where a window could start."""
    return (layout.out_cols - 1) * layout.stride_cols + 1 if layout.out_cols else 0


@kernel_njit
def fill_divisors(layout, rows, divisors):
    """Note what the sum of a window of ``rows`` rows is divided by, for each column where it could start."""
    for start in range(len(divisors)):
        left = start - layout.pad_cols
        inside = min(left + layout.window_cols, layout.cols) - max(left, 0)
        divisors[start] = layout.divisor if layout.divisor else inside * rows


@cache
def over_rows_of_windows(visit, n_arrays, accumulates):
    """Make a kernel that visits each row of windows.

    It calls ``visit(layout, i, row, top, bottom, line, result, divisors, *arrays)``, where the windows of row
    ``row`` of map ``i`` span ``[top, bottom)``, without padding. ``line`` and ``result`` are scratch, long
    enough for a row of the padded input. A kernel that ``accumulates`` finds zeros in the last array.
    """

    @parallel(lambda real: (LAYOUT, *[real[:, :, ::1]] * n_arrays), CACHE_VERSION, visit.__name__)
    def rows_block(block, blocks, layout, *arrays):
        starts, dtype = window_starts(layout), arrays[0].dtype
        length = max(starts + layout.window_cols - 1, layout.cols)
        scratch = np.empty(length, dtype), np.empty(length, dtype), np.empty(starts, dtype)
        line, result, divisors = unowned(scratch)
        fill_divisors(layout, layout.window_rows, divisors)
        begin, end = block_of(block, blocks, layout.maps)
        for i in range(begin, end):
            if accumulates:
                fill(arrays[-1][i].reshape(layout.rows * layout.cols), 0)
            # Without columns of windows there is nothing to visit.
            for row in range(layout.out_rows if starts else 0):
                top = row * layout.stride_rows - layout.pad_rows
                bottom = min(top + layout.window_rows, layout.rows)
                visit(layout, i, row, max(top, 0), bottom, line, result, divisors, *arrays)
        keep(scratch)

    return rows_block


@kernel_njit
def fill(values, value):
    """Set all elements."""
    for i in range(len(values)):
        values[i] = value


def folding(combine, nothing):
    """Make ``fold(layout, maps, i, top, bottom, line, result)``, which combines the elements of each window.

    It takes all windows that could start in this row; ``nothing`` combined with an element is the element.
    """

    @kernel_njit
    def fold(layout, maps, i, top, bottom, line, result):
        starts = window_starts(layout)
        fill(line, nothing)
        cols = min(layout.cols, starts + layout.window_cols - 1 - layout.pad_cols)
        for r in range(top, bottom):
            combine(line, layout.pad_cols, maps, (i * layout.rows + r) * layout.cols, cols)
        copy_elements(result, 0, line, 0, starts)
        for offset in range(1, layout.window_cols):
            combine(result, 0, line, offset, starts)

    return fold


fold_maximum, fold_sum = folding(vector_maximum, -np.inf), folding(vector_add, 0)


@kernel_njit
def pick(layout, result, row):
    """Take the windows that the stride leaves."""
    for col in range(layout.out_cols):
        row[col] = result[col * layout.stride_cols]


@kernel_njit
def place(layout, row, line, elsewhere):
    """Put each window's value where the window starts."""
    fill(line, elsewhere)
    for col in range(layout.out_cols):
        line[col * layout.stride_cols] = row[col]


@kernel_njit
def columns_under(layout, offset):
    """Columns of the input that can be element ``offset`` of a window's row, from and up to."""
    first = max(0, offset - layout.pad_cols)
    return first, max(first, min(layout.cols, window_starts(layout) + offset - layout.pad_cols))


@kernel_njit
def divide(layout, top, bottom, values, divisors):
    """Divide what belongs to windows of ``[top, bottom)``; ``divisors`` are those of whole windows."""
    at_border = bottom - top < layout.window_rows
    if at_border:
        fill_divisors(layout, bottom - top, divisors)
    vector_divide(values, 0, divisors, 0, len(divisors))
    if at_border:
        fill_divisors(layout, layout.window_rows, divisors)


@kernel_njit
def maximum(layout, i, row, top, bottom, line, result, divisors, x, out):
    """`Pool` in mode 'max'."""
    fold_maximum(layout, x, i, top, bottom, line, result)
    pick(layout, result, out[i, row])


@kernel_njit
def average(layout, i, row, top, bottom, line, result, divisors, x, out):
    """`Pool` in the other modes."""
    fold_sum(layout, x, i, top, bottom, line, result)
    divide(layout, top, bottom, result, divisors)
    pick(layout, result, out[i, row])


@kernel_njit
def spread_average(layout, i, row, top, bottom, line, result, divisors, output_gradient, gradient):
    """`AveragePoolGrad`."""
    place(layout, output_gradient[i, row], line, 0)
    divide(layout, top, bottom, line, divisors)
    fill(result, 0)
    for offset in range(layout.window_cols):
        first, end = columns_under(layout, offset)
        vector_add(result, first, line, first + layout.pad_cols - offset, end - first)
    for r in range(top, bottom):
        vector_add(gradient, (i * layout.rows + r) * layout.cols, result, 0, layout.cols)


@kernel_njit
def give_to_maxima(
    layout, i, row, top, bottom, line, result, divisors, x, maxima, output_gradient, gradient
):  # fmt: skip
    """`MaxPoolGrad`."""
    place(layout, maxima[i, row], line, np.nan)
    place(layout, output_gradient[i, row], result, 0)
    for r in range(top, bottom):
        for offset in range(layout.window_cols):
            first, end = columns_under(layout, offset)
            start, pixel = first + layout.pad_cols - offset, (i * layout.rows + r) * layout.cols + first
            vector_add_where_equal(gradient, pixel, result, start, x, pixel, line, start, end - first)


@kernel_njit
def take_from_maxima(
    layout, i, row, top, bottom, line, result, divisors, x, maxima, cotangent, out
):  # fmt: skip
    """`MaxPoolGradGrad`."""
    place(layout, maxima[i, row], line, np.nan)
    fill(result, 0)
    for r in range(top, bottom):
        for offset in range(layout.window_cols):
            first, end = columns_under(layout, offset)
            start, pixel = first + layout.pad_cols - offset, (i * layout.rows + r) * layout.cols + first
            vector_add_where_equal(result, start, cotangent, pixel, x, pixel, line, start, end - first)
    pick(layout, result, out[i, row])


@kernel_njit
def as_maps(x):
    """View (..., rows, cols) as (maps, rows, cols)."""
    maps = 1
    for axis in range(x.ndim - 2):
        maps *= x.shape[axis]
    return np.ascontiguousarray(x).reshape((maps, x.shape[-2], x.shape[-1]))


@kernel_njit
def empty_output(layout, x):
    """Return an empty array of the output's shape and its view as maps."""
    out = np.empty(x.shape[:-2] + (layout.out_rows, layout.out_cols), x.dtype)
    return out, out.reshape((layout.maps, layout.out_rows, layout.out_cols))


@kernel_njit
def check_output(layout, x, output):
    """Raise ValueError unless maxima or a gradient have the output's shape."""
    if output.shape != x.shape[:-2] + (layout.out_rows, layout.out_cols):
        raise ValueError("maxima and gradients must have the output's shape", output.shape)


def layout_function(op):
    """Make ``layout(x, *geometry)`` for an Op; the geometry is empty where the Op knows it."""
    ignore_border, mode = op.ignore_border, getattr(op, "mode", "max")
    divide, count_padding = mode.startswith("average"), mode == "average_inc_pad"

    @kernel_njit
    def given(x, ws, stride, pad):
        return layout_of(x, ws, stride, pad, ignore_border, divide, count_padding)

    if op.ws is None:
        return given
    ws, stride, pad = op.ws, op.stride, op.pad

    @kernel_njit
    def fixed(x):
        return layout_of(x, ws, stride, pad, ignore_border, divide, count_padding)

    return fixed


@register_kernel(Pool)
def make_pool(op, node, **kwargs):
    """Compile `Pool`."""
    layout_for = layout_function(op)
    run_blocks = over_rows_of_windows(maximum if op.mode == "max" else average, 2, False)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def pool(x, *geometry):
        layout = layout_for(x, *geometry)
        out, out_maps = empty_output(layout, x)
        run_blocks(min(layout.maps, BLOCKS), layout, as_maps(x), out_maps)
        return out

    return pool, CACHE_VERSION


@register_kernel(AveragePoolGrad)
def make_average_pool_grad(op, node, **kwargs):
    """Compile `AveragePoolGrad`."""
    layout_for = layout_function(op)
    run_blocks = over_rows_of_windows(spread_average, 2, True)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def average_pool_grad(x, output_gradient, *geometry):
        layout = layout_for(x, *geometry)
        check_output(layout, x, output_gradient)
        gradient = np.empty(x.shape, x.dtype)
        run_blocks(min(layout.maps, BLOCKS), layout, as_maps(output_gradient), as_maps(gradient))
        return gradient

    return average_pool_grad, CACHE_VERSION


@register_kernel(MaxPoolGrad)
def make_max_pool_grad(op, node, **kwargs):
    """Compile `MaxPoolGrad`."""
    layout_for = layout_function(op)
    run_blocks = over_rows_of_windows(give_to_maxima, 4, True)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def max_pool_grad(x, maxima, output_gradient, *geometry):
        layout = layout_for(x, *geometry)
        check_output(layout, x, maxima)
        check_output(layout, x, output_gradient)
        gradient = np.empty(x.shape, x.dtype)
        arrays = as_maps(x), as_maps(maxima), as_maps(output_gradient), as_maps(gradient)
        run_blocks(min(layout.maps, BLOCKS), layout, *arrays)
        return gradient

    return max_pool_grad, CACHE_VERSION


@register_kernel(MaxPoolGradGrad)
def make_max_pool_grad_grad(op, node, **kwargs):
    """Compile `MaxPoolGradGrad`."""
    layout_for = layout_function(op)
    run_blocks = over_rows_of_windows(take_from_maxima, 4, False)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def max_pool_grad_grad(x, maxima, cotangent, *geometry):
        layout = layout_for(x, *geometry)
        check_output(layout, x, maxima)
        out, out_maps = empty_output(layout, x)
        arrays = as_maps(x), as_maps(maxima), as_maps(cotangent), out_maps
        run_blocks(min(layout.maps, BLOCKS), layout, *arrays)
        return out

    return max_pool_grad_grad, CACHE_VERSION
