import itertools
import os

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.gradient import grad
from pytensor.graph.rewriting.db import RewriteDatabaseQuery

from deeplearning_tutorial.nnet import conv2d, pool_2d
from deeplearning_tutorial.nnet.conv import Conv2d, Conv2dGradFilters, Conv2dGradInput
from deeplearning_tutorial.nnet.fused.conv_pool import (
    ConvMaxPool,
    ConvMaxPoolGradFilters,
    ConvMaxPoolGradInput,
)
from deeplearning_tutorial.nnet.pool import MaxPoolGrad, Pool

FUSED = {ConvMaxPool, ConvMaxPoolGradFilters, ConvMaxPoolGradInput}
UNFUSED = {Conv2d, Conv2dGradFilters, Conv2dGradInput, Pool, MaxPoolGrad}

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

# The Ops' perform, which the rewrite leaves aside by itself.
PERFORM = Mode(linker="py", optimizer=RewriteDatabaseQuery(include=["fast_run", "conv_pool_fusion"]))

# Window, filter_flip and dtype; the kernels take all lengths as they come.
FAMILIES = list(
    itertools.product(itertools.product((1, 2, 3, 4), repeat=2), (True, False), ("float32", "float64"))
)


def on_families(native):
    """Run a test on each family through perform, and on ``native``, or all by request, with kernels.

    Numba takes half a minute for a family.
    """
    if os.environ.get("DEEPLEARNING_TUTORIAL_ALL_KERNELS"):
        native = FAMILIES

    def parameters(mode, name, families, marks=()):
        return [
            pytest.param(
                mode, ws, flip, dtype, id=f"{name}-{ws}-{'flip' if flip else 'no flip'}-{dtype}", marks=marks
            )
            for ws, flip, dtype in families
        ]

    return pytest.mark.parametrize(
        "mode, ws, flip, dtype",
        parameters("NUMBA", "NUMBA", native, pytest.mark.every_width)
        + parameters(PERFORM, "perform", FAMILIES),
    )


def convolution(x, w, flip):
    """Convolve in float64, adding one pixel of the filters after the other: equal pixels give equal sums."""
    x = x.astype("float64")
    n, k = x.shape[2:], w.shape[2:]
    y = np.zeros((len(x), len(w), n[0] - k[0] + 1, n[1] - k[1] + 1))
    for channel, row, col in np.ndindex(w.shape[1:]):
        pixel = x[:, channel, row : row + y.shape[2], col : col + y.shape[3]]
        at = (-1 - row, -1 - col) if flip else (row, col)
        y += w[:, channel, *at, np.newaxis, np.newaxis] * pixel[:, np.newaxis]
    return y


def reference(x, w, ws, flip):
    """Return the maxima of the convolution's windows, and a mask of who equals them in the convolution."""
    y = convolution(x, w, flip)
    rows, cols = y.shape[2] // ws[0], y.shape[3] // ws[1]
    maxima = np.empty((*y.shape[:2], rows, cols))
    chosen = np.zeros(y.shape, bool)
    for row, col in np.ndindex(rows, cols):
        window = (..., slice(row * ws[0], (row + 1) * ws[0]), slice(col * ws[1], (col + 1) * ws[1]))
        maxima[..., row, col] = y[window].max(axis=(-2, -1))
        chosen[window] = y[window] == maxima[..., row : row + 1, col : col + 1]
    return maxima, chosen


def reference_gradients(x, w, ws, flip, g):
    """Gradients of ``(g * maxima).sum()`` with respect to x and w; only the maxima contribute."""
    _, chosen = reference(x, w, ws, flip)
    spread = np.zeros(chosen.shape)
    for row, col in np.ndindex(g.shape[2:]):
        spread[..., row * ws[0] : (row + 1) * ws[0], col * ws[1] : (col + 1) * ws[1]] = g[
            ..., row : row + 1, col : col + 1
        ]
    spread = np.where(chosen, spread, 0)
    gx, gw = np.zeros(x.shape), np.zeros(w.shape)
    for row, col in np.ndindex(w.shape[2:]):
        inside = (..., slice(row, row + spread.shape[2]), slice(col, col + spread.shape[3]))
        at = (..., *((-1 - row, -1 - col) if flip else (row, col)))
        gx[inside] += np.tensordot(spread, w[at], (1, 0)).transpose(0, 3, 1, 2)
        gw[at] = np.tensordot(spread, x[inside], ((0, 2, 3), (0, 2, 3)))
    return gx, gw


