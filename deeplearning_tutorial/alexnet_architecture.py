"""The architecture of AlexNet: every layer's shape derived and checked, counted, and built."""

from dataclasses import dataclass

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial.checks import (
    check_no_gaps,
    check_positive_int,
    check_positive_ints,
    check_probability,
    check_rate,
)
from deeplearning_tutorial.layer_summary import (
    LayerSummary,
    does_not_fit,
    fully_connected,
    parameter_shapes,
    summary_table,
)
from deeplearning_tutorial.lenet5_layers import Convolution
from deeplearning_tutorial.logistic_sgd import LogisticRegression
from deeplearning_tutorial.mlp import HiddenLayer
from deeplearning_tutorial.nnet import local_response_normalisation, pool_2d, relu
from deeplearning_tutorial.nnet.conv import conv_output_length
from deeplearning_tutorial.nnet.pool import pool_output_length

CHANNELS = 3
CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
HIDDEN = ("fc6", "fc7")
# Which convolutions the two towers of the paper compute apart, and after which there is what (section 3.5).
GROUPED = ("conv2", "conv4", "conv5")
NORMALISED = {"conv1": "norm1", "conv2": "norm2"}
POOLED = {"conv1": "pool1", "conv2": "pool2", "conv5": "pool5"}
NEIGHBOURS = 5
# Section 5: which biases start at one, not at zero, to give the rectifiers positive inputs.
BIASED = ("conv2", "conv4", "conv5", *HIDDEN)


