"""Numba kernels of pooling and its gradients, for every mode, stride and padding.

The leading axes are one: ``(maps, rows, cols)``. Each kernel says only what it does with one row of windows.
It works on many windows side by side, in vectors.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    check,
    in_order,
    kernel_inline,
    kernel_njit,
    parallel,
    register_kernel,
    reported,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import vector_add, vector_copy, vector_divide
from deeplearning_tutorial.nnet.dispatch.numba.llvm.windows import (
    add_where_equal,
    pool_average,
    pool_maximum,
    pool_sum,
    repeat_each,
    spread_apart,
)
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, result
from deeplearning_tutorial.nnet.pool import (
    AveragePoolGrad,
    MaxPoolGrad,
    MaxPoolGradGrad,
    Pool,
    clip_windows,
    pool_output_length,
)
from deeplearning_tutorial.nnet.sizes import MAX_SIZE
from deeplearning_tutorial.nnet.sizes import has_too_many as has_too_many_elements

BLOCKS = 64

output_length = kernel_njit(pool_output_length)
clip = kernel_njit(clip_windows)
has_too_many = kernel_njit(has_too_many_elements)


class Layout(NamedTuple):
    """Sizes of the maps and of the windows on them, clipped to what they see."""

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
    divisor_rows: int
    divisor_cols: int
    """What a window's sum is divided by, as a product; 0 stands for what is not padding."""


LAYOUT = types.NamedUniTuple(types.int64, len(Layout._fields), Layout)


@kernel_njit
def layout_of(x, ws, stride, pad, ignore_border, divide, count_padding):
    """Return the layout; raise where window, stride and padding do not go together."""
    if len(ws) != 2 or len(stride) != 2 or len(pad) != 2:
        raise ValueError("ws, stride and pad take two elements each", len(ws), len(stride), len(pad))
    if min(ws[0], ws[1], stride[0], stride[1]) < 1:
        raise ValueError("ws and stride must be 1 or more", reported(ws), reported(stride))
    if max(ws[0], ws[1], stride[0], stride[1]) > MAX_SIZE:
        raise ValueError("ws and stride must be 2**62 or less", reported(ws), reported(stride))
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
    divisor_rows, divisor_cols = 1, 1
    if divide:
        divisor_rows, divisor_cols = (ws[0], ws[1]) if count_padding and ignore_border else (0, 0)
    out_rows = output_length(rows, ws[0], stride[0], pad[0], ignore_border)
    out_cols = output_length(cols, ws[1], stride[1], pad[1], ignore_border)
    window_rows, stride_rows, pad_rows = clip(rows, out_rows, ws[0], stride[0], pad[0])
    window_cols, stride_cols, pad_cols = clip(cols, out_cols, ws[1], stride[1], pad[1])
    layout = Layout(
        maps,
        rows,
        cols,
        out_rows,
        out_cols,
        window_rows,
        window_cols,
        stride_rows,
        stride_cols,
        pad_rows,
        pad_cols,
        divisor_rows,
        divisor_cols,
    )
    if has_too_many(*shape_of_lines(layout), 1):
        raise ValueError("pad makes rows longer than memory holds", reported(pad), x.shape)
    return layout


@kernel_njit
def shape_of_lines(layout):
    """Shape of the lines that `over_rows_of_windows` hands to its visits."""
    length = max(window_starts(layout), layout.cols + layout.pad_cols) + 2 * (layout.window_cols - 1)
    return min(layout.window_rows, layout.rows) + 3, length


@kernel_njit
def window_starts(layout):
    """Columns of the padded input, from the first window's to the last one's, where a window could start."""
    return (layout.out_cols - 1) * layout.stride_cols + 1 if layout.out_cols else 0


