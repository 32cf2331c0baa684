"""Poolings of several kinds, built from `pool_2d` and its Ops, so that each runs on every back end.

All take ``(batch, maps, rows, cols)`` and ignore rows and columns at the border that do not fill a window.
Windows overlap if ``stride`` is smaller than ``ws``.
"""

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import disconnected_grad

from deeplearning_tutorial.nnet.abstract_conv import conv2d
from deeplearning_tutorial.nnet.pool import MaxPoolGradGrad, pool_2d
from deeplearning_tutorial.nnet.shape_hint import lengths_of


def max_pool(input, ws, stride=None, pad=(0, 0)):
    """Take the maximum of each window; see `pool_2d`.

    Parameters
    ----------
    input : tensor_like
        Shape ``(batch, maps, rows, cols)``; float32 or float64.
    ws : tuple of int
        Rows and columns of the window.
    stride : tuple of int, optional
        Distance from one window to the next; ``ws`` if not given.
    pad : tuple of int
        Rows of padding above and below, columns left and right; never a maximum.

    Returns
    -------
    TensorVariable
        Shape ``(batch, maps, rows', cols')``, ``rows' = (rows + 2 * pad - window) // stride + 1``.

    Notes
    -----
    With a stride smaller than the window this is the overlapping pooling of Krizhevsky, Sutskever and Hinton
    (2012), section 3.4, who take windows of 3x3 with a stride of 2.
    """
    return pool_2d(_four_dimensions("max_pool", input), ws, True, stride, pad)


def average_pool(input, ws, stride=None, pad=(0, 0)):
    """Take the mean of each window without its padding (LeCun et al., 1990).

    Parameters and result are those of `max_pool`.

    Parameters
    ----------
    input : tensor_like
    ws, stride, pad : tuple of int

    Returns
    -------
    TensorVariable
    """
    return pool_2d(_four_dimensions("average_pool", input), ws, True, stride, pad, "average_exc_pad")


def sum_pool(input, ws, stride=None, pad=(0, 0)):
    """Take the sum of each window.

    Parameters and result are those of `max_pool`; padding is zero.

    Parameters
    ----------
    input : tensor_like
    ws, stride, pad : tuple of int

    Returns
    -------
    TensorVariable
    """
    return pool_2d(_four_dimensions("sum_pool", input), ws, True, stride, pad, "sum")


def l2_pool(input, ws, stride=None, pad=(0, 0)):
    """Take the square root of the sum of squares of each window.

    Parameters and result are those of `max_pool`; padding is zero.

    Parameters
    ----------
    input : tensor_like
    ws, stride, pad : tuple of int

    Returns
    -------
    TensorVariable

    Notes
    -----
    This is the Lp pooling of Sermanet, Chintala and LeCun (2012), "Convolutional Neural Networks Applied to
    House Numbers Digit Classification", section 2.1, with p = 2 and equal weights of 1. It is a sum, not
    a mean. The gradient is ``x / output``, and zero where a window is zero throughout.
    """
    x = _four_dimensions("l2_pool", input)
    return root(pool_2d(x * x, ws, True, stride, pad, "sum"))


def stochastic_pool(input, ws, stride=None, pad=(0, 0), *, uniform=None):
    """Sample an activation of each window, or weight all of them by their probabilities.

    Parameters and result are those of `max_pool`. An element of a window has the probability ``p_i = a_i /
    sum(a)``; a negative element counts as zero, so it is never sampled. The result of a window without a
    positive element is zero.

    Parameters
    ----------
    input : tensor_like
        Activations; in the paper, of a rectifier.
    ws, stride, pad : tuple of int
    uniform : tensor_like, optional
        Random numbers between 0 and 1 of the shape of ``input``, such as those of `uniform_numbers`, to
        sample in training. Without them the result is ``sum(p_i * a_i)``, as in testing.

    Returns
    -------
    TensorVariable

    Notes
    -----
    Zeiler and Fergus (2013), "Stochastic Pooling for Regularization of Deep Convolutional Neural Networks",
    equations 4 to 6. The gradient goes to the sampled element.

    With exponential variates ``e_i = -log(uniform_i)``, ``e_i / a_i`` is smallest for i with the probability
    ``p_i``, so the sample is the element whose ``a_i / e_i`` is largest. Windows that do not overlap are
    sampled as in the paper; windows that overlap share their random numbers, so they tend to sample the same
    element. If rounding makes two quotients equal, in one of millions of windows, their elements are added.
    """
    x = _four_dimensions("stochastic_pool", input)
    # Not the reverse comparison: a NaN must remain one.
    activations = pt.switch(pt.le(disconnected_grad(x), 0), pt.zeros((), x.dtype), x)
    if uniform is None:
        total = pool_2d(activations, ws, True, stride, pad, "sum")
        squares = pool_2d(activations * activations, ws, True, stride, pad, "sum")
        return squares / pt.switch(pt.eq(disconnected_grad(total), 0), pt.ones((), x.dtype), total)
    uniform = pt.cast(pt.as_tensor_variable(uniform), x.dtype)
    if uniform.type.ndim != 4:
        raise ValueError(
            f"uniform has {uniform.type.ndim} dimensions; give a number for each element of input"
        )
    limits = np.finfo(x.dtype)
    # Neither zero nor infinite: two zeros have no quotient, and infinite quotients would tie.
    exponential = -pt.log(pt.clip(uniform, limits.tiny, 1 - limits.epsneg))
    quotients = disconnected_grad(activations / exponential)
    largest = pool_2d(quotients, ws, True, stride, pad)
    op = largest.owner.op
    sampled = MaxPoolGradGrad(op.ignore_border, op.ws, op.stride, op.pad)(
        quotients, largest, activations, *largest.owner.inputs[1:]
    )
    return pt.switch(pt.isnan(largest), largest, sampled)


