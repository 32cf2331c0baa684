"""Local response normalisation, built from pooling over the channels and elementwise Ops."""

import math
from numbers import Real

import numpy as np
import pytensor.tensor as pt

from deeplearning_tutorial.nnet.integers import check_positive_integer
from deeplearning_tutorial.nnet.pool import pool_2d
from deeplearning_tutorial.nnet.shape_hint import lengths_of


def local_response_normalisation(input, n=5, k=2, alpha=1e-4, beta=0.75):
    """Divide each element by a power of the squares at its position in adjacent feature maps.

    Parameters
    ----------
    input : tensor_like
        Shape ``(batch, channels, rows, cols)``; float32 or float64.
    n : int
        Adjacent maps to sum over: up to ``n // 2`` on each side, and the map itself. An even ``n`` therefore
        means the same as ``n + 1``.
    k : float
        Added to the sum; positive, so that nothing is divided by zero.
    alpha : float
        Factor of the sum, zero or more. PyTorch's ``local_response_norm`` divides its factor by ``n``: this
        ``alpha`` is ``alpha * n`` of that function.
    beta : float
        Exponent of the divisor.

    Returns
    -------
    TensorVariable
        The shape and dtype of ``input``: ``input / (k + alpha * sum(input**2)) ** beta``.

    Raises
    ------
    ValueError
        If ``n`` is not a positive integer, or ``k``, ``alpha`` or ``beta`` is out of range.
    TypeError
        If ``input`` does not have four dimensions or is neither float32 nor float64.

    Notes
    -----
    Krizhevsky, Sutskever and Hinton, 2012, "ImageNet classification with deep convolutional neural networks",
    section 3.3, whose constants are the defaults.
    """
    x = pt.as_tensor_variable(input)
    if x.type.ndim != 4 or x.dtype not in ("float32", "float64"):
        raise TypeError(
            f"input is {x.type}; local_response_normalisation takes (batch, channels, rows, cols) of float32 "
            "or float64"
        )
    check_positive_integer("n", n, 5)
    for name, value, fits, use in (
        ("k", k, lambda k: k > 0, "a positive number, e.g. k=2"),
        ("alpha", alpha, lambda alpha: alpha >= 0, "zero or more, e.g. alpha=1e-4"),
        ("beta", beta, lambda beta: True, "a number, e.g. beta=0.75"),
    ):
        number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not fits(value):
            raise ValueError(f"{name}={value!r} is out of range; use {use}")

    batch, channels, rows, cols = lengths_of(x)
    reach = int(n) // 2
    squares = (x * x).reshape((batch, channels, rows * cols))
    sums = pool_2d(
        squares, ws=(2 * reach + 1, 1), ignore_border=True, stride=(1, 1), pad=(reach, 0), mode="sum"
    ).reshape((batch, channels, rows, cols))
    k, alpha = (np.asarray(value, x.dtype) for value in (k, alpha))
    return x / _power(k + alpha * sums, beta)


def _power(x, exponent):
    # Square roots are vector instructions; for a power a function is called for each element.
    if exponent == 0.75:
        root = pt.sqrt(x)
        return root * pt.sqrt(root)
    # Not as x**exponent, for which PyTensor 3.0 calls a function that PyTorch does not have.
    return pt.exp(np.asarray(exponent, x.dtype) * pt.log(x))
