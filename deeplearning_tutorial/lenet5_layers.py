"""The layers that LeNet-5 adds to the tutorial's: convolution, subsampling, and which maps are connected.

AlexNet is built of the same convolutions.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial.activations import is_sigmoid
from deeplearning_tutorial.nnet import conv2d, max_pool, relu, sum_pool
from deeplearning_tutorial.nnet.poolings import POOLINGS_BY_NAME


def scaled_tanh(x):
    """Compute ``1.7159 * tanh(2 / 3 * x)``, which is 1 at 1 and -1 at -1 (LeCun et al., 1998, appendix A).

    Parameters
    ----------
    x : tensor_like
        Any shape.

    Returns
    -------
    TensorVariable
        The shape of ``x``.
    """
    return 1.7159 * pt.tanh(2 / 3 * x)


# All of them rise, or are level, throughout.
ACTIVATIONS = {"tanh": pt.tanh, "relu": relu, "sigmoid": pt.sigmoid, "scaled_tanh": scaled_tanh}
POOLINGS = (*POOLINGS_BY_NAME, "1998")


def connections_1998():
    """Return which maps of S2 each map of C3 takes: bool of shape ``(6, 16)`` (LeCun et al., 1998, table I).

    Six maps of C3 take three maps that lie side by side, six take four, three take two pairs, the last all.
    """
    side_by_side = [[(first + k) % 6 for k in range(n)] for n in (3, 4) for first in range(6)]
    pairs = [[first, first + 1, (first + 3) % 6, (first + 4) % 6] for first in range(3)]
    table = np.zeros((6, 16), bool)
    for column, rows in enumerate([*side_by_side, *pairs, range(6)]):
        table[rows, column] = True
    return table


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
    are computed all the same: with the table of 1998 no less time passes than with all connections, but it
    remains a single convolution.
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
        mask = None
        if W is None:
            W_values, mask = self._drawn(rng, filter_shape, activation, poolsize, connections)
            W = pytensor.shared(W_values, name="W", borrow=True, shape=W_values.shape)
        if b is None:
            b_values = np.zeros((filter_shape[0],), dtype=floatX)
            b = pytensor.shared(b_values, name="b", borrow=True, shape=b_values.shape)
        self.W, self.b = self.params = [W, b]
        self.input = input
        self._activation = activation

        W = self.W if connections is None else self.W * pt.constant(mask.astype(floatX))
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
        """Return initial filters, and a mask that is False where there is no connection."""
        filters, maps_below, *size = filter_shape
        connected = np.ones((filters, maps_below), bool) if connections is None else connections.T
        fan_in = connected.sum(axis=1)[:, np.newaxis] * np.prod(size)
        fan_out = connected.sum(axis=0) * np.prod(size) // np.prod(poolsize)
        bound = np.sqrt(6.0 / (fan_in + fan_out))[:, :, np.newaxis, np.newaxis]
        mask = connected[:, :, np.newaxis, np.newaxis]
        W_values = np.asarray(
            rng.uniform(low=-bound, high=bound, size=filter_shape) * mask, dtype=pytensor.config.floatX
        )
        x = pt.dvector("x")
        if is_sigmoid(activation(x), x):
            W_values *= 4
        return W_values, mask

    def activate(self, maps):
        """Add the bias to ``maps``, one per filter, and apply the activation."""
        return self._activation(maps + self.b.dimshuffle("x", 0, "x", "x"))


class Subsampling:
    """Pooling of a `Convolution`.

    Parameters
    ----------
    below : Convolution
    n_maps : int
        Its filters.
    pooling : {'max', 'average', 'sum', 'l2', '1998'}
        What to take of each window: see `max_pool`, `average_pool`, `sum_pool` and `l2_pool`. '1998'
        multiplies the sum by a coefficient, adds a bias, both trained and one of each per map, and applies
        ``activation`` (LeCun et al., 1998, section II.B).
    activation : callable
        Elementwise, one that never falls.
    poolsize, stride : tuple of int
        Rows and columns of the windows, and from one window to the next.

    Attributes
    ----------
    coefficient, b : shared variable
        With '1998' only; shape ``(n_maps,)``.
    params : list of shared variables
        ``[coefficient, b]`` with '1998', else none.
    output : TensorVariable
        Shape ``(batch, n_maps, rows', cols')``, as `pool_2d` has it with ``ignore_border=True``.

    Notes
    -----
    The coefficients start at one over the size of the windows, so that a sum begins as an average; ``b``
    starts at zero. The maximum is taken before bias and activation, which gives the same and computes less.
    """

    def __init__(self, below, n_maps, pooling, activation, *, poolsize=(2, 2), stride=(2, 2)):
        floatX = pytensor.config.floatX
        self.input = below.output
        self.params = []

        if pooling == "max":
            self.output = below.activate(max_pool(below.convolved, poolsize, stride))
        elif pooling == "1998":
            self.coefficient, self.b = self.params = [
                pytensor.shared(np.full((n_maps,), value, floatX), name=name, borrow=True, shape=(n_maps,))
                for name, value in (("coefficient", 1 / np.prod(poolsize)), ("b", 0))
            ]
            coefficient, b = (param.dimshuffle("x", 0, "x", "x") for param in self.params)
            self.output = activation(coefficient * sum_pool(below.output, poolsize, stride) + b)
        else:
            self.output = POOLINGS_BY_NAME[pooling](below.output, poolsize, stride)