def deformation_constrained_pool(input, ws, stride=None, pad=(0, 0), *, coefficients):
    """Take the maximum of each window after a penalty for the distance from the window's centre.

    Parameters and result are those of `max_pool`, and padding is never a maximum.

    Parameters
    ----------
    input : tensor_like
        Part detection maps.
    ws, stride, pad : tuple of int
    coefficients : tensor_like
        Shape ``(maps, 4)``: each map's penalties on the displacement by columns, by rows, and on their
        squares. With zeros this is max-pooling.

    Returns
    -------
    TensorVariable
        ``max(input[displaced] - sum(coefficients * (dx, dy, dx**2, dy**2)))`` over the window, where the
        element is dx columns and dy rows from the window's centre. They are whole numbers if the window is
        odd, and odd multiples of 1/2 if it is even.

    Raises
    ------
    ValueError
        If ``coefficients`` is not a matrix of four columns.

    Notes
    -----
    Ouyang et al. (2014), "DeepID-Net: multi-stage and deformable deep convolutional neural networks for
    object detection", deformation constrained pooling: windows of ``2 * R + 1`` around anchors ``stride``
    apart, with the quadratic deformation of Felzenszwalb et al. (2010) as the features ``d_n``. Like
    `pool_2d`'s, the gradient goes to every element that equals its window's maximum.
    """
    x = _four_dimensions("deformation_constrained_pool", input)
    coefficients = pt.as_tensor_variable(coefficients)
    if coefficients.type.ndim != 2 or coefficients.type.shape[1] not in (None, 4):
        raise ValueError(
            f"coefficients is {coefficients.type}; give four numbers for each map, shape (maps, 4)"
        )
    # The Op of max-pooling has them, checked and normalised.
    op = max_pool(x, ws, stride, pad).owner.op
    if op.ws is None:
        raise TypeError("ws, stride or pad is symbolic; deformation_constrained_pool takes tuples of ints")
    batch, maps, rows, cols = lengths_of(x)
    # Each filter takes one element of the window.
    elements = np.eye(op.ws[0] * op.ws[1], dtype=x.dtype).reshape((-1, 1, *op.ws))

    def windows_of(maps):
        return conv2d(maps, elements, border_mode=op.pad, subsample=op.stride, filter_flip=False)

    windows = windows_of(x.reshape((batch * maps, 1, rows, cols)))
    if any(op.pad):
        inside = windows_of(pt.ones((1, 1, rows, cols), x.dtype))
        windows = pt.switch(inside > 0, windows, np.asarray(-np.inf, x.dtype))
    dy, dx = (np.arange(window) - (window - 1) / 2 for window in op.ws)
    dx, dy = (displacements.ravel() for displacements in np.meshgrid(dx, dy))
    features = np.transpose([dx, dy, dx**2, dy**2]).astype(coefficients.dtype)
    # The product of two matrices, as a convolution, which every back end has.
    penalties = conv2d(coefficients[:, :, np.newaxis, np.newaxis], features[:, :, np.newaxis, np.newaxis])
    windows = windows.reshape((batch, maps, *lengths_of(windows)[1:]))
    return (windows - penalties.reshape((1, maps, len(features), 1, 1))).max(axis=2)


POOLINGS_BY_NAME = {"max": max_pool, "average": average_pool, "sum": sum_pool, "l2": l2_pool}
"""The poolings that need no further arguments."""


def root(x):
    """Return the square root; its gradient is zero, not infinite, where ``x`` is zero."""
    positive = pt.neq(disconnected_grad(x), 0)
    return pt.switch(positive, pt.sqrt(pt.switch(positive, x, pt.ones((), x.dtype))), pt.zeros((), x.dtype))


def _four_dimensions(function, input):
    x = pt.as_tensor_variable(input)
    if x.type.ndim != 4:
        raise TypeError(f"input has {x.type.ndim} dimensions; {function} takes (batch, maps, rows, cols)")
    return x
