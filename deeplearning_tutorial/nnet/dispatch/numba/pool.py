"""Numba kernels of pooling and its gradients, for every mode, stride and padding.

The leading axes are merged: ``(maps, rows, cols)``. Each kernel defines only the work on one row of windows.
It works on many windows side by side, in vectors.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.dispatch.numba.arrays import in_order
from deeplearning_tutorial.nnet.dispatch.numba.jit import exact_njit, kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    check,
    parallel,
    register_kernel,
    unliteral,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import Elements, Grid, Rows
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import vector_add, vector_copy, vector_divide
from deeplearning_tutorial.nnet.dispatch.numba.llvm.windows import (
    Window,
    add_where_equal,
    interleave_zeros,
    pool_average,
    pool_maximum,
    pool_sum,
    repeat_each,
)
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, result
from deeplearning_tutorial.nnet.dispatch.numba.sizes import has_too_many
from deeplearning_tutorial.nnet.pool import (
    AveragePoolGrad,
    MaxPoolGrad,
    MaxPoolGradGrad,
    Pool,
    clip_windows,
    pool_output_length,
)
from deeplearning_tutorial.nnet.sizes import MAX_SIZE

BLOCKS = 64

output_length = kernel_njit(pool_output_length)
clip = kernel_njit(clip_windows)


class PoolLayout(NamedTuple):
    """Sizes of the maps and of the windows on them, which are clipped to the elements that they cover."""

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
    """The product of the two divides a window's sum; 0 stands for its rows or columns without padding."""


POOL_LAYOUT = types.NamedUniTuple(types.int64, len(PoolLayout._fields), PoolLayout)


class WindowRow(NamedTuple):
    """A row of windows that a kernel visits."""

    map: int
    row: int
    count: int
    """How many rows of windows to do from this one on."""
    top: int
    """The first row of the map that the windows see."""
    bottom: int
    """The row after the last one that they see."""