@dataclass(frozen=True)
class AlexNet:
    """The architecture of an AlexNet, checked.

    Parameters
    ----------
    n_classes : int
    image_side : int
        Rows, and columns, of the images.
    nkerns, filter_sizes : tuple of five int
        Filters of each convolution, and the length of their sides. All but the first convolution are padded
        by half a filter.
    stride : int
        Of the first convolution.
    num_groups : int
        Into how many groups that do not see each other conv2, conv4 and conv5 are divided.
    pool_size, pool_stride : int
        Side of the windows of all poolings, and from one window to the next.
    n_hidden : tuple of two int
        Units in fc6 and fc7.
    dropout : float
        Probability that a hidden unit is dropped in training.
    deviation : float
        Standard deviation of the initial weights.

    Raises
    ------
    ValueError
        If an argument is out of range, or a layer does not fit the one below.
    """

    n_classes: int
    image_side: int
    nkerns: tuple[int, int, int, int, int]
    filter_sizes: tuple[int, int, int, int, int]
    stride: int
    num_groups: int
    pool_size: int
    pool_stride: int
    n_hidden: tuple[int, int]
    dropout: float
    deviation: float

    def __post_init__(self):
        check_positive_int("n_classes", self.n_classes, 1000)
        check_positive_int("image_side", self.image_side, 227)
        check_positive_ints("nkerns", self.nkerns, 5, (96, 256, 384, 384, 256))
        check_positive_ints("filter_sizes", self.filter_sizes, 5, (11, 5, 3, 3, 3))
        check_positive_int("stride", self.stride, 4)
        check_positive_int("num_groups", self.num_groups, 2)
        check_positive_int("pool_size", self.pool_size, 3)
        check_positive_int("pool_stride", self.pool_stride, 2)
        check_positive_ints("n_hidden", self.n_hidden, 2, (4096, 4096))
        check_probability("dropout", self.dropout, 0.5)
        check_rate("deviation", self.deviation, 0.01)
        for name, n in zip(CONVOLUTIONS, self.nkerns, strict=True):
            # conv3 sees all of its maps, and its own maps are the groups of conv4.
            if n % self.num_groups:
                raise ValueError(
                    f"nkerns={self.nkerns} does not fit num_groups={self.num_groups}, which does not divide "
                    f"the {n} filters of {name}; use multiples of it, or num_groups=1"
                )
        check_no_gaps("pool_stride", self.pool_stride, self.pool_stride, "the windows", self.pool_size)
        self.layers()

    def layers(self):
        """Derive each layer, upwards: a list of `LayerSummary`.

        Raises
        ------
        ValueError
            If a layer does not fit the one below.
        """
        layers = [LayerSummary("input", (CHANNELS, self.image_side, self.image_side))]
        for index, name in enumerate(CONVOLUTIONS):
            layers.append(self._convolution(name, index, layers[-1]))
            if name in NORMALISED:
                layers.append(_normalisation(NORMALISED[name], layers[-1]))
            if name in POOLED:
                layers.append(self._pooling(POOLED[name], layers[-1]))
        for name, n_out in zip((*HIDDEN, "output"), (*self.n_hidden, self.n_classes), strict=True):
            layers.append(fully_connected(name, layers[-1], n_out))
        return layers

    def _convolution(self, name, index, below):
        filters, size = self.nkerns[index], self.filter_sizes[index]
        maps, side, _ = below.shape
        length = conv_output_length(side, size, self._pads(name, index), self._stride(name), 1)
        if length < 1:
            raise does_not_fit("filter_sizes", self.filter_sizes, f"the filters of {name}", size, below)
        shapes = {"W": (filters, maps // self._groups(name), size, size), "b": (filters,)}
        parameters = sum(int(np.prod(shape)) for shape in shapes.values())
        return LayerSummary(name, (filters, length, length), shapes, parameters, parameters * length**2)

    def _pads(self, name, index):
        return (0, 0) if name == "conv1" else (self.filter_sizes[index] // 2,) * 2

    def _stride(self, name):
        return self.stride if name == "conv1" else 1

    def _groups(self, name):
        return self.num_groups if name in GROUPED else 1

    def _pooling(self, name, below):
        maps, side, _ = below.shape
        if self.pool_size > side:
            raise does_not_fit("pool_size", self.pool_size, f"the windows of {name}", self.pool_size, below)
        length = pool_output_length(side, self.pool_size, self.pool_stride, 0, ignore_border=True)
        return LayerSummary(name, (maps, length, length), connections=maps * (length * self.pool_size) ** 2)

    def parameter_shapes(self):
        """Return the shape of each trained parameter by its name, such as ``conv1.W``."""
        return parameter_shapes(self.layers())

    def summary(self):
        """Return a table of the layers: output, trained parameters and connections, and their sums."""
        return summary_table(self.layers())

    def build(self, rng, images, batch_size, kept):
        """Build the layers over a minibatch of images.

        Parameters
        ----------
        rng : numpy.random.RandomState
            Draws the initial weights, from conv1 upwards.
        images : TensorVariable
            Shape ``(batch_size, 3, image_side, image_side)``.
        batch_size : int
        kept : list of two TensorVariable
            What the outputs of fc6 and fc7 are multiplied by, of shapes that broadcast to
            ``(batch_size, n_hidden[i])``: what `draw_kept` gives to train, else what `keep_all` gives.

        Returns
        -------
        dict of str to object
            `Convolution` "conv1" to "conv5", `HiddenLayer` "fc6" and "fc7", `LogisticRegression` "output".

        Notes
        -----
        Weights are drawn from a normal distribution of mean zero; biases are one in conv2, conv4, conv5, fc6
        and fc7, and zero in the others (section 5).
        """
        shapes = {layer.name: (batch_size, *layer.shape) for layer in self.layers()}
        filters = self.parameter_shapes()
        built, output, below = {}, images, "input"
        for index, name in enumerate(CONVOLUTIONS):
            pad, _ = self._pads(name, index)
            built[name] = Convolution(
                rng,
                output,
                filters[f"{name}.W"],
                shapes[below],
                relu,
                W=self._weights(rng, filters[f"{name}.W"]),
                b=_biases(name, filters),
                border_mode=(pad, pad),
                subsample=(self._stride(name),) * 2,
                num_groups=self._groups(name),
            )
            output, below = built[name].output, name
            if name in NORMALISED:
                output = local_response_normalisation(output, n=NEIGHBOURS)
            if name in POOLED:
                window, stride = (self.pool_size,) * 2, (self.pool_stride,) * 2
                output, below = pool_2d(output, window, True, stride), POOLED[name]
        output = output.reshape((batch_size, filters["fc6.W"][0]))
        for name, factor in zip(HIDDEN, kept, strict=True):
            shape = filters[f"{name}.W"]
            W, b = self._weights(rng, shape), _biases(name, filters)
            built[name] = HiddenLayer(rng, output, *shape, W, b, relu)
            output = built[name].output * factor
        shape = filters["output.W"]
        built["output"] = LogisticRegression(output, *shape)
        built["output"].W.set_value(self._normal(rng, shape), borrow=True)
        return built

    def _normal(self, rng, shape):
        return rng.normal(scale=self.deviation, size=shape).astype(pytensor.config.floatX)

    def _weights(self, rng, shape):
        return pytensor.shared(self._normal(rng, shape), name="W", borrow=True, shape=shape)

    def draw_kept(self, seed, iteration, batch_size):
        """Draw which hidden units of each image are kept in a training step.

        Parameters
        ----------
        seed, iteration : int
            Each pair has its own draw, so that a run that is resumed needs no generator's state.
        batch_size : int

        Returns
        -------
        list of two numpy.ndarray
            Shapes ``(batch_size, n_hidden[i])``, of dtype floatX: 0 with the probability ``dropout``, else 1.
        """
        rng = np.random.default_rng([seed, iteration])
        return [
            (rng.random((batch_size, n), dtype=np.float32) >= self.dropout).astype(pytensor.config.floatX)
            for n in self.n_hidden
        ]

    def keep_all(self, batch_size):
        """Return what stands for `draw_kept` outside of training: all units, times ``1 - dropout``.

        Returns
        -------
        list of two TensorVariable
            Shapes ``(batch_size, n_hidden[i])`` (section 4.2).
        """
        probability = np.asarray(1 - self.dropout, pytensor.config.floatX)
        return [pt.full((batch_size, n), probability) for n in self.n_hidden]


def _normalisation(name, below):
    maps, *lengths = below.shape
    reach = NEIGHBOURS // 2
    neighbours = sum(min(i + reach, maps - 1) - max(i - reach, 0) + 1 for i in range(maps))
    return LayerSummary(name, below.shape, connections=neighbours * int(np.prod(lengths)))


def _biases(name, shapes):
    shape = shapes[f"{name}.b"]
    value = np.full(shape, name in BIASED, pytensor.config.floatX)
    return pytensor.shared(value, name="b", borrow=True, shape=shape)
