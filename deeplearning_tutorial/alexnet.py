"""AlexNet, the network of 2012, on images of your own: five convolutions, two hidden layers, a softmax.

    python -m deeplearning_tutorial.alexnet images.npz                      # the paper's sizes, 1000 classes
    python -m deeplearning_tutorial.alexnet images.npz --n-classes 10 --image-side 67 --stride 2
    python -m deeplearning_tutorial.alexnet --summary                       # its layers; nothing is trained

images.npz holds the arrays train_x, train_y, valid_x, valid_y, test_x and test_y: images as bytes of shape
(images, rows, cols, 3), labels as integers from 0 on. Of images larger than --image-side the centre is taken.
They are trained in the file's order: shuffle them before.

Images of 227x227: conv1 96 maps of 55x55, pool1 27x27, conv2 256 maps, pool2 13x13, conv3 and conv4 384 maps,
conv5 256 maps, pool5 6x6, fc6 and fc7 4096 units, 1000 outputs; 60,965,224 parameters (Krizhevsky, Sutskever
and Hinton, 2012, sections 3 and 5). The paper says 224x224, which does not fit its 55x55 maps: 55 windows of
11 pixels, 4 apart, span 227.

As in the paper: rectifiers, response normalisation, overlapping pooling, two groups, dropout, momentum,
weight decay, the initial weights, and the mean training image, which is subtracted. Unlike in the paper,
images are not shifted, mirrored or recoloured, biases do not decay, and the learning rate stays as it is.
With fewer filters and units signals fade on their way up unless --weight-std grows, to 0.1 or so; images of
67x67 were learned with --weight-std 0.03 --learning-rate 0.001.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial.datasets.image_sets import read_image_sets
from deeplearning_tutorial.files.streams import stderr, stdout
from deeplearning_tutorial.layers.convolution import Convolution
from deeplearning_tutorial.layers.summary import (
    LayerSummary,
    does_not_fit,
    fully_connected,
    parameter_shapes,
    summary_table,
)
from deeplearning_tutorial.logistic_sgd import LogisticRegression
from deeplearning_tutorial.mlp import HiddenLayer
from deeplearning_tutorial.nnet import local_response_normalisation, pool_2d, relu
from deeplearning_tutorial.nnet.conv import conv_output_length
from deeplearning_tutorial.nnet.pool import pool_output_length
from deeplearning_tutorial.training import command_line
from deeplearning_tutorial.training.checks import (
    check_no_gaps,
    check_positive_int,
    check_positive_ints,
    check_probability,
    check_rate,
    check_seed,
    count_minibatches,
)
from deeplearning_tutorial.training.early_stopping import train_with_patience
from deeplearning_tutorial.training.page import Page
from deeplearning_tutorial.training.parameters import named_parameters
from deeplearning_tutorial.training.run import Run
from deeplearning_tutorial.training.updates import momentum_updates, zero_velocities

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
    weight_std : float
        Standard deviation of the initial weights.

    Raises
    ------
    ValueError
        If an argument is out of range, or a layer does not fit the one below.
    """

    n_classes: int = 1000
    image_side: int = 227
    nkerns: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    filter_sizes: tuple[int, int, int, int, int] = (11, 5, 3, 3, 3)
    stride: int = 4
    num_groups: int = 2
    pool_size: int = 3
    pool_stride: int = 2
    n_hidden: tuple[int, int] = (4096, 4096)
    dropout: float = 0.5
    weight_std: float = 0.01

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
        check_rate("weight_std", self.weight_std, 0.01)
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

    def build(self, rng, images, batch_size, dropout_masks):
        """Build the layers over a minibatch of images.

        Parameters
        ----------
        rng : numpy.random.RandomState
            Draws the initial weights, from conv1 upwards.
        images : TensorVariable
            Shape ``(batch_size, 3, image_side, image_side)``.
        batch_size : int
        dropout_masks : list of two TensorVariable
            What the outputs of fc6 and fc7 are multiplied by, of shapes that broadcast to
            ``(batch_size, n_hidden[i])``: in training what `draw_dropout_masks` gives, else what
            `expected_masks` gives.

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
        for name, factor in zip(HIDDEN, dropout_masks, strict=True):
            shape = filters[f"{name}.W"]
            W, b = self._weights(rng, shape), _biases(name, filters)
            built[name] = HiddenLayer(rng, output, *shape, W, b, relu)
            output = built[name].output * factor
        shape = filters["output.W"]
        built["output"] = LogisticRegression(output, *shape)
        built["output"].W.set_value(self._normal(rng, shape), borrow=True)
        return built

    def _normal(self, rng, shape):
        return rng.normal(scale=self.weight_std, size=shape).astype(pytensor.config.floatX)

    def _weights(self, rng, shape):
        return pytensor.shared(self._normal(rng, shape), name="W", borrow=True, shape=shape)

    def draw_dropout_masks(self, seed, iteration, batch_size):
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

    def expected_masks(self, batch_size):
        """Return what stands for `draw_dropout_masks` outside of training: all units, times ``1 - dropout``.

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


