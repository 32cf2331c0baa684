import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.gradient import grad, verify_grad

from deeplearning_tutorial.nnet import conv2d

RNG = np.random.default_rng(21)


@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_second_gradients_are_the_derivatives_of_the_first(mode):
    x, w = RNG.normal(size=(2, 2, 4, 3)), RNG.normal(size=(2, 3, 2, 2, 2, 2))

    def gradients(x, w):
        y = conv2d(x, w, unshared=True)
        gx, gw = grad((y**2).sum(), [x, w])
        return (gx**2).sum() + (gw**2).sum()

    verify_grad(gradients, [x, w], rng=RNG, mode=mode)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((8, 5, 4, 4, 3, 2), r"\(5, 4\) output rows and cols.*has \(5, 5\)"),
        ((8, 5, 5, 3, 3, 2), "4 channels"),
        ((8, 5, 5, 4, 8, 2), "no rows"),
    ],
)
def test_shapes_that_are_known_not_to_fit_are_refused_at_once(shape, message):
    x, w = (pt.tensor(dtype="float32", shape=known) for known in ((3, 4, 7, 6), shape))
    with pytest.raises(ValueError, match=message):
        conv2d(x, w, unshared=True)


def test_hints_of_six_lengths_are_checked():
    x, w = pt.tensor4("x", dtype="float64"), pt.tensor("w", dtype="float64", shape=(None,) * 6)
    y = conv2d(x, w, (3, 4, 7, 6), (8, 5, 5, 4, 3, 2), unshared=True)
    assert y.type.shape == (3, 8, 5, 5)
    with pytest.raises(ValueError, match="filter_shape=.* 6 lengths"):
        conv2d(x, w, filter_shape=(8, 4, 3, 2), unshared=True)
