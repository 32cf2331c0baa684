import inspect
import itertools

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from nnet.cases import POOL_MODES, POOLINGS
from nnet.references import Pooling, windows_of_axis
from pytensor.gradient import DisconnectedInputError, grad, verify_grad

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


def with_ties(shape, dtype="float64"):
    return RNG.integers(-2, 3, shape).astype(dtype)


def without_ties(shape):
    """Return normal values that lie at least 0.1 apart, further than verify_grad moves them."""
    return RNG.permutation(np.prod(shape)).reshape(shape) / 10


def pooled(x, g=None, **options):
    """The reference's output and gradient; ``g`` is ones if not given."""
    pooling = Pooling(**options)
    g = np.ones(pooling.output_shape(x.shape)) if g is None else g
    return pooling.reference(x, g, x)[:2]


def ops_of(function):
    return {type(node.op) for node in function.maker.fgraph.apply_nodes}


@pytest.mark.parametrize("pool_mode", POOL_MODES)
@pytest.mark.parametrize("case", ["rest dropped", "overlapping, rest pooled", "padding, overlapping"])
@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_first_and_second_gradients_agree_with_differences(mode, pool_mode, case):
    x = without_ties((2, 7, 5))

    def output(x):
        return pool_2d(x, mode=pool_mode, **POOLINGS[case][0])

    for function in (output, lambda x: grad((output(x) ** 2).sum(), x)):
        verify_grad(function, [x], rng=np.random.default_rng(2), mode=mode, eps=1e-3)


@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_one_parameter_may_be_symbolic_alone(mode):
    x_value = with_ties(INPUT_SHAPE)
    x, stride = pt.tensor4(dtype="float64"), pt.lvector()
    y = pool_2d(x, (4, 3), True, stride, (1, 2))
    f = pytensor.function([x, stride], y, mode=mode)
    np.testing.assert_array_equal(
        f(x_value, [2, 1]), pooled(x_value, **POOLINGS["padding, overlapping"][0])[0]
    )


def test_constant_vectors_are_as_good_as_tuples():
    x = pt.tensor4(dtype="float32")
    for ws in (pt.constant([3, 2]), np.array([3, 2]), [3, 2], (np.int8(3), 2)):
        assert pool_2d(x, ws, True).owner.op == Pool("max", True, (3, 2), (3, 2), (0, 0))