def train_alexnet(
    dataset,
    learning_rate=0.01,
    n_epochs=90,
    batch_size=128,
    *,
    momentum=0.9,
    weight_decay=0.0005,
    dropout=AlexNet.dropout,
    n_classes=AlexNet.n_classes,
    image_side=AlexNet.image_side,
    nkerns=AlexNet.nkerns,
    filter_sizes=AlexNet.filter_sizes,
    stride=AlexNet.stride,
    num_groups=AlexNet.num_groups,
    pool_size=AlexNet.pool_size,
    pool_stride=AlexNet.pool_stride,
    n_hidden=AlexNet.n_hidden,
    weight_std=AlexNet.weight_std,
    seed=23455,
    run=None,
):
    """Train AlexNet on labelled images.

    Parameters
    ----------
    dataset : path
        ``.npz`` file of images, as `read_image_sets` takes it.
    learning_rate : float
        Step size of the gradient descent.
    n_epochs : int
        Maximum number of epochs; patience (20000 minibatches at first) may end training earlier.
    batch_size : int
        Images per minibatch.
    momentum : float
        What remains of the last step in the next one.
    weight_decay : float
        Fraction of each weight, times ``learning_rate``, that it loses in a step.
    dropout : float
        Probability that a unit of fc6 and fc7 is dropped in training.
    n_classes : int
        Units of the output; labels go from 0 to one less.
    image_side : int
        Rows, and columns, of the images that are trained.
    nkerns : tuple of int
        Filters in conv1 to conv5.
    filter_sizes : tuple of int
        Rows, and columns, of their filters; all but the first are padded by half a filter.
    stride : int
        From one position of the filters of conv1 to the next.
    num_groups : int
        Groups into which conv2, conv4 and conv5 are divided.
    pool_size : int
        Rows, and columns, of the windows of all poolings.
    pool_stride : int
        From one window to the next; windows overlap where it is less than their size.
    n_hidden : tuple of int
        Units in fc6 and fc7.
    weight_std : float
        Standard deviation of the initial weights.
    seed : int
        Seed of the initial weights, and of what is dropped.
    run : Run, optional
        Options of the run: its files, its progress bar, and how it is stopped.

    Returns
    -------
    TrainingResult
        Beside the trained parameters it holds ``mean``, the mean training image, shape
        ``(3, image_side, image_side)``.

    Raises
    ------
    ValueError
        If an argument is out of range, a layer does not fit the one below, images or labels of ``dataset`` do
        not fit, ``batch_size`` is larger than a split, or the checkpoint belongs to
        another run.
    OSError
        If there is no ``dataset``, or a file of ``run`` exists that would be overwritten, or cannot be
        written.
    TrainingInterrupted, DivergenceError
        As `train_with_patience` raises them; what was reached is in their ``result``.
    """
    learning_rate = check_rate("learning_rate", learning_rate, 0.01)
    check_positive_int("n_epochs", n_epochs, 90)
    check_positive_int("batch_size", batch_size, 128)
    momentum = check_probability("momentum", momentum, 0.9)
    weight_decay = check_rate("weight_decay", weight_decay, 0.0005, minimum_excluded=False)
    check_seed("seed", seed, 23455)
    network = AlexNet(
        n_classes=n_classes,
        image_side=image_side,
        nkerns=nkerns,
        filter_sizes=filter_sizes,
        stride=stride,
        num_groups=num_groups,
        pool_size=pool_size,
        pool_stride=pool_stride,
        n_hidden=n_hidden,
        dropout=dropout,
        weight_std=weight_std,
    )
    run = (run or Run()).start(
        "alexnet",
        dataset,
        learning_rate=learning_rate,
        n_epochs=n_epochs,
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
        n_classes=n_classes,
        image_side=image_side,
        nkerns=nkerns,
        filter_sizes=filter_sizes,
        stride=stride,
        num_groups=num_groups,
        pool_size=pool_size,
        pool_stride=pool_stride,
        n_hidden=n_hidden,
        dropout=dropout,
        weight_std=weight_std,
        seed=seed,
    )

    print("... loading data", file=stdout)
    datasets = [_shared(*split) for split in read_image_sets(dataset, image_side, n_classes)]
    run.check_data(datasets)
    train_set_x, train_set_y = datasets[0]
    valid_set_x, valid_set_y = datasets[1]
    test_set_x, test_set_y = datasets[2]
    n_train_batches, n_valid_batches, n_test_batches = count_minibatches(
        batch_size, training=train_set_x, validation=valid_set_x, test=test_set_x
    )

    print("... building the model", file=stdout)
    index = pt.lscalar("index")
    x = pt.tensor("x", dtype=train_set_x.dtype, shape=(None, CHANNELS, image_side, image_side))
    y = pt.ivector("y")
    dropout_masks = [pt.matrix("mask6"), pt.matrix("mask7")]
    mean = _mean_image(train_set_x)
    layers = network.build(
        np.random.RandomState(seed), pt.cast(x, mean.dtype) - mean, batch_size, dropout_masks
    )
    classifier = layers["output"]
    cost = classifier.negative_log_likelihood(y)
    in_testing = dict(zip(dropout_masks, network.expected_masks(batch_size), strict=True))

    batch = slice(index * batch_size, (index + 1) * batch_size)
    test_model = pytensor.function(
        [index],
        classifier.errors(y),
        givens={x: test_set_x[batch], y: test_set_y[batch]} | in_testing,
    )
    validate_model = pytensor.function(
        [index],
        classifier.errors(y),
        givens={x: valid_set_x[batch], y: valid_set_y[batch]} | in_testing,
    )
    parameters = named_parameters(**layers)
    velocities = zero_velocities(parameters)
    train_step = pytensor.function(
        [index, *dropout_masks],
        cost,
        updates=momentum_updates(cost, parameters, velocities, learning_rate, momentum, weight_decay),
        givens={x: train_set_x[batch], y: train_set_y[batch]},
    )
    iterations = itertools.count(run.iteration)

    def train_model(index):
        return train_step(index, *network.draw_dropout_masks(seed, next(iterations), batch_size))

    print("... training", file=stdout)
    result = train_with_patience(
        train_model,
        validate_model,
        test_model,
        n_train_batches,
        n_valid_batches,
        n_test_batches,
        n_epochs,
        patience=20000,
        parameters=parameters | {"mean": mean},
        optimiser=velocities,
        run=run,
    )
    print("Optimization complete.", file=stdout)
    print(result.closing_line(), file=stdout)
    print(f"The code for file alexnet.py ran for {result.seconds / 60:.2f}m", file=stderr)
    return result


def summary(**arguments):
    """Return the table of the layers that `train_alexnet` trains if it is given these arguments."""
    names = AlexNet.__dataclass_fields__.keys() & arguments.keys()
    return AlexNet(**{name: arguments[name] for name in names}).summary()


def _shared(x, y):
    # Bytes stay bytes, a quarter of the memory: a minibatch becomes floatX in the graph.
    x = x if x.dtype == np.uint8 else np.asarray(x, pytensor.config.floatX)
    return tuple(pytensor.shared(value, shape=value.shape, borrow=True) for value in (x, y))


def _mean_image(images):
    mean = images.get_value(borrow=True).mean(axis=0, dtype="float64").astype(pytensor.config.floatX)
    return pytensor.shared(mean, name="mean", borrow=True, shape=mean.shape)


page = Page(train_alexnet, "AlexNet", names=("train_alexnet",), summary=summary)
experiment = page.experiment


if __name__ == "__main__":
    command_line.run(page, __doc__)
