import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode

from deeplearning_tutorial import nnet

PY = Mode(linker="py", optimizer="fast_run")
# The second and third probability are zero in float32.
X = np.array([[200, 0, 0]], "float32")
LABELS = {
    "all by name": lambda p, y: pt.log(p)[pt.arange(p.shape[0]), y],
    "all by name, inside": lambda p, y: pt.log(p[pt.arange(p.shape[0]), y]),
    "one number": lambda p, y: pt.log(p[0, 1]),
    "one row": lambda p, y: pt.log(p[0])[y],
    "one row, inside": lambda p, y: pt.log(p[0][y]),
    "rows": lambda p, y: pt.log(p[[0, 0]][:1, 1]),
    "a column": lambda p, y: pt.log(p[:, 1]),
    "transposed": lambda p, y: pt.log(p.T[y, pt.arange(y.shape[0])]),
    "with a new axis": lambda p, y: pt.log(p.dimshuffle(1, "x", 0)[y, 0, 0]),
    "without an axis": lambda p, y: pt.log(p[0].dimshuffle(0)[1]),
    "flat": lambda p, y: pt.log(p.flatten()[y]),
    "in three dimensions": lambda p, y: pt.log(p.reshape((1, -1, 3))[:, pt.arange(y.shape[0]), y]),
    "along the axis": lambda p, y: pt.log(pt.take_along_axis(p, y[:, np.newaxis], axis=1)),
    "by a mask": lambda p, y: pt.log(p[pt.eq(pt.arange(3), y[:, np.newaxis])]),
    "one of n": lambda p, y: pt.sum(pt.eq(pt.arange(3), y[:, np.newaxis]) * pt.log(p), axis=1),
    "beside other costs": lambda p, y: pt.log(p[pt.arange(y.shape[0]), y]) + 0 * (p**2).sum(),
    "beside another label": lambda p, y: pt.log(p[:, 1]) + 0 * pt.log(p[:, 2]),
    "Theano's cost": lambda p, y: -nnet.categorical_crossentropy(p, y),
}


# PyTensor's own "not" of a Python bool, from Python 3.12 on.
@pytest.mark.filterwarnings("ignore:Bitwise inversion:DeprecationWarning")
@pytest.mark.parametrize("labels", LABELS)
def test_a_probability_of_zero_leaves_log_and_gradient_finite(labels):
    x, y = pt.fmatrix("x"), pt.lvector("y")
    cost = -LABELS[labels](nnet.softmax(x), y).sum()
    f = pytensor.function([x, y], [cost, pytensor.grad(cost, x)], mode=PY, on_unused_input="ignore")
    value, gradient = f(X, [1])
    # By hand: -(0 - 200), and the softmax less one at the label.
    assert value == 200
    np.testing.assert_array_equal(gradient, [[1, -1, 0]])


def test_every_back_end_keeps_it_finite(mode):
    x = pt.fmatrix("x")
    cost = -pt.log(nnet.softmax(x)[:, 1]).sum()
    value, gradient = pytensor.function([x], [cost, pytensor.grad(cost, x)], mode=mode)(X)
    assert value == 200
    np.testing.assert_array_equal(gradient, [[1, -1, 0]])


@pytest.mark.parametrize("labels", ["flat", "transposed", "rows", "beside another label"])
def test_values_and_gradients_are_numpys(labels):
    x, y, weights = pt.dmatrix("x"), pt.lvector("y"), np.array([0.5, 2.0])
    p = nnet.softmax(x)
    chosen = {
        "flat": pt.log(p.flatten()[3 * pt.arange(2) + y]),
        "transposed": pt.log(p.T[y, pt.arange(2)]),
        "rows": pt.log(p[pt.arange(2), y]),
        "beside another label": pt.log(p[pt.arange(2), y]) + p[:, 0],
    }[labels]
    f = pytensor.function([x, y], [chosen, pytensor.grad((weights * chosen).sum(), x)], mode=PY)
    x_value, y_value = np.random.default_rng(4).normal(size=(2, 3)), np.array([2, 1])
    softmax = np.exp(x_value) / np.exp(x_value).sum(axis=1, keepdims=True)
    value, gradient = np.log(softmax[[0, 1], y_value]), np.eye(3)[y_value] - softmax
    if labels == "beside another label":
        value = value + softmax[:, 0]
        gradient = gradient + softmax[:, :1] * (np.eye(3)[0] - softmax)
    results = f(x_value, y_value)
    np.testing.assert_allclose(results[0], value, rtol=1e-12)
    np.testing.assert_allclose(results[1], weights[:, np.newaxis] * gradient, rtol=1e-12)


def test_what_is_divided_by_something_else_is_left_alone():
    x, z = pt.dmatrix("x"), pt.dmatrix("z")
    p = nnet.softmax(x)
    outputs = [p * (z / pt.exp(x)), p * pt.set_subtensor(pt.zeros_like(p)[:, 1], z[:, 1] / p[:, 1])]
    outputs.append(p * pt.inc_subtensor(pt.ones_like(p)[:, 1], z[:, 1] / p[:, 1]))
    outputs.append(p * pt.inc_subtensor(pt.zeros_like(p)[:, 0], z[:, 1] / p[:, 1]))
    x_value, z_value = np.random.default_rng(4).normal(size=(2, 2, 3))
    p_value = np.exp(x_value) / np.exp(x_value).sum(axis=1, keepdims=True)
    quotient = z_value / p_value
    expected = [p_value * z_value / np.exp(x_value), np.zeros((2, 3)), p_value.copy(), np.zeros((2, 3))]
    expected[1][:, 1] = z_value[:, 1]
    expected[2][:, 1] += z_value[:, 1]
    expected[3][:, 0] = p_value[:, 0] * quotient[:, 1]
    for result, right in zip(
        pytensor.function([x, z], outputs, mode=PY)(x_value, z_value), expected, strict=True
    ):
        np.testing.assert_allclose(result, right, rtol=1e-12, atol=1e-15)


def test_it_is_switched_off_by_its_name():
    x = pt.fmatrix("x")
    cost = -pt.log(nnet.softmax(x)[:, 1]).sum()
    f = pytensor.function([x], pytensor.grad(cost, x), mode=PY.excluding("log_softmax"))
    with np.errstate(all="ignore"):
        assert np.isnan(f(X)).any()
