"""Each pooling's values and gradients against plain loops over the windows, on every back end."""

from functools import partial

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.gradient import verify_grad
from scipy.stats import chisquare

from deeplearning_tutorial.nnet import (
    average_pool,
    deformation_constrained_pool,
    l2_pool,
    max_pool,
    stochastic_pool,
    sum_pool,
)

# Op by Op, without compiling.
PLAIN = Mode(linker="py", optimizer=None)
GEOMETRIES = {
    "side by side": {"ws": (2, 3)},
    "overlapping": {"ws": (3, 2), "stride": (2, 1)},
    "overlapping, padded": {"ws": (4, 3), "stride": (1, 2), "pad": (2, 1)},
    "apart": {"ws": (1, 2), "stride": (3, 4)},
}
SHAPE = (2, 3, 8, 7)
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def maximum(x, _uniform, _coefficients):
    return x.max(), x == x.max()


def average(x, _uniform, _coefficients):
    return x.mean(), np.full_like(x, 1 / x.size)


def total(x, _uniform, _coefficients):
    return x.sum(), np.ones_like(x)


def l2(x, _uniform, _coefficients):
    norm = np.sqrt((x**2).sum())
    return norm, x / norm if norm else 0 * x


def weighted(x, _uniform, _coefficients):
    a = np.maximum(x, 0)
    if not a.any():
        return 0, 0 * x
    value = (a**2).sum() / a.sum()
    return value, (2 * a - value) / a.sum() * (x > 0)


def sampled(x, uniform, _coefficients):
    a = np.maximum(x, 0)
    if not a.any():
        return 0, 0 * x
    chosen = np.argmax(a / -np.log(uniform))
    weights = np.zeros(x.size)
    weights[chosen] = 1
    return a.flat[chosen], weights.reshape(x.shape)


NOT_COMPILED = {
    ("cvm", "weighted", "side by side"),
    ("cvm", "deformation", "overlapping, padded"),
    ("NUMBA", "weighted", "side by side"),
    ("NUMBA", "deformation", "overlapping, padded"),
}
BUILDS = {
    "max": (max_pool, maximum),
    "average": (average_pool, average),
    "sum": (sum_pool, total),
    "l2": (l2_pool, l2),
    "weighted": (stochastic_pool, weighted),
    "sampled": (stochastic_pool, sampled),
    "deformation": (deformation_constrained_pool, None),
}


