import numpy as np
import pytensor.tensor as pt
import pytest
from pytensor.gradient import verify_grad

from deeplearning_tutorial.nnet import bilinear_upsampling, conv2d_transpose

RNG = np.random.default_rng(22)


@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_symbolic_lengths_and_gradients(mode):
    x, w = RNG.normal(size=(2, 3, 4, 3)), RNG.normal(size=(3, 2, 3, 2))
    verify_grad(
        lambda x, w: conv2d_transpose(x, w, (None, None, 2 * x.shape[2], 5), None, "half", (2, 2)),
        [x, w],
        rng=RNG,
        mode=mode,
    )


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"output_shape": (1, 3, 9)}, ValueError, "4 lengths"),
        ({"output_shape": (1, 2, None, 9)}, ValueError, "only the first two"),
        ({"output_shape": (None, None, 18 / 2, 9)}, ValueError, r"output_shape=.*9.0, .*Python 2's division"),
        ({"output_shape": (None, None, 9, 9)}, ValueError, r"output_shape=.*\(1, 4, 7, 7\)"),
        ({"output_shape": (None, 3, 7, 7)}, ValueError, "3 channels"),
        ({"unshared": True}, NotImplementedError, "unshared=True"),
        ({"input": pt.dmatrix()}, TypeError, "input has 2 dimensions"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    known = {"input": np.ones((1, 4, 5, 5)), "filters": np.ones((4, 2, 3, 3)), "output_shape": (1, 2, 7, 7)}
    with pytest.raises(error, match=message):
        conv2d_transpose(**known | arguments)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({}, ValueError, "ratio=None"),
        ({"ratio": 0}, ValueError, "ratio=0"),
        ({"ratio": 1.5}, ValueError, "ratio=1.5 .*Python 2's division"),
        ({"frac_ratio": (3, 2)}, NotImplementedError, "frac_ratio="),
        ({"ratio": 2, "batch_size": 2}, ValueError, "batch_size"),
    ],
)
def test_wrong_arguments_of_upsampling_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        bilinear_upsampling(np.ones((1, 2, 3, 3)), **arguments)


def test_a_ratio_and_lengths_may_be_constants():
    images, filters = np.ones((1, 4, 5, 5)), np.ones((4, 2, 3, 3))
    assert bilinear_upsampling(images, pt.constant(2), batch_size=pt.constant(1)).type.shape == (1, 4, 10, 10)
    spread = conv2d_transpose(images, filters, pt.constant([1, 2, 7, 7]), (4, pt.constant(2), 3, 3))
    assert spread.type.shape == (1, 2, 7, 7)
