import inspect
import itertools

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import strategies as st
from pytensor.gradient import DisconnectedInputError, grad, pushforward, verify_grad

from deeplearning_tutorial import nnet
from deeplearning_tutorial.nnet import pool_2d
from deeplearning_tutorial.nnet.pool import (
    AveragePoolGrad,
    MaxPoolGrad,
    MaxPoolGradGrad,
    Pool,
    pool_output_length,
)

RNG = np.random.default_rng(6)
INPUT_SHAPE = (2, 3, 16, 11)
POOL_MODES = ("max", "sum", "average_inc_pad", "average_exc_pad")

# The arguments besides mode, for input of INPUT_SHAPE.
CASES = {
    "rest dropped": {"ws": (3, 2), "ignore_border": True},
    "rest pooled": {"ws": (3, 2), "ignore_border": False},
    "7 x 5": {"ws": (7, 5), "ignore_border": True},
    "larger than input, dropped": {"ws": (17, 2), "ignore_border": True},
    "larger than input, pooled": {"ws": (17, 2), "ignore_border": False},
    "overlapping": {"ws": (4, 3), "ignore_border": True, "stride": (3, 1)},
    "overlapping, rest pooled": {"ws": (4, 3), "ignore_border": False, "stride": (3, 2)},
    "overlapping 7 x 5, rest pooled": {"ws": (7, 5), "ignore_border": False, "stride": (4, 3)},
    "apart": {"ws": (2, 3), "ignore_border": True, "stride": (3, 5)},
    "apart, rest pooled": {"ws": (2, 3), "ignore_border": False, "stride": (5, 4)},
    "padding": {"ws": (3, 4), "ignore_border": True, "pad": (2, 1)},
    "padding, overlapping": {"ws": (4, 3), "ignore_border": True, "stride": (2, 1), "pad": (1, 2)},
}
FEW_CASES = ("rest pooled", "7 x 5", "overlapping, rest pooled", "padding, overlapping")


def with_ties(shape, dtype="float64"):
    return RNG.integers(-2, 3, shape).astype(dtype)


def without_ties(shape):
    """Return normal values that lie at least 0.1 apart, further than verify_grad moves them."""
    return RNG.permutation(np.prod(shape)).reshape(shape) / 10


def windows_of_axis(length, window, stride, pad, ignore_border):
    """Part of each window that lies inside, as slices."""
    if ignore_border:
        starts = range(-pad, length + pad - window + 1, stride)
    else:
        starts = [0]
        while starts[-1] + max(window, stride) < length:
            starts.append(starts[-1] + stride)
    return [slice(max(start, 0), min(start + window, length)) for start in starts]


def windows_of_axes(shape, ws, ignore_border, stride=None, pad=(0, 0)):
    parameters = zip(shape[-2:], ws, stride or ws, pad, strict=True)
    return [windows_of_axis(*of_axis, ignore_border) for of_axis in parameters]


def windows(shape, **options):
    """Yield each window's position in the output, and its rows and columns in the input."""
    all_rows, all_cols = windows_of_axes(shape, **options)
    for (row, rows), (col, cols) in itertools.product(enumerate(all_rows), enumerate(all_cols)):
        yield (..., row, col), (..., rows, cols)


def divisor(mode, window, ws, ignore_border, **_):
    """By how many a window's sum is divided."""
    if mode == "sum":
        return 1
    return np.prod(ws) if mode == "average_inc_pad" and ignore_border else window.shape[-2] * window.shape[-1]


def reference(x, mode="max", **options):
    """Pool window by window."""
    lengths = [len(of_axis) for of_axis in windows_of_axes(x.shape, **options)]
    y = np.zeros((*x.shape[:-2], *lengths), x.dtype)
    for position, inside in windows(x.shape, **options):
        window = x[inside]
        if mode == "max":
            y[position] = window.max(axis=(-2, -1))
        else:
            y[position] = window.sum(axis=(-2, -1)) / divisor(mode, window, **options)
    return y


def reference_gradient(x, g, mode="max", **options):
    """Gradient of ``(g * reference(x)).sum()``; each of the tied maxima receives all of its window's."""
    gradient = np.zeros_like(x)
    for position, inside in windows(x.shape, **options):
        window, passed_on = x[inside], g[position][..., np.newaxis, np.newaxis]
        if mode == "max":
            gradient[inside] += (window == window.max(axis=(-2, -1), keepdims=True)) * passed_on
        else:
            gradient[inside] += passed_on / divisor(mode, window, **options)
    return gradient


