"""The kernels of the gradients choose another way where most of the output gradient is not zero."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from pytensor.gradient import grad

from deeplearning_tutorial.nnet import conv2d

# Padding of rows and columns, stride, dilation and groups.
GEOMETRIES = {
    "plain": (((0, 0), (0, 0)), (1, 1), (1, 1), 1),
    "groups, dilation, padding": (((1, 0), (2, 3)), (1, 1), (2, 1), 2),
    "stride": (((0, 2), (1, 1)), (3, 2), (1, 2), 1),
    "more padding than the filter is long": (((5, 0), (0, 1)), (1, 1), (1, 1), 1),
}


def gradients(x, w, g, pads, stride, dilation, groups):
    """Gradients of the correlation with respect to x and w, window by window."""
    padded = np.pad(x, ((0, 0), (0, 0), *pads))
    gx, gw = np.zeros(padded.shape), np.zeros(w.shape)
    spans = [(n - 1) * d + 1 for n, d in zip(w.shape[2:], dilation, strict=True)]
    per_group = len(w) // groups
    for group in range(groups):
        of_filters = slice(group * per_group, (group + 1) * per_group)
        of_channels = slice(group * w.shape[1], (group + 1) * w.shape[1])
        here, channels = g[:, of_filters], padded[:, of_channels]
        views = [
            sliding_window_view(array, spans, (2, 3), writeable=array is gx)[
                :, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]
            ]
            for array in (channels, gx)
        ]
        gw[of_filters] = np.einsum("bkij,bcijrs->kcrs", here, views[0], optimize=True)
        shares = np.einsum("bkij,kcrs->bcijrs", here, w[of_filters], optimize=True)
        for row, col in np.ndindex(g.shape[2:]):
            views[1][:, of_channels, row, col] += shares[:, :, row, col]
    (top, _), (left, _) = pads
    return gx[:, :, top : top + x.shape[2], left : left + x.shape[3]], gw


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dense_and_sparse_gradients_are_exact_for_integers(geometry, dtype):
    pads, stride, dilation, groups = GEOMETRIES[geometry]
    x, w, g = (pt.tensor4(name, dtype=dtype) for name in "xwg")
    y = conv2d(x, w, None, None, pads, stride, False, None, dilation, groups)
    f = pytensor.function([x, w, g], [*grad(None, [x, w], known_grads={y: g})], mode="NUMBA")
    rng = np.random.default_rng(3)
    # Filters that leave a vector nearly empty, fill some, and need several tiles; positions that make several
    # chunks; images fewer and more than blocks; a filter for each channel.
    for n_filters, channels, batch, lengths in (
        (2, 2, 3, (9, 8)),
        (8, 6, 2, (21, 17)),
        (10, 4, 33, (7, 9)),
        (130, 2, 2, (18, 11)),
        (36, 40, 1, (8, 7)),
        (1, 1, 2, (21, 17)),
    ):
        x_value = rng.integers(-3, 4, (batch, channels * groups, *lengths)).astype(dtype)
        w_value = rng.integers(-3, 4, (n_filters * groups, channels, 2, 3)).astype(dtype)
        spans = [(n - 1) * d + 1 for n, d in zip((2, 3), dilation, strict=True)]
        out_lengths = [
            (n + sum(pad) - span) // step + 1
            for n, pad, span, step in zip(lengths, pads, spans, stride, strict=True)
        ]
        for density in (1, 0.75, 0.25, 0):
            g_value = rng.integers(1, 4, (batch, len(w_value), *out_lengths))
            g_value = (g_value * (rng.random(g_value.shape) < density)).astype(dtype)
            results = f(x_value, w_value, g_value)
            expected = gradients(x_value, w_value, g_value, pads, stride, dilation, groups)
            for name, result, value in zip("xw", results, expected, strict=True):
                assert result.dtype == dtype
                np.testing.assert_array_equal(result, value, err_msg=f"{name} {w_value.shape} {density}")
