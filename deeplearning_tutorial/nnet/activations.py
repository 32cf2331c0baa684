"""The activations of ``theano.tensor.nnet``, with its signatures, built from PyTensor's Ops."""

import pytensor.tensor as pt


def softmax(c):
    """Normalise the exponentials of each row.

    Parameters
    ----------
    c : tensor_like
        Shape ``(batch, classes)``, or ``(classes,)``, which is treated as a single row, as by Theano.

    Returns
    -------
    TensorVariable
        Shape ``(batch, classes)``; each row sums to 1.

    Raises
    ------
    ValueError
        If ``c`` does not have one or two dimensions.
    """
    c = pt.as_tensor_variable(c)
    if c.ndim not in (1, 2):
        raise ValueError(f"c has {c.ndim} dimensions; softmax takes a matrix, or a vector as its single row")
    return pt.special.softmax(c if c.ndim == 2 else c.dimshuffle("x", 0), axis=1)


def sigmoid(x):
    """Compute ``1 / (1 + exp(-x))``, elementwise.

    Parameters
    ----------
    x : tensor_like
        Any shape.

    Returns
    -------
    TensorVariable
        The shape of ``x``.
    """
    return pt.sigmoid(x)


def softplus(x):
    """Compute ``log(1 + exp(x))``, elementwise.

    Parameters
    ----------
    x : tensor_like
        Any shape.

    Returns
    -------
    TensorVariable
        The shape of ``x``.
    """
    return pt.softplus(x)


def relu(x, alpha=0):
    """Rectify: ``x`` where it is positive, ``alpha * x`` elsewhere.

    Parameters
    ----------
    x : tensor_like
        Any shape.
    alpha : scalar or tensor_like, optional
        Slope for negative values, broadcast against ``x``; a shared variable makes it a parameter (He et al.,
        2015, "Delving Deep into Rectifiers", section 2.1).

    Returns
    -------
    TensorVariable
        The shape of ``x``. Its gradient at zero is ``(1 + alpha) / 2``, as in Theano.
    """
    x = pt.as_tensor_variable(x)
    # From x and its magnitude, whose gradient at zero is zero.
    if isinstance(alpha, (int, float)) and alpha == 0:
        return 0.5 * (x + abs(x))
    alpha = pt.as_tensor_variable(alpha, dtype=x.dtype if isinstance(alpha, (int, float)) else None)
    return 0.5 * ((1 + alpha) * x + (1 - alpha) * abs(x))
