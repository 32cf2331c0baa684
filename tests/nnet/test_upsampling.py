import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import verify_grad

from deeplearning_tutorial.nnet import bilinear_upsampling, conv2d, conv2d_transpose

RNG = np.random.default_rng(22)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    "border_mode, strides, dilation, groups",
    [("valid", (1, 1), (1, 1), 1), ("half", (2, 3), (1, 1), 2), (((1, 0), (2, 1)), (2, 1), (2, 1), 1)],
)
def test_it_is_the_adjoint_of_the_convolution(mode, border_mode, strides, dilation, groups, flip):
    options = {
        "border_mode": border_mode, "filter_flip": flip, "filter_dilation": dilation, "num_groups": groups
    }  # fmt: skip
    x, w = RNG.normal(size=(2, 4, 9, 8)), RNG.normal(size=(6, 4 // groups, 3, 2))
    maps = conv2d(pt.constant(x), pt.constant(w), subsample=strides, **options).eval(mode="NUMBA")
    g = RNG.normal(size=maps.shape)
    symbols = [pt.tensor(dtype="float64", shape=array.shape) for array in (g, w)]
    back = conv2d_transpose(*symbols, (None, None, 9, 8), input_dilation=strides, **options)
    assert back.type.shape == x.shape
    value = np.asarray(pytensor.function(symbols, back, mode=mode)(g, w))
    np.testing.assert_allclose((value * x).sum(), (maps * g).sum(), rtol=1e-10)


def test_a_case_worked_by_hand():
    # Each pixel spreads the filter around it, two positions apart.
    x, w = np.array([[[[1.0, 2.0]]]]), np.array([[[[1.0, 10.0, 100.0]]]])
    y = conv2d_transpose(x, w, (1, 1, 1, 5), input_dilation=(1, 2), filter_flip=False).eval(mode="NUMBA")
    np.testing.assert_array_equal(y, [[[[1, 10, 102, 20, 200]]]])


def test_symbolic_lengths_and_gradients():
    x, w = RNG.normal(size=(2, 3, 4, 3)), RNG.normal(size=(3, 2, 3, 2))
    verify_grad(
        lambda x, w: conv2d_transpose(x, w, (None, None, 2 * x.shape[2], 5), None, "half", (2, 2)),
        [x, w],
        rng=RNG,
    )


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"output_shape": (1, 3, 9)}, ValueError, "4 lengths"),
        ({"output_shape": (1, 2, None, 9)}, ValueError, "only the first two"),
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


def interpolated(x, ratio):
    """NumPy's linear interpolation, along rows and then along columns."""
    for axis in (2, 3):
        n = x.shape[axis]
        at = (np.arange(n * ratio) - (ratio - 1) // 2) / ratio
        x = np.apply_along_axis(lambda line, at=at, n=n: np.interp(at, np.arange(n), line), axis, x)
    return x


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("use_1D_kernel", [True, False])
def test_pixels_are_interpolated_and_go_on_outside(mode, ratio, use_1D_kernel):
    x = RNG.normal(size=(2, 3, 4, 5))
    symbol = pt.tensor(dtype="float64", shape=x.shape)
    y = bilinear_upsampling(symbol, ratio, use_1D_kernel=use_1D_kernel)
    assert y.type.shape == (2, 3, 4 * ratio, 5 * ratio)
    value = np.asarray(pytensor.function([symbol], y, mode=mode)(x))
    np.testing.assert_allclose(value, interpolated(x, ratio), rtol=1e-10, atol=1e-12)


def test_maps_of_unknown_shape_keep_float32():
    x = pt.ftensor4("x")
    f = pytensor.function([x], bilinear_upsampling(x, ratio=2), mode="NUMBA")
    value = np.array([[[[0, 1], [2, 3]]]], "float32")
    result = f(value)
    assert result.dtype == "float32"
    np.testing.assert_allclose(result[0, 0, 0], [0, 0.5, 1, 1])
    np.testing.assert_allclose(result[0, 0, :, 0], [0, 1, 2, 2])


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({}, ValueError, "ratio=None"),
        ({"ratio": 0}, ValueError, "ratio=0"),
        ({"ratio": 1.5}, ValueError, "ratio=1.5"),
        ({"frac_ratio": (3, 2)}, NotImplementedError, "frac_ratio="),
        ({"ratio": 2, "batch_size": 2}, ValueError, "batch_size"),
    ],
)
def test_wrong_arguments_of_upsampling_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        bilinear_upsampling(np.ones((1, 2, 3, 3)), **arguments)
