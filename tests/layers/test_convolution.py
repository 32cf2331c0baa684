import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from scipy.signal import convolve2d
from small_convolutions import FILTER_SHAPE, PLAIN, images, layer

from deeplearning_tutorial import nnet
from deeplearning_tutorial.layers.activations import ACTIVATIONS
from deeplearning_tutorial.layers.convolution import Convolution

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


@pytest.fixture(autouse=True)
def in_float64():
    with pytensor.config.change_flags(floatX="float64"):
        yield


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


def test_filters_of_ones_own_take_no_table_of_connections():
    W = pytensor.shared(np.zeros((1, 1, 1, 1)))
    with pytest.raises(ValueError, match="W and connections do not go together"):
        Convolution(
            None, pt.dtensor4(), (1, 1, 1, 1), (1, 1, 2, 4), pt.tanh, W=W, connections=np.ones((1, 1), bool)
        )
