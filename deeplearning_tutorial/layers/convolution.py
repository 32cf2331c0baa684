"""Convolution with bias and activation, as LeNet-5 and AlexNet are built of it."""

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial.layers.activations import weight_factor
from deeplearning_tutorial.nnet import conv2d


class Convolution:
    """Convolution, bias and activation: ``activation(conv2d(input, W) + b)``.

    Parameters
    ----------
    rng : numpy.random.RandomState
        Draws the initial filters.
    input : TensorVariable
        Shape ``image_shape``.
    filter_shape : tuple of int
        ``(filters, feature maps below, filter rows, filter cols)``.
    image_shape : tuple of (int or None)
        ``(batch, feature maps below, rows, cols)``; None where a length is unknown.
    activation : callable
        Elementwise.
    poolsize : tuple of int
        Rows and columns of the windows that pool the output; only the initial filters depend on it.
    connections : numpy.ndarray, optional
        bool of shape ``(feature maps below, filters)``: which maps each filter takes; all, unless given.
    W, b : shared variable, optional
        The filters and the bias, where they are drawn elsewhere; ``connections`` do not go with ``W``.
    border_mode, subsample, num_groups
        As `conv2d` takes them; the second length of ``filter_shape`` is that of a group.

    Attributes
    ----------
    W, b : shared variable
        Shapes ``filter_shape`` and ``(filters,)``.
    params : list of shared variables
        ``[W, b]``.
    convolved : TensorVariable
        ``conv2d(input, W)``; with the default ``border_mode`` and ``subsample`` of shape
        ``(batch, filters, rows - filter rows + 1, cols - filter cols + 1)``.
    output : TensorVariable
        The same shape.

    Notes
    -----
    ``W`` is uniform in ``+-sqrt(6 / (fan_in + fan_out))``, four times that for a sigmoid (Glorot and Bengio,
    2010); ``fan_out`` is divided by the windows' size, as in `LeNetConvPoolLayer`. ``b`` starts at zero.

    Weights without a connection are zero, and a mask keeps them and their gradient there. Products with them
    are computed all the same: the table of 1998 saves no time, but it remains a single convolution.
    """

    def __init__(
        self,
        rng,
        input,
        filter_shape,
        image_shape,
        activation,
        *,
        poolsize=(1, 1),
        connections=None,
        W=None,
        b=None,
        border_mode="valid",
        subsample=(1, 1),
        num_groups=1,
    ):
        floatX = pytensor.config.floatX
        if W is not None and connections is not None:
            raise ValueError("W and connections do not go together; let W be zero where nothing is connected")
        if W is None:
            W_values = self._drawn(rng, filter_shape, activation, poolsize, connections)
            W = pytensor.shared(W_values, name="W", borrow=True, shape=W_values.shape)
        if b is None:
            b_values = np.zeros((filter_shape[0],), dtype=floatX)
            b = pytensor.shared(b_values, name="b", borrow=True, shape=b_values.shape)
        self.W, self.b = self.params = [W, b]
        self.input = input
        self._activation = activation

        W = self.W if connections is None else self.W * pt.constant(_mask(connections).astype(floatX))
        self.convolved = conv2d(
            input,
            W,
            input_shape=image_shape,
            filter_shape=filter_shape,
            border_mode=border_mode,
            subsample=subsample,
            num_groups=num_groups,
        )
        self.output = self.activate(self.convolved)

    @staticmethod
    def _drawn(rng, filter_shape, activation, poolsize, connections):
        """Return initial filters, zero where there is no connection."""
        filters, maps_below, *size = filter_shape
        fan_in, fan_out = maps_below * np.prod(size), filters * np.prod(size)
        if connections is not None:
            # Of each filter, and of each map below.
            fan_in = connections.sum(axis=0)[:, np.newaxis, np.newaxis, np.newaxis] * np.prod(size)
            fan_out = connections.sum(axis=1)[:, np.newaxis, np.newaxis] * np.prod(size)
        bound = weight_factor(activation) * np.sqrt(6.0 / (fan_in + fan_out // np.prod(poolsize)))
        W_values = rng.uniform(low=-bound, high=bound, size=filter_shape)
        if connections is not None:
            W_values = W_values * _mask(connections)
        return np.asarray(W_values, dtype=pytensor.config.floatX)

    def activate(self, maps):
        """Add the bias to ``maps``, one per filter, and apply the activation."""
        return self._activation(maps + self.b.dimshuffle("x", 0, "x", "x"))


def _mask(connections):
    """Return a mask for filters that is False where there is no connection."""
    return connections.T[:, :, np.newaxis, np.newaxis]