def ops_of(function):
    return {type(node.op) for node in function.maker.fgraph.apply_nodes}


def tensors(names, dtype):
    return [pt.tensor4(name, dtype=dtype) for name in names]


def pooled_function(mode, ws, flip, dtype):
    """Compile (x, w, g) -> maxima and both gradients, of any lengths."""
    x, w, g = tensors("xwg", dtype)
    y = pool_2d(conv2d(x, w, filter_flip=flip), ws, ignore_border=True)
    f = pytensor.function([x, w, g], [y, *grad((y * g).sum(), [x, w])], mode=mode)
    assert ops_of(f) >= FUSED and not ops_of(f) & UNFUSED
    return f


def layer_function(mode, ws, flip, dtype):
    """Compile (x, w, b, g) -> tanh(maxima + b) and all gradients, of any lengths."""
    x, w, g = tensors("xwg", dtype)
    b = pt.vector("b", dtype=dtype)
    pooled = pool_2d(conv2d(x, w, filter_flip=flip), ws, ignore_border=True)
    y = pt.tanh(pooled + b.dimshuffle("x", 0, "x", "x"))
    f = pytensor.function([x, w, b, g], [y, *grad((y * g).sum(), [x, w, b])], mode=mode)
    assert ops_of(f) >= FUSED and not ops_of(f) & UNFUSED
    return f


def check_layer(f, x, w, b, g, ws, flip):
    """Compare with the reference, to a few units in the last place of the largest element."""
    maxima, _ = reference(x, w, ws, flip)
    y = np.tanh(maxima + b[:, np.newaxis, np.newaxis])
    through = g * (1 - y**2)
    gradients = reference_gradients(x, w, ws, flip, through)
    tolerance = TOLERANCE[x.dtype.name]
    for name, result, expected in zip(
        ("output", "x", "w", "b"), f(x, w, b, g), (y, *gradients, through.sum(axis=(0, 2, 3))), strict=True
    ):
        assert result.dtype == x.dtype and result.shape == expected.shape
        largest = abs(expected).max(initial=0)
        np.testing.assert_allclose(
            result,
            expected,
            rtol=tolerance,
            atol=tolerance * largest,
            err_msg=f"{name} {x.shape} {w.shape}",
        )


def lengths(rng, ws):
    """Draw the lengths of a case, as often as not 1, odd, or one off a vector's."""
    batch = rng.choice([1, 2, 3, 5, 17, 33])
    channels = rng.choice([1, 2, 3, 5, 7, 20])
    n_filters = rng.choice([1, 3, 4, 7, 8, 9, 15, 17, 20, 31, 33, 50, 64, 65, 130])
    filter_lengths = rng.integers(1, 8, 2)
    # From a single window to several with a rest.
    image = filter_lengths - 1 + ws * rng.integers(1, 5, 2) + rng.integers(ws)
    return (batch, channels, *image), (n_filters, channels, *filter_lengths)


