"""The costs of ``theano.tensor.nnet``, with its signatures."""

import pytensor.tensor as pt


def categorical_crossentropy(coding_dist, true_dist):
    """Cross-entropy of distributions over classes, ``-sum(true * log(coding))``.

    Parameters
    ----------
    coding_dist : tensor_like
        Shape ``(..., classes)``, a distribution in each row: the model's prediction.
    true_dist : tensor_like
        Distributions of the same shape; or, if ``coding_dist`` is a matrix, a vector of class numbers:
        integers of shape ``(batch,)``.

    Returns
    -------
    TensorVariable
        One value per row: the shape of ``coding_dist`` without its last dimension.

    Raises
    ------
    TypeError
        If ``true_dist`` is neither of the two.

    Notes
    -----
    The rewrite ``log_likelihood_fusion`` replaces this function of ``softmax(x)`` and integer labels by one
    Op, which stays finite where a probability is zero.
    """
    coding_dist, true_dist = pt.as_tensor_variable(coding_dist), pt.as_tensor_variable(true_dist)
    if true_dist.ndim == coding_dist.ndim:
        return -pt.sum(true_dist * pt.log(coding_dist), axis=coding_dist.ndim - 1)
    if coding_dist.ndim == 2 and true_dist.ndim == 1 and "int" in true_dist.dtype:
        return -pt.log(coding_dist)[pt.arange(true_dist.shape[0]), true_dist]
    raise TypeError(
        f"true_dist has {true_dist.ndim} dimensions and dtype {true_dist.dtype}, coding_dist has "
        f"{coding_dist.ndim} dimensions; give distributions of the same shape, or a vector of class numbers "
        "beside a matrix"
    )


def binary_crossentropy(output, target):
    """Cross-entropy of probabilities, elementwise: ``-(t * log(o) + (1 - t) * log(1 - o))``.

    Parameters
    ----------
    output : tensor_like
        Probabilities, of any shape.
    target : tensor_like
        Probabilities, or 0 and 1, that broadcast against ``output``.

    Returns
    -------
    TensorVariable
        The common shape of the two.
    """
    output, target = pt.as_tensor_variable(output), pt.as_tensor_variable(target)
    return -(target * pt.log(output) + (1.0 - target) * pt.log(1.0 - output))
