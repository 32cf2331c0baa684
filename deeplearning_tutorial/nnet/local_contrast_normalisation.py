"""Local contrast normalisation: subtract the neighbourhood's mean, divide by its standard deviation."""

import numpy as np
import pytensor.tensor as pt

from deeplearning_tutorial.nnet.abstract_conv import conv2d
from deeplearning_tutorial.nnet.integers import division_note, is_integer
from deeplearning_tutorial.nnet.poolings import root
from deeplearning_tutorial.nnet.shape_hint import lengths_of


def local_contrast_normalisation(input, size=9, sigma=None, threshold=1e-4):
    """Subtract the weighted mean of each element's neighbourhood in all maps, and divide by its deviation.

    Parameters
    ----------
    input : tensor_like
        Shape ``(batch, maps, rows, cols)``; float32 or float64.
    size : int
        Rows, and columns, of the neighbourhood; odd.
    sigma : float, optional
        Standard deviation of its Gaussian weights, in pixels; ``size / 4`` if not given.
    threshold : float
        Smallest divisor, at least zero, so that rounding errors in an image without contrast are not
        amplified; the paper has none.

    Returns
    -------
    TensorVariable
        The shape and dtype of ``input``.

    Raises
    ------
    ValueError
        If ``size`` is not odd, or ``sigma`` or ``threshold`` is out of range.
    TypeError
        If ``input`` does not have four dimensions or is neither float32 nor float64.

    Notes
    -----
    Jarrett, Kavukcuoglu, Ranzato and LeCun (2009), "What is the best multi-stage architecture for object
    recognition?", section 3.1. With weights ``w`` that sum to 1 over positions and maps, the subtractive step
    is ``v = x - sum(w * x)``; the divisive step ``v / max(c, s)``, where ``s = sqrt(sum(w * v**2))`` at each
    position and c is the mean of s over the image.

    At the border, where a part of the neighbourhood is missing, the weights of the other part are scaled to
    sum to 1.
    """
    x = pt.as_tensor_variable(input)
    if x.type.ndim != 4 or x.dtype not in ("float32", "float64"):
        raise TypeError(
            f"input is {x.type}; local_contrast_normalisation takes (batch, maps, rows, cols) of float32 or "
            "float64"
        )
    if not is_integer(size) or size < 1 or size % 2 == 0:
        raise ValueError(
            f"size={size!r} is not an odd positive integer; use e.g. size=9{division_note(size)}"
        )
    sigma = size / 4 if sigma is None else sigma
    if not 0 < sigma < np.inf:
        raise ValueError(f"sigma={sigma!r} is not a positive finite number; use e.g. sigma=2.25")
    if not 0 <= threshold < np.inf:
        raise ValueError(
            f"threshold={threshold!r} is not a finite number of at least 0; use e.g. threshold=1e-4"
        )
    along = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    filters = (np.outer(along, along) / along.sum() ** 2).astype(x.dtype)[np.newaxis, np.newaxis]

    def smooth(maps):
        return conv2d(maps, filters, border_mode="half")

    present = smooth(pt.ones((1, 1, *lengths_of(x)[2:]), x.dtype))
    v = x - smooth(x.mean(axis=1, keepdims=True)) / present
    deviation = root(smooth(pt.sqr(v).mean(axis=1, keepdims=True)) / present)
    divisor = pt.maximum(deviation, deviation.mean(axis=(2, 3), keepdims=True))
    return v / pt.maximum(divisor, np.asarray(threshold, x.dtype))
