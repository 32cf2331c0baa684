import itertools

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.gradient import verify_grad

from deeplearning_tutorial.nnet import local_contrast_normalisation

# Op by Op, without compiling.
PLAIN = Mode(linker="py", optimizer=None)
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def reference(x, size, sigma, threshold=1e-4):
    """The two steps, position by position, with the weights of what lies inside scaled to sum to 1."""
    rows, cols = x.shape[2:]

    def around(maps, row, col):
        mean = weight = 0
        for r in range(max(0, row - size // 2), min(rows, row + size // 2 + 1)):
            for c in range(max(0, col - size // 2), min(cols, col + size // 2 + 1)):
                w = np.exp(-((r - row) ** 2 + (c - col) ** 2) / (2 * sigma**2))
                mean = mean + w * maps[:, :, r, c].mean(axis=1)
                weight += w
        return mean / weight

    v, deviation = np.empty_like(x), np.empty((len(x), 1, rows, cols))
    for row, col in np.ndindex(rows, cols):
        v[:, :, row, col] = x[:, :, row, col] - around(x, row, col)[:, np.newaxis]
    for row, col in np.ndindex(rows, cols):
        deviation[:, 0, row, col] = np.sqrt(around(v**2, row, col))
    largest = np.maximum(deviation, deviation.mean(axis=(2, 3), keepdims=True))
    return v / np.maximum(largest, threshold)


def images(shape=(2, 3, 7, 6)):
    x = np.random.default_rng(1).normal(size=shape)
    # Of one grey: no contrast there.
    x[-1, :, 3:] = 0.5
    return x


@pytest.mark.parametrize(
    "mode, dtype",
    [*itertools.product(("py", "JAX"), TOLERANCE), ("NUMBA", "float32"), ("PYTORCH", "float32")],
    indirect=["mode"],
)
def test_values_are_those_of_sums_over_each_neighbourhood(mode, dtype):
    x = images().astype(dtype)
    symbol = pt.tensor(dtype=dtype, shape=x.shape if mode == "JAX" else (None,) * 4)
    y = local_contrast_normalisation(symbol, size=5, sigma=1.5)
    result = np.asarray(pytensor.function([symbol], y, mode=mode)(x))
    # In JAX PyTensor's sums give float64, whatever their type says.
    assert mode == "JAX" or result.dtype == dtype
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(result, reference(x.astype("float64"), 5, 1.5), tolerance, tolerance)


def test_the_neighbourhood_is_nine_pixels_wide_unless_given_and_may_exceed_the_image():
    x = images((1, 2, 4, 6))
    result = local_contrast_normalisation(x).eval(mode=PLAIN)
    np.testing.assert_allclose(result, reference(x, 9, 9 / 4), rtol=1e-10, atol=1e-12)


def test_by_hand_along_a_row():
    # A neighbourhood of 1: v is 0.5 of the difference of the two maps, as is the deviation.
    x = np.array([[[[1.0, 4, 0]], [[3.0, 2, 0]]]])
    result = local_contrast_normalisation(x, size=1).eval(mode=PLAIN)
    # Deviations 1, 1 and 0, of mean 2/3, which divides where the deviation is less.
    np.testing.assert_allclose(result, [[[[-1, 1, 0]], [[1, -1, 0]]]], atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    verify_grad(
        lambda x: local_contrast_normalisation(x, size=3),
        [np.random.default_rng(2).normal(size=(1, 2, 3, 4))],
        rng=np.random.default_rng(3),
        mode=PLAIN,
    )


def test_an_image_of_one_grey_becomes_zero_with_a_finite_gradient():
    x = pt.tensor4(dtype="float32")
    y = local_contrast_normalisation(x)
    f = pytensor.function([x], [y, pytensor.grad((y**2).sum(), x)], mode=PLAIN)
    for grey in (0, 0.3):
        value, gradient = f(np.full((1, 2, 11, 12), grey, "float32"))
        np.testing.assert_allclose(value, 0, atol=0.01)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"size": 4}, ValueError, "size=4 is not an odd positive integer"),
        ({"size": 2.5}, ValueError, "size=2.5 is not an odd .*Python 2's division"),
        ({"sigma": 0}, ValueError, "sigma=0 is not a positive"),
        ({"threshold": -1}, ValueError, "threshold=-1 is not a finite number"),
        ({"input": pt.dmatrix()}, TypeError, "input is Matrix"),
        ({"input": pt.ltensor4()}, TypeError, r"input is Tensor4\(int64"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        local_contrast_normalisation(**{"input": pt.dtensor4()} | arguments)
