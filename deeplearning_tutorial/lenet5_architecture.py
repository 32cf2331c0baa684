"""The architecture of LeNet-5: every layer's shape derived and checked, counted, and built."""

from dataclasses import dataclass

import pytensor.tensor as pt

from deeplearning_tutorial.checks import (
    check_choice,
    check_no_gaps,
    check_positive_int,
    check_positive_ints,
)
from deeplearning_tutorial.layer_summary import (
    LayerSummary,
    does_not_fit,
    fully_connected,
    parameter_shapes,
    summary_table,
)
from deeplearning_tutorial.lenet5_layers import (
    ACTIVATIONS,
    POOLINGS,
    Convolution,
    Subsampling,
    connections_1998,
)
from deeplearning_tutorial.logistic_sgd import LogisticRegression
from deeplearning_tutorial.mlp import HiddenLayer
from deeplearning_tutorial.nnet.conv import conv_output_length
from deeplearning_tutorial.nnet.pool import pool_output_length

MNIST_SIDE, PADDING, N_CLASSES = 28, 2, 10
IMAGE_SIDE = MNIST_SIDE + 2 * PADDING
CONNECTIONS = ("full", "1998")


@dataclass(frozen=True)
class LeNet5:
    """The architecture of a LeNet-5, checked.

    Parameters
    ----------
    nkerns, filter_sizes : tuple of three int
        Filters in C1, C3 and C5, and the length of their sides.
    pool_sizes, pool_strides : tuple of two int
        Side of the windows in S2 and S4, and from one window to the next.
    pooling : {'max', 'average', 'sum', 'l2', '1998'}
    activation : {'tanh', 'relu', 'sigmoid', 'scaled_tanh'}
    connection : {'full', '1998'}
        Which maps of S2 each map of C3 takes: all, or those of `connections_1998`.
    n_hidden : int
        Units in F6.

    Raises
    ------
    ValueError
        If an argument is out of range, or a layer does not fit the one below.
    """

    nkerns: tuple[int, int, int]
    n_hidden: int
    filter_sizes: tuple[int, int, int]
    pool_sizes: tuple[int, int]
    pool_strides: tuple[int, int]
    pooling: str
    activation: str
    connection: str

    def __post_init__(self):
        check_positive_ints("nkerns", self.nkerns, 3, (6, 16, 120))
        check_positive_int("n_hidden", self.n_hidden, 84)
        check_positive_ints("filter_sizes", self.filter_sizes, 3, (5, 5, 5))
        check_positive_ints("pool_sizes", self.pool_sizes, 2, (2, 2))
        check_positive_ints("pool_strides", self.pool_strides, 2, (2, 2))
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("connection", self.connection, CONNECTIONS)
        if self.connection == "1998" and tuple(self.nkerns[:2]) != connections_1998().shape:
            raise ValueError(
                f"nkerns={self.nkerns} does not fit connection='1998', a table of 6 maps by 16; "
                f"use nkerns={(6, 16, self.nkerns[2])} or connection='full'"
            )
        self.layers()

    def layers(self):
        """Derive each layer, upwards: a list of `LayerSummary`.

        Raises
        ------
        ValueError
            If a layer does not fit the one below.
        """
        layers = [LayerSummary("input", (1, IMAGE_SIDE, IMAGE_SIDE))]
        layers.append(self._convolution("C1", 0, layers[-1]))
        layers.append(self._subsampling("S2", 0, layers[-1]))
        n_connected = int(connections_1998().sum()) if self.connection == "1998" else None
        layers.append(self._convolution("C3", 1, layers[-1], n_connected))
        layers.append(self._subsampling("S4", 1, layers[-1]))
        layers.append(self._convolution("C5", 2, layers[-1]))
        for name, n_out in (("F6", self.n_hidden), ("output", N_CLASSES)):
            layers.append(fully_connected(name, layers[-1], n_out))
        return layers

    def _convolution(self, name, index, below, n_connected=None):
        filters, size = self.nkerns[index], self.filter_sizes[index]
        maps, side, _ = below.shape
        length = conv_output_length(side, size, (0, 0), 1, 1)
        if length < 1:
            raise does_not_fit("filter_sizes", self.filter_sizes, f"the filters of {name}", size, below)
        n_pairs = filters * maps if n_connected is None else n_connected
        parameters = n_pairs * size**2 + filters
        shapes = {"W": (filters, maps, size, size), "b": (filters,)}
        return LayerSummary(name, (filters, length, length), shapes, parameters, parameters * length**2)

    def _subsampling(self, name, index, below):
        size, stride = self.pool_sizes[index], self.pool_strides[index]
        maps, side, _ = below.shape
        if size > side:
            raise does_not_fit("pool_sizes", self.pool_sizes, f"the windows of {name}", size, below)
        check_no_gaps("pool_strides", self.pool_strides, stride, f"the windows of {name}", size)
        length = pool_output_length(side, size, stride, 0, ignore_border=True)
        trained = self.pooling == "1998"
        shapes = {"coefficient": (maps,), "b": (maps,)} if trained else {}
        connections = maps * length**2 * (size**2 + trained)
        return LayerSummary(name, (maps, length, length), shapes, len(shapes) * maps, connections)

    def parameter_shapes(self):
        """Return the shape of each parameter by its name, such as ``C1.W``."""
        return parameter_shapes(self.layers())

    def summary(self):
        """Return a table of the layers: output, trained parameters and connections, and their sums."""
        return summary_table(self.layers())

    def build(self, rng, x, batch_size):
        """Build the layers over a minibatch of MNIST.

        Parameters
        ----------
        rng : numpy.random.RandomState
            Draws the initial weights, from C1 upwards.
        x : TensorVariable
            Shape ``(batch_size, 784)``.
        batch_size : int

        Returns
        -------
        dict of str to object
            `Convolution` "C1", "C3" and "C5", `Subsampling` "S2" and "S4", `HiddenLayer` "F6" and
            `LogisticRegression` "output".
        """
        activation = ACTIVATIONS[self.activation]
        shapes = {layer.name: (batch_size, *layer.shape) for layer in self.layers()}
        filters = self.parameter_shapes()
        inside = slice(PADDING, PADDING + MNIST_SIDE)
        images = x.reshape((batch_size, 1, MNIST_SIDE, MNIST_SIDE))
        output = pt.zeros(shapes["input"], dtype=x.dtype)[:, :, inside, inside].set(images)
        built, below = {}, "input"
        for convolution, subsampling, size, stride in zip(
            ("C1", "C3"), ("S2", "S4"), self.pool_sizes, self.pool_strides, strict=True
        ):
            built[convolution] = Convolution(
                rng,
                output,
                filters[f"{convolution}.W"],
                shapes[below],
                activation,
                poolsize=(size, size),
                connections=connections_1998() if (convolution, self.connection) == ("C3", "1998") else None,
            )
            built[subsampling] = Subsampling(
                built[convolution],
                shapes[convolution][1],
                self.pooling,
                activation,
                poolsize=(size, size),
                stride=(stride, stride),
            )
            output, below = built[subsampling].output, subsampling
        built["C5"] = Convolution(rng, output, filters["C5.W"], shapes["S4"], activation)
        n_in, n_hidden = filters["F6.W"]
        F6_input = built["C5"].output.reshape((batch_size, n_in))
        built["F6"] = HiddenLayer(rng, F6_input, n_in, n_hidden, activation=activation)
        built["output"] = LogisticRegression(built["F6"].output, n_hidden, N_CLASSES)
        return built
