import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from scipy.signal import convolve2d

from deeplearning_tutorial import nnet
from deeplearning_tutorial.layers.activations import ACTIVATIONS, activation_name, scaled_tanh
from deeplearning_tutorial.layers.convolution import Convolution
from deeplearning_tutorial.layers.subsampling import Subsampling
from deeplearning_tutorial.lenet5 import connections_1998

# Small graphs are evaluated Op by Op, without compiling.
PLAIN = Mode(linker="py", optimizer=None)
FILTER_SHAPE, IMAGE_SHAPE = (3, 2, 3, 4), (5, 2, 9, 11)
# Filter 0 takes both maps, filter 1 the second, filter 2 the first.
TABLE = np.array([[True, False, True], [True, True, False]])
IN_NUMPY = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "scaled_tanh": lambda x: 1.7159 * np.tanh(2 * x / 3),
}


def convolved(x, W):
    """SciPy's convolutions, summed over the maps below."""
    return np.array(
        [[sum(map(convolve2d, image, filters, ["valid"] * len(W[0]))) for filters in W] for image in x]
    )


def windows(maps, size, stride):
    """Every window's elements on the last axis: (batch, maps, rows', cols', elements)."""
    view = np.lib.stride_tricks.sliding_window_view(maps, size, axis=(2, 3))
    view = view[:, :, :: stride[0], :: stride[1]]
    return view.reshape(*view.shape[:4], -1)


@pytest.fixture(autouse=True)
def in_float64():
    with pytensor.config.change_flags(floatX="float64"):
        yield


def layer(activation="tanh", **options):
    x = pt.tensor4("x")
    made = Convolution(
        np.random.RandomState(5), x, FILTER_SHAPE, IMAGE_SHAPE, ACTIVATIONS[activation], **options
    )
    made.b.set_value(np.array([0.3, -0.2, 0.1]))
    return x, made


def images(seed=6):
    return np.random.default_rng(seed).normal(size=IMAGE_SHAPE)


def test_the_table_of_1998_is_the_papers():
    # Row by row as printed in table I: the columns with a cross.
    crosses = [
        [0, 4, 5, 6, 9, 10, 11, 12, 14, 15],
        [0, 1, 5, 6, 7, 10, 11, 12, 13, 15],
        [0, 1, 2, 6, 7, 8, 11, 13, 14, 15],
        [1, 2, 3, 6, 7, 8, 9, 12, 14, 15],
        [2, 3, 4, 7, 8, 9, 10, 12, 13, 15],
        [3, 4, 5, 8, 9, 10, 11, 13, 14, 15],
    ]
    table = connections_1998()
    assert table.shape == (6, 16) and [np.flatnonzero(row).tolist() for row in table] == crosses
    assert table.sum() == 60 and table.sum(axis=0).tolist() == [3] * 6 + [4] * 9 + [6]


def test_the_scaled_tanh_is_one_at_one():
    assert scaled_tanh(pt.constant([-1.0, 0.0, 1.0])).eval(mode=PLAIN) == pytest.approx([-1, 0, 1], abs=1e-4)


def test_files_hold_an_activation_by_its_name_or_by_where_it_is_defined():
    assert [activation_name(each) for each in ACTIVATIONS.values()] == list(ACTIVATIONS)
    assert activation_name(images) == f"{__name__}.images"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_convolution_is_scipys_with_bias_and_activation(activation):
    x, made = layer(activation)
    value = images()
    output = pytensor.function([x], made.output, mode=PLAIN)(value)
    expected = convolved(value, made.W.get_value()) + np.array([0.3, -0.2, 0.1])[:, None, None]
    assert output.shape == made.output.type.shape == (5, 3, 7, 8)
    np.testing.assert_allclose(output, IN_NUMPY[activation](expected), atol=1e-12)


