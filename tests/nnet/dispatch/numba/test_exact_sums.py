"""The kernels choose other ways for some shapes, and where most of the output gradient is not zero."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from pytensor.gradient import grad

from deeplearning_tutorial.nnet import conv2d

# Filter rows and columns, padding, stride, dilation and groups.
GEOMETRIES = {
    "plain": ((2, 3), ((0, 0), (0, 0)), (1, 1), (1, 1), 1),
    "groups, dilation, padding": ((2, 3), ((1, 0), (2, 3)), (1, 1), (2, 1), 2),
    "stride": ((2, 3), ((0, 2), (1, 1)), (3, 2), (1, 2), 1),
    "more padding than the filter is long": ((2, 3), ((5, 0), (0, 1)), (1, 1), (1, 1), 1),
    "one pixel, groups": ((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 2),
    "one pixel, padding": ((1, 1), ((0, 1), (0, 0)), (1, 1), (1, 1), 1),
}


def expected_results(x, w, g, pads, stride, dilation, groups):
    """The correlation and its gradients with respect to x and w, window by window."""
    padded = np.pad(x, ((0, 0), (0, 0), *pads))
    y, gx, gw = np.zeros(g.shape), np.zeros(padded.shape), np.zeros(w.shape)
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
        y[:, of_filters] = np.einsum("bcijrs,kcrs->bkij", views[0], w[of_filters], optimize=True)
        gw[of_filters] = np.einsum("bkij,bcijrs->kcrs", here, views[0], optimize=True)
        shares = np.einsum("bkij,kcrs->bcijrs", here, w[of_filters], optimize=True)
        for row, col in np.ndindex(g.shape[2:]):
            views[1][:, of_channels, row, col] += shares[:, :, row, col]
    (top, _), (left, _) = pads
    return y, gx[:, :, top : top + x.shape[2], left : left + x.shape[3]], gw


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_and_dense_and_sparse_gradients_are_exact_for_integers(geometry, dtype):
    lengths_of_filter, *options = GEOMETRIES[geometry]
    pads, stride, dilation, groups = options
    x, w, g = (pt.tensor4(name, dtype=dtype) for name in "xwg")
    y = conv2d(x, w, None, None, pads, stride, False, None, dilation, groups)
    f = pytensor.function([x, w, g], [y, *grad(None, [x, w], known_grads={y: g})], mode="NUMBA")
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
        w_value = rng.integers(-3, 4, (n_filters * groups, channels, *lengths_of_filter)).astype(dtype)
        spans = [(n - 1) * d + 1 for n, d in zip(lengths_of_filter, dilation, strict=True)]
        out_lengths = [
            (n + sum(pad) - span) // step + 1
            for n, pad, span, step in zip(lengths, pads, spans, stride, strict=True)
        ]
        for density in (1, 0.75, 0.25, 0):
            g_value = rng.integers(1, 4, (batch, len(w_value), *out_lengths))
            g_value = (g_value * (rng.random(g_value.shape) < density)).astype(dtype)
            results = f(x_value, w_value, g_value)
            expected = expected_results(x_value, w_value, g_value, *options)
            for name, result, value in zip("yxw", results, expected, strict=True):
                assert result.dtype == dtype
                np.testing.assert_array_equal(result, value, err_msg=f"{name} {w_value.shape} {density}")