def ops_of(function):
    return {type(node.op) for node in function.maker.fgraph.apply_nodes}


def test_every_tied_maximum_receives_the_whole_gradient_by_hand(mode):
    x = pt.matrix("x", dtype="float64")
    g = pt.matrix("g", dtype="float64")
    y = pool_2d(x, (2, 2), ignore_border=False)
    f = pytensor.function([x, g], [y, grad((y * g).sum(), x)], mode=mode)
    output, gradient = f(
        [[3.0, 3, 0, 1, 5], [3, 2, 0, 0, 5], [7, 7, -1, -2, 4]],
        [[10.0, 20, 30], [40, 50, 60]],
    )
    np.testing.assert_array_equal(output, [[3, 1, 5], [7, -1, 4]])
    np.testing.assert_array_equal(gradient, [[10, 10, 0, 20, 30], [10, 0, 0, 0, 30], [40, 40, 50, 0, 60]])


@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_the_gradients_of_overlapping_windows_add_up_by_hand(mode):
    x, g = pt.matrix("x", dtype="float64"), pt.matrix("g", dtype="float64")
    y = pool_2d(x, (1, 3), ignore_border=True, stride=(1, 1))
    f = pytensor.function([x, g], [y, grad((y * g).sum(), x)], mode=mode)
    output, gradient = f([[0.0, 4, 4, 1, 2]], [[1.0, 10, 100]])
    np.testing.assert_array_equal(output, [[4, 4, 4]])
    # The first 4 is in windows 1 and 2, the second in all three.
    np.testing.assert_array_equal(gradient, [[0, 11, 111, 0, 0]])


@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_what_averages_divide_by_at_a_border_by_hand(mode):
    x = pt.matrix("x", dtype="float64")
    padded = {"ws": (1, 2), "ignore_border": True, "pad": (0, 1)}
    rest = {"ws": (1, 2), "ignore_border": False}
    f = pytensor.function(
        [x],
        [
            pool_2d(x, mode=pool_mode, **options)
            for options in (padded, rest)
            for pool_mode in ("average_inc_pad", "average_exc_pad")
        ],
        mode=mode,
    )
    including, excluding, *of_rest = f([[2.0, 4, 6]])
    np.testing.assert_array_equal(including, [[1, 5]])
    np.testing.assert_array_equal(excluding, [[2, 5]])
    for averages in of_rest:
        np.testing.assert_array_equal(averages, [[3, 6]])


@pytest.mark.parametrize(
    "pool_modes, dtype, known",
    [
        (["max"], "float64", False),
        (["max"], "float32", True),
        (["average_exc_pad"], "float64", True),
        (["sum", "average_inc_pad"], "float32", False),
    ],
)
def test_values_and_gradients_are_those_of_each_window(mode, every_case, pool_modes, dtype, known):
    # The cases share one function, since each function takes Numba a while to compile.
    cases = list(itertools.product(pool_modes, CASES if every_case else FEW_CASES))
    x_value = with_ties(INPUT_SHAPE, dtype)
    x = pt.tensor(dtype=dtype, shape=INPUT_SHAPE if known else (None,) * 4)
    arrays, symbols, outputs, expected_results = [], [], [], []
    for pool_mode, case in cases:
        y_value = reference(x_value, pool_mode, **CASES[case])
        g_value = RNG.integers(1, 100, y_value.shape).astype(dtype)
        y = pool_2d(x, mode=pool_mode, **CASES[case])
        assert y.type.shape == (y_value.shape if known else (None,) * 4)
        g = y.type()
        symbols.append(g)
        arrays.append(g_value)
        outputs += [y, grad((y * g).sum(), x)]
        expected_results += [
            y_value,
            reference_gradient(x_value, g_value, pool_mode, **CASES[case]),
        ]
    f = pytensor.function([x, *symbols], outputs, mode=mode)
    for name, result, expected in zip(
        itertools.product(cases, ("output", "gradient")), f(x_value, *arrays), expected_results, strict=True
    ):
        assert result.dtype == dtype
        np.testing.assert_allclose(
            result, expected, rtol=1e-14 if dtype == "float64" else 1e-6, err_msg=str(name)
        )