@pytest.mark.parametrize(
    "two, three",
    [(pt.constant(2), 3), (pt.constant(2), pt.constant(3)), (pt.constant(4) // 2, np.array(3))],
    ids=["one", "both", "computed"],
)
def test_constants_in_a_pair_are_as_good_as_ints(two, three):
    geometry = pool_2d(X, (two, three), True, (three, two), (two - 1, 0)).owner.op
    assert geometry == Pool("max", True, (2, 3), (3, 2), (1, 0))
    assert type(geometry.ws[0]) is type(geometry.pad[0]) is int


@pytest.mark.parametrize("pad", [None, (0, 0), [0, 0]])
def test_no_padding_is_said_in_many_ways(pad):
    for given in ({"pad": pad}, {"padding": pad}, {"pad": None, "padding": pad}):
        assert pool_2d(X, (3, 2), True, **given).owner.op == Pool("max", True, (3, 2), (3, 2), (0, 0))
    assert nnet.downsample.max_pool_2d(X, (3, 2), padding=None).owner.op.pad == (0, 0)


@pytest.mark.parametrize("mode", ["py", "NUMBA"], indirect=True)
def test_a_window_may_depend_on_the_input_as_in_pyramid_pooling(mode):
    x = pt.tensor4(dtype="float64")
    rows, cols = x.shape[2] // 2, x.shape[3] // 3
    y = pool_2d(x, (rows, cols), True, pad=None)
    x_value = with_ties((2, 3, 16, 9))
    f = pytensor.function([x], [y, grad(y.sum(), x)], mode=mode)
    for result, expected in zip(f(x_value), pooled(x_value, ws=(8, 3), ignore_border=True), strict=True):
        np.testing.assert_array_equal(result, expected)


def test_a_window_of_known_lengths_is_fixed():
    x = pt.tensor(dtype="float32", shape=(None, 3, 16, 9))
    y = pool_2d(x, (x.shape[2] // 2, x.shape[3] // 3), True)
    assert y.owner.op == Pool("max", True, (8, 3), (8, 3), (0, 0)) and y.type.shape == (None, 3, 2, 3)


@pytest.mark.parametrize("name", ["ws", "stride", "pad"])
@pytest.mark.parametrize("mode", ["py", "NUMBA"], indirect=True)
def test_any_parameter_may_be_a_pair_of_symbolic_scalars(mode, name):
    x, n = pt.tensor4(dtype="float64"), pt.iscalar("n")
    values = {"ws": (4, 3), "stride": (2, 1), "pad": (1, 2)}
    symbolic = values | {name: (n, values[name][1])}
    f = pytensor.function([x, n], pool_2d(x, ignore_border=True, **symbolic), mode=mode)
    x_value = with_ties(INPUT_SHAPE)
    expected = pooled(x_value, ignore_border=True, **values)[0]
    np.testing.assert_array_equal(f(x_value, values[name][0]), expected)
    with pytest.raises((ValueError, NotImplementedError), match=name):
        f(x_value, -1)


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


def test_arrays_in_any_memory_order_are_taken(mode):
    x_value = with_ties((5, 7, 3, 2))
    x = pt.tensor4(dtype="float64")
    y = pool_2d(x.transpose(3, 2, 1, 0), (3, 2), ignore_border=False)
    output, gradient = pytensor.function([x], [y, grad(y.sum(), x)], mode=mode)(x_value)
    moved = x_value.transpose(3, 2, 1, 0)
    expected, expected_gradient = pooled(moved, ws=(3, 2), ignore_border=False)
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(gradient.transpose(3, 2, 1, 0), expected_gradient)


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
    y = pool_2d(x, mode=pool_mode, **POOLINGS[case][0])
    f = pytensor.function([x], [y.shape, grad((y**2).sum(), x).shape], mode=mode)
    assert not {Pool, MaxPoolGrad, MaxPoolGradGrad, AveragePoolGrad} & ops_of(f)
    assert [tuple(shape) for shape in f(x_value)] == [
        Pooling(**POOLINGS[case][0]).output_shape(INPUT_SHAPE),
        INPUT_SHAPE,
    ]


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
        ({"ws": (2.0, 2)}, TypeError, r"ws=\(2.0, 2\) holds something other than integers"),
        ({"ws": (True, 2)}, TypeError, r"ws=\(True, 2\)"),
        ({"stride": (1, "2")}, TypeError, r"stride=\(1, '2'\)"),
        ({"pad": (0, 0.0)}, TypeError, r"pad=\(0, 0.0\)"),
        ({"ws": pt.dvector("ws")}, TypeError, "ws is Vector.float64.*vector of two integers"),
        ({"pad": pt.lscalar("pad")}, TypeError, "pad is Scalar.int64"),
        ({"ws": (24 / 2, 2)}, TypeError, r"ws=\(12.0, 2\) .*Python 2's division .* is 24 // 2 in Python 3"),
        ({"ws": (pt.lscalar() / 2, 2)}, TypeError, r"ws=.* holds something other .*Python 2's division"),
        ({"stride": pt.lvector() / 2}, TypeError, "stride is Vector.float64.*Python 2's division"),
        ({"pad": (pt.constant(24) / 2, 0)}, TypeError, r"pad=\(12.0, 0\) .*Python 2's division"),
        ({"ws": (pt.lvector(), 2)}, TypeError, "ws=.* holds something other than integers"),
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
    _, expected = pooled(x_value, c_value.transpose(0, 3, 1, 2), ws=(2, 2), ignore_border=True)
    np.testing.assert_array_equal(f(x_value, c_value), expected)
