import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from small_convolutions import PLAIN, images, layer, windows

from deeplearning_tutorial.layers.activations import ACTIVATIONS
from deeplearning_tutorial.layers.convolution import Convolution
from deeplearning_tutorial.layers.subsampling import Subsampling


@pytest.fixture(autouse=True)
def in_float64():
    with pytensor.config.change_flags(floatX="float64"):
        yield


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