@pytest.mark.parametrize(
    "mode, dtype", [("py", "float32"), ("py", "float64"), ("NUMBA", "float32")], indirect=["mode"]
)
def test_nan_and_infinity_are_as_numpys_maximum(mode, dtype):
    nan, inf = np.nan, np.inf
    x_value = np.array([[nan, 1, 2, nan, -inf, -inf, inf, 3], [0, 1, 2, 3, -inf, -inf, inf, nan]], dtype)
    x = pt.matrix(dtype=dtype)
    outputs = []
    for options in ({}, {"stride": (2, 2), "pad": (0, 1)}):
        y = pool_2d(x, (2, 2), ignore_border=True, **options)
        outputs += [y, grad(y.sum(), x)]
    output, gradient, padded, padded_gradient = pytensor.function([x], outputs, mode=mode)(x_value)
    np.testing.assert_array_equal(output, [[nan, nan, -inf, nan]])
    # A NaN equals nothing; -inf and inf are maxima like any other.
    np.testing.assert_array_equal(gradient, [[0] * 4 + [1] * 2 + [0] * 2, [0] * 4 + [1] * 2 + [0] * 2])
    np.testing.assert_array_equal(padded, [[nan, 2, nan, inf, nan]])
    np.testing.assert_array_equal(padded_gradient, [[0, 0, 1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 1, 0]])


@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_padding_never_is_the_maximum(mode):
    x = pt.matrix(dtype="float64")
    y = pool_2d(x, (2, 2), ignore_border=True, pad=(1, 1))
    f = pytensor.function([x], [y, grad(y.sum(), x)], mode=mode)
    output, gradient = f(np.full((3, 3), -5.0))
    np.testing.assert_array_equal(output, np.full((2, 2), -5))
    np.testing.assert_array_equal(gradient, np.ones((3, 3)))


@pytest.mark.parametrize("pool_mode", POOL_MODES)
@pytest.mark.parametrize("case", ["rest dropped", "overlapping, rest pooled", "padding, overlapping"])
@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_first_and_second_gradients_agree_with_differences(mode, pool_mode, case):
    x = without_ties((2, 7, 5))

    def output(x):
        return pool_2d(x, mode=pool_mode, **CASES[case])

    for function in (output, lambda x: grad((output(x) ** 2).sum(), x)):
        verify_grad(function, [x], rng=np.random.default_rng(2), mode=mode, eps=1e-3)


def test_second_gradients_and_forward_mode_are_the_same_on_each_back_end(mode):
    # With ties, where differences say nothing: the tied maxima of a window count together.
    x_value, v_value = with_ties((2, 3, 7, 5)), with_ties((2, 3, 7, 5))
    x, v = pt.tensor4(dtype="float64"), pt.tensor4(dtype="float64")
    y = pool_2d(x, (3, 2), ignore_border=False)
    product = grad((grad((y**2).sum(), x) * v).sum(), x)
    moved = [pushforward(y, x, v, use_op_pushforward=direct) for direct in (True, False)]
    hessian_product, *tangents = pytensor.function([x, v], [product, *moved], mode=mode)(x_value, v_value)
    expected = np.zeros((2, 3, 3, 3))
    expected_product = np.zeros_like(x_value)
    for position, inside in windows(x_value.shape, ws=(3, 2), ignore_border=False):
        chosen = x_value[inside] == x_value[inside].max(axis=(-2, -1), keepdims=True)
        expected[position] = (chosen * v_value[inside]).sum(axis=(-2, -1))
        expected_product[inside] = 2 * chosen * expected[position][..., np.newaxis, np.newaxis]
    np.testing.assert_array_equal(hessian_product, expected_product)
    for tangent in tangents:
        np.testing.assert_array_equal(tangent, expected)


@pytest.mark.parametrize("pool_mode", POOL_MODES[1:])
@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_forward_mode_of_the_linear_modes_is_themselves(mode, pool_mode):
    x_value, v_value = with_ties((2, 7, 5)), with_ties((2, 7, 5))
    x, v = pt.tensor3(dtype="float64"), pt.tensor3(dtype="float64")
    y = pool_2d(x, mode=pool_mode, **CASES["padding, overlapping"])
    for direct in (True, False):
        moved = pushforward(y, x, v, use_op_pushforward=direct)
        f = pytensor.function([x, v], moved, mode=mode, on_unused_input="ignore")
        np.testing.assert_allclose(
            f(x_value, v_value), reference(v_value, pool_mode, **CASES["padding, overlapping"]), rtol=1e-14
        )


