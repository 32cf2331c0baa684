"""Numba kernels of max-pooling without overlap and its gradient."""

from functools import cache

import numpy as np
from numba import prange
from pytensor.link.numba.dispatch.basic import generate_fallback_impl

from deeplearning_tutorial.nnet.dispatch.numba.kernel import kernel_njit, register_kernel
from deeplearning_tutorial.nnet.pool import MaxPoolGrad, Pool, pool_output_length

# PyTensor's cache of compiled functions does not see an edited kernel: count up whenever one changes.
CACHE_VERSION = 2

output_length = kernel_njit(pool_output_length)


def _is_plain(op):
    return op.ws is not None and op.stride == op.ws and op.pad == (0, 0)


@cache
def max_kernel(window_rows, window_cols, ignore_border):
    """``Pool`` in mode 'max' ."""

    @kernel_njit(parallel=True)
    def max_pool(x):
        rows, cols = x.shape[-2:]
        out_rows = output_length(rows, window_rows, window_rows, 0, ignore_border)
        out_cols = output_length(cols, window_cols, window_cols, 0, ignore_border)
        maps = np.ascontiguousarray(x).reshape(-1, rows, cols)
        out = np.empty((len(maps), out_rows, out_cols), x.dtype)
        for i in prange(len(maps)):
            for row in range(out_rows):
                top = row * window_rows
                bottom = top + window_rows if ignore_border else min(rows, top + window_rows)
                for col in range(out_cols):
                    left = col * window_cols
                    right = left + window_cols if ignore_border else min(cols, left + window_cols)
                    maximum = maps[i, top, left]
                    for r in range(top, bottom):
                        for c in range(left, right):
                            value = maps[i, r, c]
                            # Without a branch, which random maxima would mispredict; a NaN wins, as in NumPy.
                            maximum = value if (value > maximum) | (value != value) else maximum
                    out[i, row, col] = maximum
        return out.reshape(x.shape[:-2] + (out_rows, out_cols))

    return max_pool


@cache
def max_gradient_kernel(window_rows, window_cols, ignore_border):
    """``MaxPoolGrad``: every element equal to its window's maximum receives the window's gradient."""

    @kernel_njit(parallel=True)
    def max_pool_grad(x, maxima, output_gradient):
        rows, cols = x.shape[-2:]
        out_rows, out_cols = maxima.shape[-2:]
        x_maps = np.ascontiguousarray(x).reshape(-1, rows, cols)
        max_maps = np.ascontiguousarray(maxima).reshape(-1, out_rows, out_cols)
        out_gradients = np.ascontiguousarray(output_gradient).reshape(-1, out_rows, out_cols)
        gradient = np.zeros(x_maps.shape, x.dtype)
        for i in prange(len(x_maps)):
            for row in range(out_rows):
                top = row * window_rows
                bottom = top + window_rows if ignore_border else min(rows, top + window_rows)
                for col in range(out_cols):
                    left = col * window_cols
                    right = left + window_cols if ignore_border else min(cols, left + window_cols)
                    maximum = max_maps[i, row, col]
                    passed_on = out_gradients[i, row, col]
                    for r in range(top, bottom):
                        for c in range(left, right):
                            gradient[i, r, c] = passed_on if x_maps[i, r, c] == maximum else 0
        return gradient.reshape(x.shape)

    return max_pool_grad


@register_kernel(Pool)
def numba_funcify_Pool(op, node, **kwargs):
    """Compile `Pool`; what is not plain max-pooling runs in object mode."""
    if not _is_plain(op) or op.mode != "max":
        return generate_fallback_impl(op, node=node, **kwargs)
    return max_kernel(*op.ws, op.ignore_border), CACHE_VERSION


@register_kernel(MaxPoolGrad)
def numba_funcify_MaxPoolGrad(op, node, **kwargs):
    """Compile `MaxPoolGrad`; what is not plain max-pooling runs in object mode."""
    if not _is_plain(op):
        return generate_fallback_impl(op, node=node, **kwargs)
    return max_gradient_kernel(*op.ws, op.ignore_border), CACHE_VERSION