@on_families(native=[((1, 4), False, "float64")])
def test_maxima_and_gradients_are_exact_for_integers_of_any_lengths(mode, ws, flip, dtype):
    # Small integers are added exactly in both float types, and tie everywhere.
    rng = np.random.default_rng([7, *ws, flip, dtype == "float32"])
    f = pooled_function(mode, ws, flip, dtype)
    for _ in range(60 if mode == "NUMBA" else 3):
        x_shape, w_shape = lengths(rng, ws)
        x, w = rng.integers(-3, 4, x_shape).astype(dtype), rng.integers(-3, 4, w_shape).astype(dtype)
        x[..., : x.shape[3] // 2] = 0
        maxima, _ = reference(x, w, ws, flip)
        g = rng.integers(-3, 4, maxima.shape).astype(dtype)
        expected_results = (maxima, *reference_gradients(x, w, ws, flip, g))
        for name, result, expected in zip(("maxima", "x", "w"), f(x, w, g), expected_results, strict=True):
            assert result.dtype == dtype
            np.testing.assert_array_equal(result, expected, err_msg=f"{name} {x_shape} {w_shape}")
    check_what_is_not_finite(f, ws, flip, dtype)
    check_counts_of_zero(f, ws, dtype)
    check_misfits(f, ws, dtype)


def check_what_is_not_finite(f, ws, flip, dtype):
    rng = np.random.default_rng(8)
    x, w = rng.integers(-3, 4, (2, 3, 11, 14)).astype(dtype), rng.integers(1, 4, (9, 3, 2, 3)).astype(dtype)
    x[0, 0, 2, 3], x[0, 1, 6, 9], x[1, 2, 5, 9] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        maxima, _ = reference(x, w, ws, flip)
        assert np.isnan(maxima).any() and np.isposinf(maxima).any() and np.isfinite(maxima).any()
        g = rng.integers(1, 4, maxima.shape).astype(dtype)
        expected_results = (maxima, *reference_gradients(x, w, ws, flip, g))
        results = f(x, w, g)
    for name, result, expected in zip(("maxima", "x", "w"), results, expected_results, strict=True):
        np.testing.assert_array_equal(result, expected, err_msg=name)
    # Where all pixels are zero the kernels need not look further, but for this.
    x, w = np.nan_to_num(x, nan=0, posinf=0, neginf=0), w.copy()
    x[0] = 0
    g[0, 3], w[5, 0, 0, 0] = -np.inf, np.inf
    with np.errstate(invalid="ignore"):
        maxima, _ = reference(x, w, ws, flip)
        gx, gw = reference_gradients(x, w, ws, flip, g)
        results = f(x, w, g)
    assert np.isnan(maxima[0, 5]).all() and np.isnan(gw[3]).all() and np.isnan(gx).any()
    for name, result, expected in zip(("maxima", "x", "w"), results, (maxima, gx, gw), strict=True):
        np.testing.assert_array_equal(result, expected, err_msg=name)
    # One infinite gradient reaches the pixels under the filter, and none beside it.
    w[5, 0, 0, 0], g[:] = 1, 0
    g[1, 3, 0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        gx, _ = reference_gradients(x, w, ws, flip, g)
        _, result, _ = f(x, w, g)
    assert np.isinf(gx).any() and np.isfinite(gx).any()
    np.testing.assert_array_equal(result, gx)


def check_counts_of_zero(f, ws, dtype):
    for batch, channels, n_filters in ((0, 2, 3), (2, 0, 3), (2, 3, 0)):
        x, w = np.ones((batch, channels, 9, 10), dtype), np.ones((n_filters, channels, 2, 3), dtype)
        maxima, gx, gw = f(x, w, np.ones((batch, n_filters, 8 // ws[0], 8 // ws[1]), dtype))
        assert maxima.shape == (batch, n_filters, 8 // ws[0], 8 // ws[1]) and not maxima.any()
        assert gx.shape == x.shape and not gx.any()
        assert gw.shape == w.shape and not gw.any()
    # No whole window fits where the filter does.
    x, w = np.ones((2, 3, 4, 9), dtype), np.ones((5, 3, 4, 9), dtype)
    expected = (2, 5, 1 // ws[0], 1 // ws[1])
    maxima, gx, gw = f(x, w, np.ones(expected, dtype))
    assert maxima.shape == expected and gx.shape == x.shape and gw.shape == w.shape


def check_misfits(f, ws, dtype):
    for x_shape, w_shape in (
        ((2, 4, 7, 5), (8, 3, 3, 2)),
        ((2, 4, 2, 5), (8, 4, 3, 2)),
        ((2, 4, 7, 5), (8, 4, 3, 6)),
        ((2, 4, 7, 5), (8, 4, 0, 2)),
    ):
        with pytest.raises(ValueError):
            f(np.ones(x_shape, dtype), np.ones(w_shape, dtype), np.ones((2, 8, 1, 1), dtype))


@on_families(native=[((3, 2), True, "float32")])
def test_a_layer_with_bias_and_tanh_is_the_formula(mode, ws, flip, dtype):
    rng = np.random.default_rng([9, *ws, flip, dtype == "float32"])
    f = layer_function(mode, ws, flip, dtype)
    for trial in range(20 if mode == "NUMBA" else 2):
        x_shape, w_shape = lengths(rng, ws)
        # Multiples of powers of two are added exactly, else rounding would choose among near ties.
        x = (rng.integers(-16, 17, x_shape) / 8).astype(dtype)
        # A constant background, as MNIST's, ties; so does one that is not zero.
        x[:, :, :, : x.shape[3] // 2] = (0, 0.75)[trial % 2]
        scale = 2.0 ** np.round(np.log2(np.prod(w_shape[1:])) / 2)
        w = (rng.integers(-16, 17, w_shape) / 8 / scale).astype(dtype)
        b = rng.normal(size=len(w)).astype(dtype)
        check_layer(f, x, w, b, rng.normal(size=reference(x, w, ws, flip)[0].shape).astype(dtype), ws, flip)
    # An image of 1 x 1 makes the layer tanh(x + b): over tanh's whole range, its infinite ends and NaN.
    x = np.concatenate([np.geomspace(1e-30, 100, 300), [0, np.inf, np.nan]]).astype(dtype)
    x = np.concatenate([x, -x])
    with np.errstate(invalid="ignore"):
        y = f(
            np.tile(x[:, np.newaxis, np.newaxis, np.newaxis], (1, 1, *ws)),
            np.ones((1, 1, 1, 1), dtype),
            np.zeros(1, dtype),
            np.ones((len(x), 1, 1, 1), dtype),
        )[0]
    np.testing.assert_allclose(
        y[:, 0, 0, 0], np.tanh(x.astype("float64")), rtol=8 * np.finfo(dtype).eps, atol=0
    )


# With vectors of every width in double precision alone: that has the fewest elements in one.
@pytest.fixture(
    scope="module", params=["float32", pytest.param("float64", marks=pytest.mark.every_width)]
)
def in_tiles(request):
    """Compile (x, w, g) -> maxima and both gradients, for windows that are Winograd's tiles."""
    return pooled_function("NUMBA", (2, 2), True, request.param), request.param


# Of x and w. All tiles in one band, several bands with a rest, and more than a band's in one row.
WINOGRAD_SHAPES = [
    ((3, 20, 15, 17), (31, 20, 5, 5)),
    ((2, 21, 27, 32), (9, 21, 5, 5)),
    ((1, 19, 7, 79), (50, 19, 5, 5)),
    ((18, 130, 6, 6), (1, 130, 5, 5)),
    # No window fits.
    ((2, 20, 5, 9), (3, 20, 5, 5)),
    ((2, 20, 9, 5), (3, 20, 5, 5)),
]


@pytest.mark.parametrize("x_shape, w_shape", WINOGRAD_SHAPES)
def test_winograds_filtering_is_exact_for_small_integers(in_tiles, x_shape, w_shape):
    f, dtype = in_tiles
    rng = np.random.default_rng(len(w_shape) + w_shape[1])
    x, w = rng.integers(-3, 4, x_shape).astype(dtype), rng.integers(-3, 4, w_shape).astype(dtype)
    x[..., : x.shape[3] // 2] = 0
    maxima, _ = reference(x, w, (2, 2), True)
    g = rng.integers(-3, 4, maxima.shape).astype(dtype)
    expected_results = (maxima, *reference_gradients(x, w, (2, 2), True, g))
    for name, result, expected in zip(("maxima", "x", "w"), f(x, w, g), expected_results, strict=True):
        np.testing.assert_array_equal(result, expected, err_msg=name)


@pytest.mark.parametrize("constant_along", [(3,), (2,), (2, 3)])
def test_winograds_filtering_ties_where_pixels_repeat(in_tiles, constant_along):
    f, dtype = in_tiles
    rng = np.random.default_rng(10)
    # No multiples of powers of two: rounding would tell apart what is not computed alike.
    x = rng.normal(size=(4, 20, *(1 if axis in constant_along else 12 for axis in (2, 3))))
    x = np.broadcast_to(x, (4, 20, 12, 12)).astype(dtype)
    w = rng.normal(size=(50, 20, 5, 5)).astype(dtype)
    maxima, chosen = reference(x, w, (2, 2), True)
    assert chosen.mean() == 0.25 * 2 ** len(constant_along)
    g = rng.normal(size=maxima.shape).astype(dtype)
    expected_results = (maxima, *reference_gradients(x, w, (2, 2), True, g))
    for name, result, expected in zip(("maxima", "x", "w"), f(x, w, g), expected_results, strict=True):
        largest = abs(expected).max()
        np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE[dtype] * largest, err_msg=name)


def test_winograds_filtering_gives_bitwise_the_same_on_one_thread(in_tiles):
    f, dtype = in_tiles
    rng = np.random.default_rng(13)
    x, w, g = (rng.normal(size=s).astype(dtype) for s in ((70, 20, 12, 12), (50, 20, 5, 5), (70, 50, 4, 4)))
    expected_results = f(x, w, g)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        results = f(x, w, g)
    finally:
        numba.set_num_threads(threads)
    for result, expected in zip(results, expected_results, strict=True):
        assert result.tobytes() == expected.tobytes()


def test_winograds_filtering_leaves_what_is_not_finite_where_it_is(in_tiles):
    f, dtype = in_tiles
    rng = np.random.default_rng(11)
    x, w = rng.integers(-3, 4, (3, 20, 12, 14)).astype(dtype), rng.integers(1, 4, (9, 20, 5, 5)).astype(dtype)
    x[0, 0, 2, 3], x[0, 1, 6, 9], x[1, 2, 5, 9] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        maxima, _ = reference(x, w, (2, 2), True)
    assert np.isnan(maxima).any() and np.isposinf(maxima).any() and np.isfinite(maxima[:2]).any()
    np.testing.assert_array_equal(f(x, w, np.zeros_like(maxima, dtype))[0], maxima)


def test_winograds_filtering_takes_all_that_a_plain_sum_takes(in_tiles):
    f, dtype = in_tiles
    rng = np.random.default_rng(12)
    x, w = rng.uniform(0.5, 1, (2, 20, 8, 8)).astype(dtype), rng.uniform(0.5, 1, (5, 20, 5, 5)).astype(dtype)
    maxima, _ = reference(x, w, (2, 2), True)
    # The largest sum comes near the largest number.
    scale = 2.0 ** np.floor(np.log2(np.finfo(dtype).max) - np.log2(maxima.max()))
    y, *_ = f(x * np.asarray(scale, dtype), w, np.zeros_like(maxima, dtype))
    np.testing.assert_allclose(y.astype("float64") / scale, maxima, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("known", [True, False])
def test_shapes_are_known_without_convolving(known):
    shapes = (2, 4, 17, 14), (8, 4, 3, 2)
    x, w = (pt.tensor(dtype="float32", shape=shape if known else (None,) * 4) for shape in shapes)
    y, mask = ConvMaxPool(True, (3, 2))(x, w)
    gradients = [
        op_class(True, (3, 2))(x, w, mask, y, return_list=True)[0]
        for op_class in (ConvMaxPoolGradInput, ConvMaxPoolGradFilters)
    ]
    if known:
        assert [v.type.shape for v in (y, *gradients)] == [(2, 8, 5, 6), *shapes]
    f = pytensor.function([x, w], [v.shape for v in (y, *gradients)], mode=PERFORM, on_unused_input="ignore")
    assert not ops_of(f) & FUSED
    results = f(*(np.ones(shape, "float32") for shape in shapes))
    assert [tuple(shape) for shape in results] == [(2, 8, 5, 6), *shapes]