@pytest.mark.parametrize(
    "mode, pool_mode",
    [*(("py", pool_mode) for pool_mode in POOL_MODES), ("NUMBA", "max"), ("NUMBA", "average_inc_pad")],
    indirect=["mode"],
)
def test_window_stride_and_padding_may_be_symbolic(mode, pool_mode):
    x_value = with_ties(INPUT_SHAPE)
    x = pt.tensor4(dtype="float64")
    ws, stride, pad = pt.lvector("ws"), pt.ivector("stride"), pt.lvector("pad")
    y = pool_2d(x, ws, True, stride, pad, mode=pool_mode)
    rest = pool_2d(x, ws, False, mode=pool_mode)
    assert y.type.shape == (None,) * 4
    outputs = [v for pooled in (y, rest) for v in (pooled, grad(pooled.sum(), x), pooled.shape)]
    f = pytensor.function([x, ws, stride, pad], outputs, mode=mode)
    for case in ("padding, overlapping", "overlapping", "apart"):
        options = {"stride": CASES[case]["ws"], "pad": (0, 0)} | CASES[case]
        results = iter(f(x_value, options["ws"], options["stride"], options["pad"]))
        for used in (options, {"ws": options["ws"], "ignore_border": False}):
            expected = reference(x_value, pool_mode, **used)
            np.testing.assert_allclose(next(results), expected, rtol=1e-14)
            np.testing.assert_allclose(
                next(results),
                reference_gradient(x_value, np.ones_like(expected), pool_mode, **used),
                rtol=1e-14,
            )
            assert tuple(next(results)) == expected.shape


@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_one_parameter_may_be_symbolic_alone(mode):
    x_value = with_ties(INPUT_SHAPE)
    x, stride = pt.tensor4(dtype="float64"), pt.lvector()
    y = pool_2d(x, (4, 3), True, stride, (1, 2))
    f = pytensor.function([x, stride], y, mode=mode)
    np.testing.assert_array_equal(f(x_value, [2, 1]), reference(x_value, **CASES["padding, overlapping"]))


def test_constant_vectors_are_as_good_as_tuples():
    x = pt.tensor4(dtype="float32")
    for ws in (pt.constant([3, 2]), np.array([3, 2]), [3, 2], (np.int8(3), 2)):
        assert pool_2d(x, ws, True).owner.op == Pool("max", True, (3, 2), (3, 2), (0, 0))


def test_symbolic_parameters_are_disconnected():
    x, ws = pt.matrix(dtype="float64"), pt.lvector()
    with pytest.raises(DisconnectedInputError):
        grad(pool_2d(x, ws, True).sum(), ws)


@pytest.mark.parametrize(
    "values, error, message",
    [
        ({"ws": [2, 2, 2]}, ValueError, "ws=.* has 3 elements"),
        ({"ws": [0, 2]}, ValueError, r"ws=\(0, 2\) is smaller than 1"),
        ({"stride": [1, 0]}, ValueError, r"stride=\(1, 0\) is smaller than 1"),
        ({"pad": [-1, 0]}, ValueError, r"pad=\(-1, 0\) is smaller than 0"),
        ({"pad": [0, 2]}, NotImplementedError, r"pad=\(0, 2\) is not smaller than the window ws=\(2, 2\)"),
    ],
)
@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_symbolic_parameters_are_checked_when_the_function_runs(mode, values, error, message):
    x, ws, stride, pad = pt.matrix(dtype="float64"), pt.lvector(), pt.lvector(), pt.lvector()
    f = pytensor.function([x, ws, stride, pad], pool_2d(x, ws, True, stride, pad), mode=mode)
    values = {"ws": [2, 2], "stride": [1, 1], "pad": [0, 0]} | values
    with pytest.raises(error, match=message):
        f(np.ones((4, 4)), values["ws"], values["stride"], values["pad"])


@pytest.mark.parametrize(
    "mode, ndim",
    [("py", 2), ("py", 3), ("py", 5), ("py", 6), ("NUMBA", 2), ("NUMBA", 6)],
    indirect=["mode"],
)
def test_the_last_two_of_any_number_of_dimensions_are_pooled(mode, ndim):
    x_value = with_ties((1, 2, 1, 3, 7, 5)[-ndim:])
    x = pt.tensor(dtype="float64", shape=(None,) * ndim)
    y = pool_2d(x, (3, 2), ignore_border=False)
    g_value = with_ties(reference(x_value, ws=(3, 2), ignore_border=False).shape)
    g = y.type()
    output, gradient = pytensor.function([x, g], [y, grad((y * g).sum(), x)], mode=mode)(x_value, g_value)
    np.testing.assert_array_equal(output, reference(x_value, ws=(3, 2), ignore_border=False))
    np.testing.assert_array_equal(
        gradient, reference_gradient(x_value, g_value, ws=(3, 2), ignore_border=False)
    )


