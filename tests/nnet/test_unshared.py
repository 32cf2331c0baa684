import itertools

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import grad, verify_grad

from deeplearning_tutorial.nnet import conv2d

RNG = np.random.default_rng(21)

# Padding, strides, dilation, groups, and the output that a 7 x 6 image gives with 3 x 2 filters.
CASES = {
    "valid": ("valid", (1, 1), (1, 1), 1, (5, 5)),
    "half": ("half", (1, 1), (1, 1), 1, (7, 7)),
    "full, strides": ("full", (2, 3), (1, 1), 2, (5, 3)),
    "one side, dilation": (((1, 0), (0, 2)), (1, 2), (2, 3), 4, (4, 3)),
}


def reference(x, w, border_mode, subsample, dilation, groups, flip):
    """Multiply each window by the filters of its position, one after the other."""
    pads = {"valid": ((0, 0), (0, 0)), "half": ((1, 1), (1, 1)), "full": ((2, 2), (1, 1))}
    padded = np.pad(x, ((0, 0), (0, 0), *pads.get(border_mode, border_mode)))
    n_filters, rows, cols, per_group, *lengths = w.shape
    out = np.zeros((len(x), n_filters, rows, cols))
    for k, row, col in itertools.product(range(n_filters), range(rows), range(cols)):
        first = k // (n_filters // groups) * per_group
        for channel, r, c in itertools.product(range(per_group), *map(range, lengths)):
            weight = w[k, row, col, channel, *((-1 - r, -1 - c) if flip else (r, c))]
            at_row, at_col = row * subsample[0] + r * dilation[0], col * subsample[1] + c * dilation[1]
            out[:, k, row, col] += weight * padded[:, first + channel, at_row, at_col]
    return out


@pytest.mark.parametrize("name, flip", list(zip(CASES, [True, False, True, False], strict=True)))
def test_values_and_gradients_are_those_of_a_filter_at_each_position(mode, name, flip):
    border_mode, subsample, dilation, groups, positions = CASES[name]
    x = RNG.normal(size=(3, 4, 7, 6))
    w = RNG.normal(size=(8, *positions, 4 // groups, 3, 2))
    expected = reference(x, w, border_mode, subsample, dilation, groups, flip)
    g = RNG.normal(size=expected.shape)
    *symbols, weights = (pt.tensor(dtype="float64", shape=array.shape) for array in (x, w, g))
    y = conv2d(*symbols, None, None, border_mode, subsample, flip, None, dilation, groups, unshared=True)
    assert y.type.shape == expected.shape
    f = pytensor.function([*symbols, weights], [y, *grad((y * weights).sum(), symbols)], mode=mode)
    value, gx, gw = (np.asarray(result) for result in f(x, w, g))
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12)
    # The output is linear in either argument, so a gradient is found by a direction.
    for gradient, change, moved in (
        (gx, dx := RNG.normal(size=x.shape), (dx, w)),
        (gw, dw := RNG.normal(size=w.shape), (x, dw)),
    ):
        along = (reference(*moved, border_mode, subsample, dilation, groups, flip) * g).sum()
        np.testing.assert_allclose((gradient * change).sum(), along, rtol=1e-9)


def test_equal_filters_everywhere_are_a_convolution_of_unknown_shapes():
    x, w = pt.tensor4("x", dtype="float32"), pt.tensor("w", dtype="float32", shape=(None,) * 6)
    f = pytensor.function([x, w], conv2d(x, w, border_mode="half", unshared=True), mode="NUMBA")
    v = pt.tensor4("v", dtype="float32")
    shared = pytensor.function([x, v], conv2d(x, v, border_mode="half"), mode="NUMBA")
    for batch, channels, n_filters in ((2, 3, 5), (1, 1, 1), (0, 2, 3)):
        x_value = RNG.normal(size=(batch, channels, 6, 5)).astype("float32")
        w_value = RNG.normal(size=(n_filters, channels, 3, 3)).astype("float32")
        everywhere = np.tile(w_value[:, np.newaxis, np.newaxis], (1, 6, 5, 1, 1, 1))
        np.testing.assert_allclose(f(x_value, everywhere), shared(x_value, w_value), rtol=1e-4, atol=1e-5)
    for wrong in ((5, 6, 4, 3, 3, 3), (5, 5, 5, 3, 3, 3), (5, 6, 5, 2, 3, 3)):
        with pytest.raises(ValueError, match="unshared filters do not fit"):
            f(np.ones((2, 3, 6, 5), "float32"), np.ones(wrong, "float32"))


def test_second_gradients_are_the_derivatives_of_the_first():
    x, w = RNG.normal(size=(2, 2, 4, 3)), RNG.normal(size=(2, 3, 2, 2, 2, 2))

    def gradients(x, w):
        y = conv2d(x, w, unshared=True)
        gx, gw = grad((y**2).sum(), [x, w])
        return (gx**2).sum() + (gw**2).sum()

    verify_grad(gradients, [x, w], rng=RNG)


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