@kernel_njit
def fill_divisors(layout, rows, divisors):
    """Note what the sum of each window of ``rows`` rows is divided by."""
    for col in range(layout.out_cols):
        left = col * layout.stride_cols - layout.pad_cols
        inside = min(left + layout.window_cols, layout.cols) - max(left, 0)
        # As floats, whose product does not wrap around.
        divisors[col] = float(layout.divisor_rows or rows) * float(layout.divisor_cols or inside)


@cache
def over_rows_of_windows(visit, elsewhere, n_arrays, accumulates=False, at_once=False):
    """Make a kernel that visits each row of windows.

    It calls ``visit(layout, i, row, n, top, bottom, lines, divisors, arrays)``, where the windows of row
    ``row`` of map ``i`` span ``[top, bottom)``, without padding. It is to do ``n`` rows of windows; these are
    more than 1 only for a kernel that does all `rows_at_once`. ``lines`` is scratch, in which ``elsewhere``
    stands until a visit writes there: a line for each row of the maps under a window and 3 more, as long as a
    row of the padded input and a window on each side. A kernel that ``accumulates`` finds zeros in the last
    array.
    """

    @parallel(lambda real: (LAYOUT, *[real[:, :, ::1]] * n_arrays), visit.__name__)
    def rows_block(memory, block, blocks, layout, *arrays):
        starts = window_starts(layout)
        lines = empty(memory, shape_of_lines(layout), arrays[0])
        divisors = empty(memory, layout.out_cols, arrays[0])
        fill(lines.reshape(lines.size), elsewhere)
        rows = -1
        begin, end = block_of(block, blocks, layout.maps)
        for i in range(begin, end):
            if accumulates:
                fill(arrays[-1][i].reshape(layout.rows * layout.cols), 0)
            # Without columns of windows there is nothing to visit.
            row = 0 if starts else layout.out_rows
            while row < layout.out_rows:
                first = row * layout.stride_rows - layout.pad_rows
                top, bottom = max(first, 0), min(first + layout.window_rows, layout.rows)
                if bottom - top != rows:
                    rows = bottom - top
                    fill_divisors(layout, rows, divisors)
                n = rows_at_once(layout, first) if at_once else 1
                visit(layout, i, row, n, top, bottom, lines, divisors, arrays)
                row += n

    return rows_block


@kernel_njit
def overhangs(layout):
    """Tell whether windows hang over the ends of a row, and need a padded copy of it."""
    return layout.pad_cols > 0 or window_starts(layout) + layout.window_cols - 1 > layout.cols