def test_no_image_and_no_channel_are_legal(mode):
    x = pt.tensor4(dtype="float64")
    pooled = [pool_2d(x, (3, 2), ignore_border) for ignore_border in (True, False)]
    f = pytensor.function([x], [*pooled, *(grad(y.sum(), x) for y in pooled)], mode=mode)
    for counts in ((0, 3), (2, 0)):
        shapes = [result.shape for result in f(np.ones((*counts, 7, 5)))]
        assert shapes == [(*counts, 2, 2), (*counts, 3, 3), (*counts, 7, 5), (*counts, 7, 5)]


def test_arrays_in_any_memory_order_are_taken(mode):
    x_value = with_ties((5, 7, 3, 2))
    x = pt.tensor4(dtype="float64")
    y = pool_2d(x.transpose(3, 2, 1, 0), (3, 2), ignore_border=False)
    output, gradient = pytensor.function([x], [y, grad(y.sum(), x)], mode=mode)(x_value)
    moved = x_value.transpose(3, 2, 1, 0)
    expected = reference(moved, ws=(3, 2), ignore_border=False)
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(
        gradient.transpose(3, 2, 1, 0),
        reference_gradient(moved, np.ones_like(expected), ws=(3, 2), ignore_border=False),
    )


def test_output_length_counts_the_windows():
    for length, window, stride, pad, ignore_border in itertools.product(
        range(1, 10), range(1, 6), range(1, 5), range(4), (True, False)
    ):
        if pad >= window or (pad and not ignore_border):
            continue
        expected = len(windows_of_axis(length, window, stride, pad, ignore_border))
        assert pool_output_length(length, window, stride, pad, ignore_border) == expected


def test_a_partly_known_shape_gives_the_known_length():
    x = pt.tensor(dtype="float32", shape=(None, 3, 16, None))
    assert pool_2d(x, (3, 2), True).type.shape == (None, 3, 5, None)


@pytest.mark.parametrize("mode", ["py"], indirect=True)
@pytest.mark.parametrize("case", ["rest pooled", "overlapping, rest pooled", "padding, overlapping"])
@pytest.mark.parametrize("pool_mode", ["max", "sum"])
def test_shapes_are_known_without_pooling(mode, case, pool_mode):
    x_value = np.ones(INPUT_SHAPE)
    x = pt.tensor4(dtype="float64")
    y = pool_2d(x, mode=pool_mode, **CASES[case])
    f = pytensor.function([x], [y.shape, grad((y**2).sum(), x).shape], mode=mode)
    assert not {Pool, MaxPoolGrad, MaxPoolGradGrad, AveragePoolGrad} & ops_of(f)
    assert [tuple(shape) for shape in f(x_value)] == [reference(x_value, **CASES[case]).shape, INPUT_SHAPE]


X = pt.tensor4("x", dtype="float32")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"ws": None}, ValueError, "ws=None: pool_2d needs a window"),
        ({"ds": (2, 2)}, ValueError, r"ws=\(3, 2\) and ds=\(2, 2\) are two names"),
        ({"stride": (1, 1), "st": (2, 2)}, ValueError, r"stride=\(1, 1\) and st=\(2, 2\) are two names"),
        ({"pad": (1, 1), "padding": (1, 0)}, ValueError, r"pad=\(1, 1\) and padding=\(1, 0\) are two names"),
        ({"mode": "mean"}, ValueError, "mode='mean' is unknown; use one of 'max', 'sum'"),
        ({"ws": (0, 2)}, ValueError, r"ws=\(0, 2\) is smaller than 1"),
        ({"stride": (2, -1)}, ValueError, r"stride=\(2, -1\) is smaller than 1"),
        ({"pad": (-1, 0)}, ValueError, r"pad=\(-1, 0\) is smaller than 0"),
        ({"ws": (2, 2, 2)}, ValueError, r"ws=\(2, 2, 2\) is not a pair"),
        ({"ws": 2}, ValueError, "ws=2 is not a pair"),
        ({"stride": (1,)}, ValueError, r"stride=\(1,\) is not a pair"),
        ({"input": pt.vector(dtype="float32")}, NotImplementedError, "input has 1 dimensions"),
        ({"pad": (0, 1), "ignore_border": False}, NotImplementedError, r"pad=\(0, 1\).*ignore_border=False"),
        ({"pad": (0, 2)}, NotImplementedError, r"pad=\(0, 2\) is not smaller than the window ws=\(3, 2\)"),
        ({"ws": (2.0, 2)}, TypeError, r"ws=\(2.0, 2\) holds something else than integers"),
        ({"ws": (True, 2)}, TypeError, r"ws=\(True, 2\)"),
        ({"stride": (1, "2")}, TypeError, r"stride=\(1, '2'\)"),
        ({"pad": (0, 0.0)}, TypeError, r"pad=\(0, 0.0\)"),
        ({"ws": pt.dvector("ws")}, TypeError, "ws is Vector.float64.*vector of two integers"),
        ({"pad": pt.lscalar("pad")}, TypeError, "pad is Scalar.int64"),
        ({"input": pt.matrix(dtype="int64")}, TypeError, "input has dtype int64.*cast input"),
        ({"input": pt.matrix(dtype="float16")}, TypeError, "input has dtype float16.*cast input"),
    ],
)
def test_a_wrong_argument_is_refused_by_name_and_value(arguments, error, message):
    with pytest.raises(error, match=message):
        pool_2d(**{"input": X, "ws": (3, 2), "ignore_border": True} | arguments)


