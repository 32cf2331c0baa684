"""Numba kernels of pooling and its gradients, for every mode, stride and padding.

The leading axes are one: ``(maps, rows, cols)``. Each kernel says only what it does with one window.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    kernel_njit,
    parallel,
    register_kernel,
    reported,
)
from deeplearning_tutorial.nnet.pool import (
    AveragePoolGrad,
    MaxPoolGrad,
    MaxPoolGradGrad,
    Pool,
    pool_output_length,
)

# PyTensor's cache of compiled functions does not see an edited kernel: count up whenever one changes.
CACHE_VERSION = 7

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


@cache
def over_windows(visit, n_arrays, window):
    """Make a kernel that visits each window.

    It calls ``visit(layout, i, row, col, top, bottom, left, right, *arrays)``, where window (row, col) of map
    i spans ``[top, bottom)`` and ``[left, right)``, without padding. ``window`` is its size where that is
    known beforehand, so that loops over whole windows have constant bounds, else None.
    """

    @parallel(
        lambda real: (LAYOUT, *[real[:, :, ::1]] * n_arrays), CACHE_VERSION, visit.__name__, window
    )
    def windows_block(block, blocks, layout, *arrays):
        window_rows = layout.window_rows if window is None else window[0]
        window_cols = layout.window_cols if window is None else window[1]
        begin, end = block_of(block, blocks, layout.maps)
        for i in range(begin, end):
            for row in range(layout.out_rows):
                top = row * layout.stride_rows - layout.pad_rows
                bottom = top + window_rows
                for col in range(layout.out_cols):
                    left = col * layout.stride_cols - layout.pad_cols
                    right = left + window_cols
                    if top >= 0 and left >= 0 and bottom <= layout.rows and right <= layout.cols:
                        visit(layout, i, row, col, top, bottom, left, right, *arrays)
                    else:
                        inside = max(top, 0), min(bottom, layout.rows), max(left, 0), min(right, layout.cols)
                        visit(layout, i, row, col, *inside, *arrays)

    return windows_block


@kernel_njit
def maximum(layout, i, row, col, top, bottom, left, right, x, out):
    """`Pool` in mode 'max'."""
    largest = x[i, top, left]
    for r in range(top, bottom):
        for c in range(left, right):
            value = x[i, r, c]
            # Without a branch, which random maxima would mispredict; a NaN wins, as in NumPy.
            largest = value if (value > largest) | (value != value) else largest
    out[i, row, col] = largest


@kernel_njit
def divisor_of(layout, top, bottom, left, right):
    """Return what the sum of a window is divided by."""
    return layout.divisor if layout.divisor else (bottom - top) * (right - left)


@kernel_njit
def average(layout, i, row, col, top, bottom, left, right, x, out):
    """`Pool` in the other modes."""
    total = x[i, top, left] * 0
    for r in range(top, bottom):
        for c in range(left, right):
            total += x[i, r, c]
    out[i, row, col] = total / x.dtype.type(divisor_of(layout, top, bottom, left, right))


@kernel_njit
def spread_average(layout, i, row, col, top, bottom, left, right, output_gradient, gradient):
    """`AveragePoolGrad`."""
    divisor = divisor_of(layout, top, bottom, left, right)
    share = output_gradient[i, row, col] / gradient.dtype.type(divisor)
    for r in range(top, bottom):
        for c in range(left, right):
            gradient[i, r, c] += share


@kernel_njit
def give_to_maxima(layout, i, row, col, top, bottom, left, right, x, maxima, output_gradient, gradient):
    """`MaxPoolGrad`."""
    largest, passed_on = maxima[i, row, col], output_gradient[i, row, col]
    for r in range(top, bottom):
        for c in range(left, right):
            gradient[i, r, c] += passed_on if x[i, r, c] == largest else 0


@kernel_njit
def take_from_maxima(layout, i, row, col, top, bottom, left, right, x, maxima, cotangent, out):
    """`MaxPoolGradGrad`."""
    largest = maxima[i, row, col]
    total = largest * 0
    for r in range(top, bottom):
        for c in range(left, right):
            total += cotangent[i, r, c] if x[i, r, c] == largest else 0
    out[i, row, col] = total


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
    run_blocks = over_windows(maximum if op.mode == "max" else average, 2, op.ws)
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
    run_blocks = over_windows(spread_average, 2, op.ws)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def average_pool_grad(x, output_gradient, *geometry):
        layout = layout_for(x, *geometry)
        check_output(layout, x, output_gradient)
        gradient = np.zeros(x.shape, x.dtype)
        run_blocks(min(layout.maps, BLOCKS), layout, as_maps(output_gradient), as_maps(gradient))
        return gradient

    return average_pool_grad, CACHE_VERSION


@register_kernel(MaxPoolGrad)
def make_max_pool_grad(op, node, **kwargs):
    """Compile `MaxPoolGrad`."""
    layout_for = layout_function(op)
    run_blocks = over_windows(give_to_maxima, 4, op.ws)
    run_blocks.load(node.outputs[0].dtype)

    @kernel_njit
    def max_pool_grad(x, maxima, output_gradient, *geometry):
        layout = layout_for(x, *geometry)
        check_output(layout, x, maxima)
        check_output(layout, x, output_gradient)
        gradient = np.zeros(x.shape, x.dtype)
        arrays = as_maps(x), as_maps(maxima), as_maps(output_gradient), as_maps(gradient)
        run_blocks(min(layout.maps, BLOCKS), layout, *arrays)
        return gradient

    return max_pool_grad, CACHE_VERSION


@register_kernel(MaxPoolGradGrad)
def make_max_pool_grad_grad(op, node, **kwargs):
    """Compile `MaxPoolGradGrad`."""
    layout_for = layout_function(op)
    run_blocks = over_windows(take_from_maxima, 4, op.ws)
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