@kernel_njit
def rows_at_once(layout, first):
    """Rows of windows, from the one whose windows begin in row ``first``, that lie in the map as it is."""
    if first < 0 or overhangs(layout) or layout.stride_cols > 2:
        return 1
    return max(1, (layout.rows - layout.window_rows - first) // layout.stride_rows + 1)


@kernel_njit
def fill(values, value):
    """Set all elements."""
    for i in range(len(values)):
        values[i] = value


def pooling(combine, combine_first):
    """Make ``pool(layout, x, i, n, top, bottom, lines, out, at, divisors)``, which pools rows of windows.

    Where windows lie further apart ``combine_first`` does what ``combine`` does without dividing.
    """
    divides = combine is not combine_first

    @kernel_inline
    def pool(layout, x, i, n, top, bottom, lines, out, at, divisors):
        cols, rows, starts = layout.cols, bottom - top, window_starts(layout)
        source, first, step = x.reshape(x.size), (i * layout.rows + top) * cols, cols
        if overhangs(layout):
            source, first, step = lines.reshape(lines.size), 0, lines.shape[1]
            for r in range(rows):
                vector_copy(lines, r * step + layout.pad_cols, x, (i * layout.rows + top + r) * cols, cols)
        width, stride, n_windows = layout.window_cols, layout.stride_cols, layout.out_cols
        if stride <= 2:
            line_step = layout.stride_rows * step
            combine(out, at, source, first, step, n, line_step, rows, width, stride, divisors, n_windows)
        else:
            # As if a window started at each column: in vectors that is faster than the few that do.
            last = len(lines) - 1
            line_at = last * lines.shape[1]
            combine_first(lines, line_at, source, first, step, 1, 0, rows, width, 1, divisors, starts)
            pick(layout, lines[last], out, at)
            if divides:
                vector_divide(out, at, out, at, divisors, n_windows)

    return pool


maximum_of_windows = pooling(pool_maximum, pool_maximum)
average_of_windows = pooling(pool_average, pool_sum)


@kernel_njit
def pick(layout, line, out, at):
    """Take what stands where the windows start."""
    flat = out.reshape(out.size)
    for col in range(layout.out_cols):
        flat[at + col] = line[col * layout.stride_cols]


@kernel_inline
def place(layout, line, row, row_at):
    """Put each window's value where the window starts, after room for a window."""
    first = layout.window_cols - 1
    if layout.stride_cols == 1:
        vector_copy(line, first, row, row_at, layout.out_cols)
    elif layout.stride_cols == 2:
        spread_apart(line, first, row, row_at, layout.out_cols)
    else:
        flat = row.reshape(row.size)
        for col in range(layout.out_cols):
            line[first + col * layout.stride_cols] = flat[row_at + col]


@kernel_inline
def maximum(layout, i, row, n, top, bottom, lines, divisors, arrays):
    """`Pool` in mode 'max'."""
    x, out = arrays
    at = (i * layout.out_rows + row) * layout.out_cols
    maximum_of_windows(layout, x, i, n, top, bottom, lines, out, at, divisors)


@kernel_inline
def average(layout, i, row, n, top, bottom, lines, divisors, arrays):
    """`Pool` in the other modes."""
    x, out = arrays
    at = (i * layout.out_rows + row) * layout.out_cols
    average_of_windows(layout, x, i, n, top, bottom, lines, out, at, divisors)


@kernel_inline
def spread_average(layout, i, row, n, top, bottom, lines, divisors, arrays):
    """`AveragePoolGrad`."""
    output_gradient, gradient = arrays
    length, at = lines.shape[1], (i * layout.out_rows + row) * layout.out_cols
    vector_divide(lines, 0, output_gradient, at, divisors, layout.out_cols)
    if layout.stride_cols == layout.window_cols == 2 and not overhangs(layout):
        # The commonest windows, of which no two share a column.
        cols = 2 * layout.out_cols
        repeat_each(lines, 2 * length, lines, 0, layout.out_cols)
    else:
        cols = layout.cols
        place(layout, lines[1], lines, 0)
        first, width = length + layout.pad_cols, layout.window_cols
        pool_sum(lines, 2 * length, lines, first, 0, 1, 0, 1, width, 1, divisors, cols)
    for r in range(top, bottom):
        vector_add(gradient, (i * layout.rows + r) * layout.cols, lines, 2 * length, cols)


@kernel_inline
def give_to_maxima(layout, i, row, n, top, bottom, lines, divisors, arrays):
    """`MaxPoolGrad`."""
    x, maxima, output_gradient, gradient = arrays
    length, at = lines.shape[1], (i * layout.out_rows + row) * layout.out_cols
    place(layout, lines[0], maxima, at)
    place(layout, lines[1], output_gradient, at)
    for r in range(top, bottom):
        at = (i * layout.rows + r) * layout.cols
        add_where_equal(
            gradient, at, x, at, lines, layout.pad_cols, lines, length + layout.pad_cols,
            layout.window_cols, layout.cols,
        )  # fmt: skip


@kernel_inline
def take_from_maxima(layout, i, row, n, top, bottom, lines, divisors, arrays):
    """`MaxPoolGradGrad`."""
    x, maxima, cotangent, out = arrays
    length, starts = lines.shape[1], window_starts(layout)
    place(layout, lines[0], maxima, (i * layout.out_rows + row) * layout.out_cols)
    fill(lines[3], 0)
    for r in range(top, bottom):
        at = (i * layout.rows + r) * layout.cols
        vector_copy(lines, length + layout.pad_cols, x, at, layout.cols)
        vector_copy(lines, 2 * length + layout.pad_cols, cotangent, at, layout.cols)
        add_where_equal(
            lines, 3 * length, lines, layout.window_cols - 1, lines, length, lines, 2 * length,
            layout.window_cols, starts,
        )  # fmt: skip
    pick(layout, lines[3], out, (i * layout.out_rows + row) * layout.out_cols)


@kernel_njit
def as_maps(x):
    """View (..., rows, cols) as (maps, rows, cols)."""
    maps = 1
    for axis in range(x.ndim - 2):
        maps *= x.shape[axis]
    return in_order(x).reshape((maps, x.shape[-2], x.shape[-1]))


@kernel_njit
def empty_output(layout, x):
    """Return a result of the output's shape and its view as maps."""
    out = result(x.shape[:-2] + (layout.out_rows, layout.out_cols), x)
    return out, out.reshape((layout.maps, layout.out_rows, layout.out_cols))


@kernel_njit
def check_output(layout, x, output):
    """Raise ValueError unless maxima or a gradient have the output's shape."""
    expected = x.shape[:-2] + (layout.out_rows, layout.out_cols)
    if output.shape != expected:
        raise ValueError("maxima and output_gradient must have the output's shape", output.shape, expected)


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
    visit = (maximum, -np.inf) if op.mode == "max" else (average, 0)
    run_blocks = over_rows_of_windows(*visit, 2, at_once=True)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def pool(x, *geometry):
        layout = layout_for(x, *geometry)
        out, out_maps = empty_output(layout, x)
        check(run_blocks(min(layout.maps, BLOCKS), layout, as_maps(x), out_maps))
        return out

    return pool


@register_kernel(AveragePoolGrad)
def make_average_pool_grad(op, node, **kwargs):
    """Compile `AveragePoolGrad`."""
    layout_for = layout_function(op)
    run_blocks = over_rows_of_windows(spread_average, 0, 2, accumulates=True)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def average_pool_grad(x, output_gradient, *geometry):
        layout = layout_for(x, *geometry)
        check_output(layout, x, output_gradient)
        gradient = result(x.shape, x)
        check(run_blocks(min(layout.maps, BLOCKS), layout, as_maps(output_gradient), as_maps(gradient)))
        return gradient

    return average_pool_grad


@register_kernel(MaxPoolGrad)
def make_max_pool_grad(op, node, **kwargs):
    """Compile `MaxPoolGrad`."""
    layout_for = layout_function(op)
    run_blocks = over_rows_of_windows(give_to_maxima, 0, 4, accumulates=True)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def max_pool_grad(x, maxima, output_gradient, *geometry):
        layout = layout_for(x, *geometry)
        check_output(layout, x, maxima)
        check_output(layout, x, output_gradient)
        gradient = result(x.shape, x)
        arrays = as_maps(x), as_maps(maxima), as_maps(output_gradient), as_maps(gradient)
        check(run_blocks(min(layout.maps, BLOCKS), layout, *arrays))
        return gradient

    return max_pool_grad


@register_kernel(MaxPoolGradGrad)
def make_max_pool_grad_grad(op, node, **kwargs):
    """Compile `MaxPoolGradGrad`."""
    layout_for = layout_function(op)
    run_blocks = over_rows_of_windows(take_from_maxima, 0, 4)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def max_pool_grad_grad(x, maxima, cotangent, *geometry):
        layout = layout_for(x, *geometry)
        check_output(layout, x, maxima)
        if cotangent.shape != x.shape:
            raise ValueError("cotangent must have the shape of x", cotangent.shape, x.shape)
        out, out_maps = empty_output(layout, x)
        arrays = as_maps(x), as_maps(maxima), as_maps(cotangent), out_maps
        check(run_blocks(min(layout.maps, BLOCKS), layout, *arrays))
        return out

    return max_pool_grad_grad