def test_no_ignore_border_warns_and_means_false():
    with pytest.warns(UserWarning, match="ignore_border=None means False") as warned:
        y = pool_2d(X, (3, 2))
    assert warned[0].filename == __file__
    assert y.owner.op == pool_2d(X, (3, 2), ignore_border=False).owner.op


def test_the_old_names_mean_the_new_ones():
    old = pool_2d(input=X, ds=(3, 2), ignore_border=True, st=(2, 1), padding=(1, 0))
    new = pool_2d(X, ws=(3, 2), ignore_border=True, stride=(2, 1), pad=(1, 0))
    assert old.owner.op == new.owner.op == Pool("max", True, (3, 2), (2, 1), (1, 0))


def test_the_parameters_are_theanos_in_their_order():
    assert nnet.pool.pool_2d is pool_2d
    names = "input ws ignore_border stride pad mode ds st padding"
    assert " ".join(inspect.signature(pool_2d).parameters) == names


def test_a_gradient_in_another_memory_order_is_taken(mode):
    # As it comes where the channels are last after the pooling.
    x, c = pt.tensor4("x", dtype="float64", shape=(2, 3, 4, 4)), pt.tensor4("c", dtype="float64")
    y = pool_2d(x, (2, 2), ignore_border=True).dimshuffle(0, 2, 3, 1)
    f = pytensor.function([x, c], grad((y * c).sum(), x), mode=mode)
    x_value, c_value = with_ties((2, 3, 4, 4)), with_ties((2, 2, 2, 3))
    expected = reference_gradient(x_value, c_value.transpose(0, 3, 1, 2), ws=(2, 2), ignore_border=True)
    np.testing.assert_array_equal(f(x_value, c_value), expected)


@st.composite
def drawn_cases(draw):
    """A shape and options; padding that is too large, or goes with a rest that is pooled, is not allowed."""

    def pair(first, last):
        return draw(st.tuples(st.integers(first, last), st.integers(first, last)))

    shape = (*draw(st.lists(st.integers(1, 3), max_size=2)), *pair(1, 9))
    options = {"ws": pair(1, 5), "ignore_border": draw(st.booleans())}
    options["mode"] = draw(st.sampled_from(POOL_MODES))
    if draw(st.booleans()):
        options["stride"] = pair(1, 4)
    if draw(st.integers(0, 2)) == 0:
        options["pad"] = pair(0, 2)
    return shape, options, draw(st.booleans())


def test_whatever_is_drawn_is_pooled_window_by_window_or_refused(mode, for_all_drawn):
    def check(case):
        shape, options, known = case
        known = known or mode == "JAX"
        x = with_ties(shape)
        symbol = pt.tensor(dtype="float64", shape=shape if known else (None,) * len(shape))
        pad = options.get("pad", (0, 0))
        padded = pad != (0, 0)
        too_large = any(p >= w for p, w in zip(pad, options["ws"], strict=True))
        if padded and (too_large or not options["ignore_border"]):
            with pytest.raises(NotImplementedError):
                pool_2d(symbol, **options)
            return
        y = pool_2d(symbol, **options)
        expected = reference(x, **options)
        g = with_ties(expected.shape)
        f = pytensor.function([symbol], [y, grad((y * g).sum(), symbol)], mode=mode)
        value, gradient = map(np.asarray, f(x))
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(gradient, reference_gradient(x, g, **options), rtol=1e-12, atol=1e-12)

    for_all_drawn(drawn_cases(), check)