def reference(kind, x, g, uniform, coefficients, ws, stride=None, pad=(0, 0)):
    """Return the output, and the gradient of its sum times g with respect to x, and to the coefficients."""
    stride = ws if stride is None else stride
    gradient, paid = np.zeros_like(x), np.zeros_like(coefficients)
    lengths = [(n + 2 * p - w) // s + 1 for n, w, s, p in zip(x.shape[2:], ws, stride, pad, strict=True)]
    output = np.empty((*x.shape[:2], *lengths))
    for image, n, row, col in np.ndindex(*output.shape):
        top, left = row * stride[0] - pad[0], col * stride[1] - pad[1]
        places = [
            (r, c)
            for r in range(top, top + ws[0])
            for c in range(left, left + ws[1])
            if 0 <= r < x.shape[2] and 0 <= c < x.shape[3]
        ]
        rows, cols = np.transpose(places)
        window = x[image, n, rows, cols]
        arriving = g[image, n, row, col] if g is not None else 0
        if kind == "deformation":
            dx, dy = cols - left - (ws[1] - 1) / 2, rows - top - (ws[0] - 1) / 2
            features = np.array([dx, dy, dx**2, dy**2])
            penalised = window - coefficients[n] @ features
            value, weights = maximum(penalised, None, None)
            paid[n] -= arriving * (features * weights).sum(axis=1)
        else:
            value, weights = BUILDS[kind][1](window, uniform[image, n, rows, cols], None)
        output[image, n, row, col] = value
        gradient[image, n, rows, cols] += weights * arriving
    return output, gradient, paid


def arrays_for(kind, options, dtype):
    rng = np.random.default_rng(len(kind))
    x = rng.normal(size=SHAPE)
    # Windows without a positive element, and of zeros only.
    x[0, 0, :5], x[1, 2] = -abs(x[0, 0, :5]), 0
    if kind == "max":
        # Ties.
        x = rng.integers(-2, 3, SHAPE)
    uniform, coefficients = rng.uniform(0.001, 0.999, SHAPE), rng.normal(size=(3, 4)) / 4
    arrays = [array.astype(dtype) for array in (x, uniform, coefficients)]
    shape = reference(kind, *arrays[:1], None, *arrays[1:], **options)[0].shape
    return [*arrays, rng.normal(size=shape).astype(dtype)]


def graph(kind, options, x, uniform, coefficients):
    if kind == "sampled":
        options = options | {"uniform": uniform}
    if kind == "deformation":
        options = options | {"coefficients": coefficients}
    return BUILDS[kind][0](x, **options)


def check(mode, kind, options, dtype, known):
    x, uniform, coefficients, g = arrays = arrays_for(kind, options, dtype)
    symbols = [
        pt.tensor(dtype=dtype, shape=array.shape if known else (None,) * array.ndim) for array in arrays
    ]
    y = graph(kind, options, *symbols[:3])
    wrt = [symbols[0], symbols[2]] if kind == "deformation" else [symbols[0]]
    outputs = [y, *pytensor.grad(None, wrt, known_grads={y: symbols[3]})]
    f = pytensor.function(symbols, outputs, mode=mode, on_unused_input="ignore")
    in_float64 = (array.astype("float64") for array in (x, g, uniform, coefficients))
    for result, expected in zip(f(*arrays), reference(kind, *in_float64, **options), strict=False):
        result = np.asarray(result)
        assert result.shape == expected.shape
        # In JAX PyTensor's sums, here that over the windows, give float64 whatever their type says.
        assert result.dtype == dtype or mode == "JAX" and result.ndim == 2
        np.testing.assert_allclose(result, expected, TOLERANCE[dtype], 10 * TOLERANCE[dtype])


@pytest.mark.parametrize("mode", ["py"], indirect=True)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", BUILDS)
def test_values_and_gradients_are_those_of_loops_over_the_windows(mode, kind, geometry):
    for dtype, known in (("float32", True), ("float64", False)):
        check(mode, kind, GEOMETRIES[geometry], dtype, known)


@pytest.mark.parametrize(
    "mode, kind, geometry, dtype",
    [
        (mode, kind, geometry, dtype)
        for mode in ("cvm", "NUMBA", "JAX", "PYTORCH")
        for kind, geometry, dtype in (
            ("l2", "overlapping", "float32"),
            ("weighted", "side by side", "float64"),
            ("sampled", "overlapping, padded", "float32"),
            ("deformation", "side by side", "float32"),
            ("deformation", "overlapping, padded", "float64"),
        )
        # Compiling takes seconds, with Numba half a minute for some.
        if mode in ("JAX", "PYTORCH") or (mode, kind, geometry) not in NOT_COMPILED
    ],
    indirect=["mode"],
)
def test_other_back_ends_give_the_same(mode, kind, geometry, dtype):
    check(mode, kind, GEOMETRIES[geometry], dtype, known=True)


@pytest.mark.parametrize("kind", ["average", "sum", "l2", "weighted", "deformation"])
def test_gradients_are_those_of_finite_differences(kind):
    rng = np.random.default_rng(3)
    x, coefficients = rng.uniform(0.1, 1, (1, 3, 5, 4)), rng.normal(size=(3, 4)) / 4
    build = partial(graph, kind, GEOMETRIES["overlapping"])
    if kind == "deformation":
        verify_grad(lambda x, c: build(x, None, c), [x, coefficients], rng=rng, mode=PLAIN)
    else:
        verify_grad(lambda x: build(x, None, None), [x], rng=rng, mode=PLAIN)


def of_four_by_four(build, **options):
    """Pool windows of 2x2; return the four values, and the gradient of their sum."""
    x = pt.dtensor4()
    y = build(x, (2, 2), **options)
    f = pytensor.function([x], [y, pytensor.grad(y.sum(), x)], mode=PLAIN)
    value = [[[[3, 4, 0, 0], [0, 0, 0, 0], [1, 2, -1, -2], [3, 2, -3, 5]]]]
    return [result[0, 0].tolist() for result in f(value)]


# Of the windows (3, 4, 0, 0), (0, 0, 0, 0), (1, 2, 3, 2) and (-1, -2, -3, 5).
def test_l2_pooling_by_hand_has_no_gradient_where_all_is_zero():
    values, gradient = of_four_by_four(l2_pool)
    assert values[0] == [5, 0] and values[1] == pytest.approx([18**0.5, 39**0.5])
    assert gradient[0] == pytest.approx([0.6, 0.8, 0, 0]) and gradient[1] == [0, 0, 0, 0]
    assert gradient[3] == pytest.approx([3 / 18**0.5, 2 / 18**0.5, -3 / 39**0.5, 5 / 39**0.5])


def test_the_weighted_average_by_hand_leaves_out_what_is_negative():
    values, gradient = of_four_by_four(stochastic_pool)
    assert values == [[pytest.approx(25 / 7), 0], [pytest.approx(18 / 8), 5]]
    # (2 a - value) / sum
    assert gradient[0] == pytest.approx([(6 - 25 / 7) / 7, (8 - 25 / 7) / 7, 0, 0])
    assert gradient[1] == [0, 0, 0, 0] and gradient[3][2:] == [0, 1]


def test_the_penalty_by_hand_moves_the_maximum_towards_the_centre():
    # A window of 1x3: its centre costs nothing, to the left costs 2 - 1 = 1, to the right 2 + 1 = 3.
    x, c = pt.dtensor4(), pt.dmatrix()
    y = deformation_constrained_pool(x, (1, 3), stride=(1, 2), coefficients=c)
    f = pytensor.function([x, c], [y, *pytensor.grad(y.sum(), [x, c])], mode=PLAIN)
    y, gx, gc = f([[[[8, 5, 9, 8, 5]]]], [[1, 0, 2, 0]])
    assert y.tolist() == [[[[7, 8]]]]
    # In the second window 9 - 1 and 8 tie, and both receive the gradient; two were displaced to the left.
    assert gx.tolist() == [[[[1, 0, 1, 1, 0]]]]
    assert gc.tolist() == [[2, 0, -2, 0]]


def test_samples_are_as_frequent_as_probable_and_receive_the_gradient():
    window = np.array([[1.0, 2, -3], [0, 4, 3]])
    x, uniform = pt.dtensor4(), pt.dtensor4()
    y = stochastic_pool(x, (2, 3), uniform=uniform)
    f = pytensor.function([x, uniform], [y, pytensor.grad(y.sum(), x)], mode=PLAIN)
    n = 20_000
    drawn = np.random.default_rng(5).random((1, n, 2, 3))
    values, gradient = f(np.broadcast_to(window, drawn.shape), drawn)
    counts = gradient.sum(axis=(0, 1))
    assert counts[0, 2] == counts[1, 0] == 0 and gradient.sum(axis=(2, 3)).tolist() == [[1] * n]
    np.testing.assert_array_equal((gradient * window).sum(axis=(2, 3)), values[:, :, 0, 0])
    observed = counts[[0, 0, 1, 1], [0, 1, 1, 2]]
    assert chisquare(observed, n * np.array([0.1, 0.2, 0.4, 0.3])).pvalue > 0.01


@pytest.mark.parametrize("u", [0.0, 1.0])
def test_random_numbers_at_the_very_ends_give_no_nan(u):
    x = np.array([[[[0.0, 2], [0, 0]]]], "float32")
    y = stochastic_pool(x, (2, 2), uniform=np.full_like(x, u))
    assert y.eval(mode=PLAIN).tolist() == [[[[2]]]]


@pytest.mark.parametrize("options", [{}, {"uniform": np.full((1, 1, 2, 4), 0.5)}])
def test_a_nan_is_not_lost(options):
    x = np.array([[[[np.nan, 1, 2, 2], [1, 1, 1, 1]]]])
    y = stochastic_pool(x, (2, 2), **options).eval(mode=PLAIN)
    assert np.isnan(y).tolist() == [[[[True, False]]]]


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: l2_pool(pt.dmatrix(), (2, 2)), TypeError, "input has 2 dimensions; l2_pool takes"),
        (lambda: sum_pool(pt.ltensor4(), (2, 2)), TypeError, "dtype int64"),
        (lambda: average_pool(pt.dtensor4(), 2), ValueError, "ws=2 is not a pair"),
        (lambda: max_pool(pt.dtensor4(), (2, 2), (0, 1)), ValueError, r"stride=\(0, 1\) is smaller than 1"),
        (
            lambda: stochastic_pool(pt.dtensor4(), (2, 2), uniform=pt.dmatrix()),
            ValueError,
            "uniform has 2 dimensions; give a number for each element",
        ),
        (
            lambda: deformation_constrained_pool(pt.dtensor4(), (2, 2), coefficients=np.ones((3, 2))),
            ValueError,
            "give four numbers for each map",
        ),
        (
            lambda: deformation_constrained_pool(pt.dtensor4(), pt.lvector(), coefficients=np.ones((3, 4))),
            TypeError,
            "ws, stride or pad is symbolic",
        ),
    ],
)
def test_wrong_arguments_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