def test_filters_are_drawn_within_the_bounds_of_their_own_connections():
    # 12 weights per pair; with all of them 2 maps below and 3 filters, whose windows hold 4.
    full = layer(poolsize=(2, 2))[1].W.get_value()
    bound = np.sqrt(6 / (2 * 12 + 3 * 12 // 4))
    np.testing.assert_array_equal(full, np.random.RandomState(5).uniform(-bound, bound, FILTER_SHAPE))
    four_times = layer("sigmoid", poolsize=(2, 2))[1].W.get_value()
    np.testing.assert_allclose(four_times, 4 * full, rtol=1e-15)
    some = layer(poolsize=(2, 2), connections=TABLE)[1].W.get_value()
    drawn = np.random.RandomState(5).uniform(-1, 1, FILTER_SHAPE)
    # Of the maps below each goes to two filters.
    bounds = np.sqrt(6 / (np.array([24, 12, 12]) + 2 * 12 // 4))
    for filter, taken in enumerate(TABLE.T):
        for below, connected in enumerate(taken):
            expected = drawn[filter, below] * bounds[filter] * connected
            np.testing.assert_allclose(some[filter, below], expected, rtol=1e-12)


@pytest.mark.parametrize("sigmoid", [nnet.sigmoid, lambda x: 1 / (1 + pt.exp(-x))], ids=["nnet", "formula"])
def test_filters_of_any_sigmoid_are_four_times_as_large(sigmoid):
    tanh, others = (
        Convolution(np.random.RandomState(5), pt.tensor4("x"), FILTER_SHAPE, (None, None, 9, 9), activation)
        for activation in (pt.tanh, sigmoid)
    )
    np.testing.assert_array_equal(others.W.get_value(), 4 * tanh.W.get_value())


def test_a_step_with_a_table_is_that_of_the_connected_pairs_and_leaves_the_others_zero():
    x, made = layer(connections=TABLE)
    value, rate = images(), 0.01
    arriving = np.random.default_rng(7).normal(size=(5, 3, 7, 8))
    W = made.W.get_value()
    cost = (made.output * arriving).sum()
    updates = [(p, p - rate * g) for p, g in zip(made.params, pytensor.grad(cost, made.params), strict=True)]
    output = pytensor.function([x], made.output, updates=updates, mode=PLAIN)(value)

    b = np.array([0.3, -0.2, 0.1])
    z = np.zeros((5, 3, 7, 8)) + b[:, None, None]
    for filter, below in zip(*np.nonzero(TABLE.T), strict=True):
        z[:, filter] += [convolve2d(image[below], W[filter, below], "valid") for image in value]
    np.testing.assert_allclose(output, np.tanh(z), atol=1e-12)
    before = arriving * (1 - np.tanh(z) ** 2)
    for filter, below in np.ndindex(3, 2):
        gradient = sum(
            convolve2d(image[below], g[filter, ::-1, ::-1], "valid")[::-1, ::-1]
            for image, g in zip(value, before, strict=True)
        )
        expected = W[filter, below] - rate * gradient * TABLE[below, filter]
        np.testing.assert_allclose(made.W.get_value()[filter, below], expected, atol=1e-12)
    assert not made.W.get_value()[1, 0].any() and not made.W.get_value()[2, 1].any()
    np.testing.assert_allclose(made.b.get_value(), b - rate * before.sum(axis=(0, 2, 3)), atol=1e-12)


@pytest.mark.parametrize("size, stride", [((2, 3), (2, 3)), ((3, 3), (2, 1))])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize(
    "pooling, take", [("max", np.max), ("average", np.mean), ("sum", np.sum)], ids=["max", "average", "sum"]
)
def test_subsampling_takes_each_window_of_the_activated_maps(pooling, take, activation, size, stride):
    x, below = layer(activation)
    made = Subsampling(below, 3, pooling, ACTIVATIONS[activation], poolsize=size, stride=stride)
    maps, output = pytensor.function([x], [below.output, made.output], mode=PLAIN)(images())
    expected = take(windows(maps, size, stride), axis=-1)
    assert made.params == [] and made.output.type.shape == expected.shape
    np.testing.assert_allclose(output, expected, atol=1e-12)


def test_the_subsampling_of_1998_trains_a_coefficient_and_a_bias_per_map():
    x, below = layer()
    made = Subsampling(below, 3, "1998", pt.tanh, poolsize=(2, 3), stride=(2, 3))
    np.testing.assert_array_equal(made.coefficient.get_value(), np.full(3, 1 / 6))
    np.testing.assert_array_equal(made.b.get_value(), np.zeros(3))
    assert [param.name for param in made.params] == ["coefficient", "b"]
    coefficient, b, rate = np.array([0.5, -0.25, 1.5]), np.array([0.1, 0.2, -0.3]), 0.01
    made.coefficient.set_value(coefficient)
    made.b.set_value(b)
    arriving = np.random.default_rng(8).normal(size=(5, 3, 3, 2))
    params = made.params
    gradients = pytensor.grad((made.output * arriving).sum(), [*params, below.output])
    step = [(p, p - rate * g) for p, g in zip(params, gradients[:2], strict=True)]
    outputs = [below.output, made.output, gradients[2]]
    maps, output, passed = pytensor.function([x], outputs, updates=step, mode=PLAIN)(images())

    sums = windows(maps, (2, 3), (2, 3)).sum(axis=-1)
    expected = np.tanh(coefficient[:, None, None] * sums + b[:, None, None])
    np.testing.assert_allclose(output, expected, atol=1e-12)
    before = arriving * (1 - expected**2)
    stepped = coefficient - rate * (before * sums).sum(axis=(0, 2, 3))
    np.testing.assert_allclose(made.coefficient.get_value(), stepped, atol=1e-12)
    np.testing.assert_allclose(made.b.get_value(), b - rate * before.sum(axis=(0, 2, 3)), atol=1e-12)
    # 7 rows and 8 columns hold 3 x 2 windows of 2 x 3; what is left over gets no gradient.
    spread = np.zeros_like(maps)
    spread[:, :, :6, :6] = np.kron(before * coefficient[:, None, None], np.ones((2, 3)))
    np.testing.assert_allclose(passed, spread, atol=1e-12)


def test_the_sum_by_hand():
    x = pt.constant(np.array([[[[1.0, 2, 3, 0], [0, 1, -1, 4]]]]))
    below = Convolution(np.random.RandomState(1), x, (1, 1, 1, 1), (1, 1, 2, 4), lambda z: z)
    below.W.set_value(np.ones((1, 1, 1, 1)))
    made = Subsampling(below, 1, "1998", lambda z: z)
    # (1 + 2 + 0 + 1) / 4 and (3 + 0 - 1 + 4) / 4
    assert made.output.eval(mode=PLAIN).tolist() == [[[[1.0, 1.5]]]]


def test_filters_of_ones_own_take_no_table_of_connections():
    W = pytensor.shared(np.zeros((1, 1, 1, 1)))
    with pytest.raises(ValueError, match="W and connections do not go together"):
        Convolution(
            None, pt.dtensor4(), (1, 1, 1, 1), (1, 1, 2, 4), pt.tanh, W=W, connections=np.ones((1, 1), bool)
        )