@kernel_njit
def pool_layout_of(x, ws, stride, pad, ignore_border, divide, count_padding):
    """Return the layout; raise if window, stride and padding do not fit each other."""
    if len(ws) != 2 or len(stride) != 2 or len(pad) != 2:
        raise ValueError("ws, stride and pad take two elements each", len(ws), len(stride), len(pad))
    if min(ws[0], ws[1], stride[0], stride[1]) < 1:
        raise ValueError("ws and stride must be 1 or more", unliteral(ws), unliteral(stride))
    if max(ws[0], ws[1], stride[0], stride[1]) > MAX_SIZE:
        raise ValueError("ws and stride must be 2**62 or less", unliteral(ws), unliteral(stride))
    if min(pad[0], pad[1]) < 0:
        raise ValueError("pad must be 0 or more", unliteral(pad))
    if max(pad[0], pad[1]) > 0 and not ignore_border:
        raise NotImplementedError("pad needs ignore_border=True", unliteral(pad))
    if pad[0] >= ws[0] or pad[1] >= ws[1]:
        raise NotImplementedError("pad must be less than ws", unliteral(pad), unliteral(ws))
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
    layout = PoolLayout(
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
        raise ValueError("pad makes rows longer than memory holds", unliteral(pad), x.shape)
    return layout


@kernel_njit
def shape_of_lines(layout):
    """Return the shape of the lines that `over_rows_of_windows` passes to its visits."""
    length = max(window_starts(layout), layout.cols + layout.pad_cols) + 2 * (layout.window_cols - 1)
    return min(layout.window_rows, layout.rows) + 3, length


@kernel_njit
def window_starts(layout):
    """Count the columns of the padded input from the first window's to the last one's."""
    return (layout.out_cols - 1) * layout.stride_cols + 1 if layout.out_cols else 0


@kernel_njit
def fill_divisors(layout, rows, divisors):
    """Set the divisors of the sums of windows of ``rows`` rows."""
    for col in range(layout.out_cols):
        left = col * layout.stride_cols - layout.pad_cols
        inside = min(left + layout.window_cols, layout.cols) - max(left, 0)
        # As floats, whose product does not wrap around.
        divisors[col] = float(layout.divisor_rows or rows) * float(layout.divisor_cols or inside)


@cache
def over_rows_of_windows(visit, fill_value, n_arrays, accumulates=False, at_once=False):
    """Make a kernel that visits each row of windows.

    It calls ``visit(layout, windows, lines, divisors, arrays)``, where ``windows`` is a `WindowRow`, of more
    than one row only for a kernel that does all `rows_at_once`. ``lines`` is scratch, full of ``fill_value``
    until a visit writes there: a line for each row of the maps under a window and 3 more, as long as a row of
    the padded input and a window on each side. A kernel that ``accumulates`` finds zeros in the last array.
    """

    @parallel(lambda real: (POOL_LAYOUT, *[real[:, :, ::1]] * n_arrays), visit.__name__)
    def rows_block(memory, block, blocks, layout, *arrays):
        starts = window_starts(layout)
        lines = empty(memory, shape_of_lines(layout), arrays[0])
        divisors = empty(memory, layout.out_cols, arrays[0])
        fill(lines.reshape(lines.size), fill_value)
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
                count = rows_at_once(layout, first) if at_once else 1
                visit(layout, WindowRow(i, row, count, top, bottom), lines, divisors, arrays)
                row += count

    return rows_block


@kernel_njit
def overhangs(layout):
    """Tell whether windows reach beyond the ends of a row, and need a padded copy of it."""
    return layout.pad_cols > 0 or window_starts(layout) + layout.window_cols - 1 > layout.cols


@kernel_njit
def rows_at_once(layout, first):
    """Count the rows of windows that need no copy of the map, from the one that begins in row ``first``."""
    if first < 0 or overhangs(layout) or layout.stride_cols > 2:
        return 1
    return max(1, (layout.rows - layout.window_rows - first) // layout.stride_rows + 1)


@kernel_njit
def fill(values, value):
    """Set all elements."""
    for i in range(len(values)):
        values[i] = value


def pooling(combine, combine_first):
    """Make ``pool(layout, windows, x, out, lines, divisors)``, which pools the windows of a `WindowRow`.

    If windows are more than 2 columns apart, ``combine_first`` does what ``combine`` does without dividing.
    """
    divides = combine is not combine_first

    @exact_njit
    def pool(layout, windows, x, out, lines, divisors):
        cols, rows, at = layout.cols, windows.bottom - windows.top, first_window(layout, windows)
        source, first, step = x.reshape(x.size), (windows.map * layout.rows + windows.top) * cols, cols
        if overhangs(layout):
            source, first, step = lines.reshape(lines.size), 0, lines.shape[1]
            for r in range(rows):
                row_at = (windows.map * layout.rows + windows.top + r) * cols
                vector_copy(lines, r * step + layout.pad_cols, x, row_at, cols)
        width, stride, n_windows = layout.window_cols, layout.stride_cols, layout.out_cols
        if stride <= 2:
            window, line_step = Window(rows, width, stride), layout.stride_rows * step
            target, seen = Rows(out, at, n_windows), Grid(source, first, line_step, step)
            combine(target, seen, window, windows.count, n_windows, divisors)
        else:
            # As if a window started at each column: in vectors that is faster than the few that do.
            last, starts = len(lines) - 1, window_starts(layout)
            target, seen = Rows(lines, last * lines.shape[1], 0), Grid(source, first, 0, step)
            combine_first(target, seen, Window(rows, width, 1), 1, starts, divisors)
            pick(layout, lines[last], out, at)
            if divides:
                vector_divide(out, at, out, at, divisors, n_windows)

    return pool


maximum_of_windows = pooling(pool_maximum, pool_maximum)
average_of_windows = pooling(pool_average, pool_sum)


@kernel_njit
def first_window(layout, windows):
    """Return the offset of a row of windows in arrays of the output's shape."""
    return (windows.map * layout.out_rows + windows.row) * layout.out_cols


@kernel_njit
def pick(layout, line, out, at):
    """Copy the elements at which the windows start."""
    flat = out.reshape(out.size)
    for col in range(layout.out_cols):
        flat[at + col] = line[col * layout.stride_cols]


@exact_njit
def place(layout, line, row, row_at):
    """Copy each window's value to where the window starts, one window's length less one to the right."""
    first = layout.window_cols - 1
    if layout.stride_cols == 1:
        vector_copy(line, first, row, row_at, layout.out_cols)
    elif layout.stride_cols == 2:
        interleave_zeros(line, first, row, row_at, layout.out_cols)
    else:
        flat = row.reshape(row.size)
        for col in range(layout.out_cols):
            line[first + col * layout.stride_cols] = flat[row_at + col]


@exact_njit
def maximum(layout, windows, lines, divisors, arrays):
    """Compute `Pool` in mode 'max'."""
    x, out = arrays
    maximum_of_windows(layout, windows, x, out, lines, divisors)


@exact_njit
def average(layout, windows, lines, divisors, arrays):
    """Compute `Pool` in the other modes."""
    x, out = arrays
    average_of_windows(layout, windows, x, out, lines, divisors)


@exact_njit
def distribute_average(layout, windows, lines, divisors, arrays):
    """Compute `AveragePoolGrad`."""
    output_gradient, gradient = arrays
    length, at = lines.shape[1], first_window(layout, windows)
    vector_divide(lines, 0, output_gradient, at, divisors, layout.out_cols)
    if layout.stride_cols == layout.window_cols == 2 and not overhangs(layout):
        # The most common windows, of which no two share a column.
        cols = 2 * layout.out_cols
        repeat_each(lines, 2 * length, lines, 0, layout.out_cols)
    else:
        cols = layout.cols
        place(layout, lines[1], lines, 0)
        seen, window = Grid(lines, length + layout.pad_cols, 0, 0), Window(1, layout.window_cols, 1)
        pool_sum(Rows(lines, 2 * length, 0), seen, window, 1, cols, divisors)
    for r in range(windows.top, windows.bottom):
        vector_add(gradient, (windows.map * layout.rows + r) * layout.cols, lines, 2 * length, cols)


@exact_njit
def add_to_maxima(layout, windows, lines, divisors, arrays):
    """Compute `MaxPoolGrad`."""
    x, maxima, output_gradient, gradient = arrays
    length, at = lines.shape[1], first_window(layout, windows)
    place(layout, lines[0], maxima, at)
    place(layout, lines[1], output_gradient, at)
    for r in range(windows.top, windows.bottom):
        at = (windows.map * layout.rows + r) * layout.cols
        add_where_equal(
            Elements(gradient, at),
            Elements(x, at),
            Elements(lines, layout.pad_cols),
            Elements(lines, length + layout.pad_cols),
            layout.window_cols,
            layout.cols,
        )


@exact_njit
def sum_of_maxima(layout, windows, lines, divisors, arrays):
    """Compute `MaxPoolGradGrad`."""
    x, maxima, cotangent, out = arrays
    length, starts = lines.shape[1], window_starts(layout)
    place(layout, lines[0], maxima, first_window(layout, windows))
    fill(lines[3], 0)
    for r in range(windows.top, windows.bottom):
        at = (windows.map * layout.rows + r) * layout.cols
        vector_copy(lines, length + layout.pad_cols, x, at, layout.cols)
        vector_copy(lines, 2 * length + layout.pad_cols, cotangent, at, layout.cols)
        add_where_equal(
            Elements(lines, 3 * length),
            Elements(lines, layout.window_cols - 1),
            Elements(lines, length),
            Elements(lines, 2 * length),
            layout.window_cols,
            starts,
        )
    pick(layout, lines[3], out, first_window(layout, windows))


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


def pool_layout_function(op):
    """Make ``layout(x, *geometry)`` for an Op; the geometry is empty if the Op has it."""
    ignore_border, mode = op.ignore_border, getattr(op, "mode", "max")
    divide, count_padding = mode.startswith("average"), mode == "average_inc_pad"

    @kernel_njit
    def layout_of_inputs(x, ws, stride, pad):
        return pool_layout_of(x, ws, stride, pad, ignore_border, divide, count_padding)

    if op.ws is None:
        return layout_of_inputs
    ws, stride, pad = op.ws, op.stride, op.pad

    @kernel_njit
    def layout_of_op(x):
        return pool_layout_of(x, ws, stride, pad, ignore_border, divide, count_padding)

    return layout_of_op


def pool_kernel(op):
    """Return the kernel of `Pool`."""
    visit, fill_value = (maximum, -np.inf) if op.mode == "max" else (average, 0)
    return over_rows_of_windows(visit, fill_value, 2, at_once=True)


@register_kernel(Pool, pool_kernel)
def make_pool(op, run_blocks):
    """Compile `Pool`."""
    layout_of = pool_layout_function(op)

    @kernel_njit
    def pool(x, *geometry):
        layout = layout_of(x, *geometry)
        out, out_maps = empty_output(layout, x)
        check(run_blocks(min(layout.maps, BLOCKS), layout, as_maps(x), out_maps))
        return out

    return pool


@register_kernel(AveragePoolGrad, lambda op: over_rows_of_windows(distribute_average, 0, 2, accumulates=True))
def make_average_pool_grad(op, run_blocks):
    """Compile `AveragePoolGrad`."""
    layout_of = pool_layout_function(op)

    @kernel_njit
    def average_pool_grad(x, output_gradient, *geometry):
        layout = layout_of(x, *geometry)
        check_output(layout, x, output_gradient)
        gradient = result(x.shape, x)
        check(run_blocks(min(layout.maps, BLOCKS), layout, as_maps(output_gradient), as_maps(gradient)))
        return gradient

    return average_pool_grad


@register_kernel(MaxPoolGrad, lambda op: over_rows_of_windows(add_to_maxima, 0, 4, accumulates=True))
def make_max_pool_grad(op, run_blocks):
    """Compile `MaxPoolGrad`."""
    layout_of = pool_layout_function(op)

    @kernel_njit
    def max_pool_grad(x, maxima, output_gradient, *geometry):
        layout = layout_of(x, *geometry)
        check_output(layout, x, maxima)
        check_output(layout, x, output_gradient)
        gradient = result(x.shape, x)
        arrays = as_maps(x), as_maps(maxima), as_maps(output_gradient), as_maps(gradient)
        check(run_blocks(min(layout.maps, BLOCKS), layout, *arrays))
        return gradient

    return max_pool_grad


@register_kernel(MaxPoolGradGrad, lambda op: over_rows_of_windows(sum_of_maxima, 0, 4))
def make_max_pool_grad_grad(op, run_blocks):
    """Compile `MaxPoolGradGrad`."""
    layout_of = pool_layout_function(op)

    @kernel_njit
    def max_pool_grad_grad(x, maxima, cotangent, *geometry):
        layout = layout_of(x, *geometry)
        check_output(layout, x, maxima)
        if cotangent.shape != x.shape:
            raise ValueError("cotangent must have the shape of x", cotangent.shape, x.shape)
        out, out_maps = empty_output(layout, x)
        arrays = as_maps(x), as_maps(maxima), as_maps(cotangent), out_maps
        check(run_blocks(min(layout.maps, BLOCKS), layout, *arrays))
        return out

    return max_pool_grad_grad
