"""LeNet-5, the network of 1998, on MNIST: three convolutions, two poolings, a hidden layer, a softmax.

    python -m deeplearning_tutorial.lenet5                                  # the classic sizes
    python -m deeplearning_tutorial.lenet5 --pooling 1998 --connection 1998 # as the paper has it
    python -m deeplearning_tutorial.lenet5 --filter-sizes 7 3 5 --nkerns 8 24 120
    python -m deeplearning_tutorial.lenet5 --summary                        # its layers; nothing is trained

Images of 28x28, padded by 2 on each side: C1 6 maps of 28x28, S2 14x14, C3 16 maps of 10x10, S4 5x5, C5 120
maps of 1x1, F6 84 units, 10 outputs (LeCun, Bottou, Bengio and Haffner, 1998, section II.B).

Three things are the tutorial's. The output is a softmax: the paper's RBF units measure distances to fixed
bitmaps, which are not probabilities. The activation is tanh, not 1.7159 tanh(2x/3): weights can learn these
factors, which are meant for targets of +1 and -1; --activation scaled_tanh has them. Pixels go from 0 to 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial.datasets import check_mnist
from deeplearning_tutorial.datasets.formats import IMAGE_SIDE
from deeplearning_tutorial.files.streams import stderr, stdout
from deeplearning_tutorial.layers.activations import ACTIVATIONS, activation_name, check_activation
from deeplearning_tutorial.layers.convolution import Convolution
from deeplearning_tutorial.layers.subsampling import POOLINGS, Subsampling
from deeplearning_tutorial.layers.summary import (
    LayerSummary,
    does_not_fit,
    fully_connected,
    parameter_shapes,
    summary_table,
)
from deeplearning_tutorial.logistic_sgd import LogisticRegression, load_data
from deeplearning_tutorial.mlp import HiddenLayer
from deeplearning_tutorial.nnet.conv import conv_output_length
from deeplearning_tutorial.nnet.pool import pool_output_length
from deeplearning_tutorial.training import command_line
from deeplearning_tutorial.training.checks import (
    check_choice,
    check_no_gaps,
    check_positive_int,
    check_positive_ints,
    check_rate,
    check_seed,
    count_minibatches,
)
from deeplearning_tutorial.training.early_stopping import train_with_patience
from deeplearning_tutorial.training.page import Page
from deeplearning_tutorial.training.parameters import named_parameters
from deeplearning_tutorial.training.run import Run

PADDING, N_CLASSES = 2, 10
INPUT_SIDE = IMAGE_SIDE + 2 * PADDING
CONNECTIONS = ("full", "1998")


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
    activation : callable
    connection : {'full', '1998'}
        Which maps of S2 each map of C3 takes: all, or those of `connections_1998`.
    n_hidden : int
        Units in F6.

    Raises
    ------
    ValueError
        If an argument is out of range, or a layer does not fit the one below.
    """

    nkerns: tuple[int, int, int] = (6, 16, 120)
    n_hidden: int = 84
    filter_sizes: tuple[int, int, int] = (5, 5, 5)
    pool_sizes: tuple[int, int] = (2, 2)
    pool_strides: tuple[int, int] = (2, 2)
    pooling: str = "max"
    activation: Callable = pt.tanh
    connection: str = "full"

    def __post_init__(self):
        check_positive_ints("nkerns", self.nkerns, 3, (6, 16, 120))
        check_positive_int("n_hidden", self.n_hidden, 84)
        check_positive_ints("filter_sizes", self.filter_sizes, 3, (5, 5, 5))
        check_positive_ints("pool_sizes", self.pool_sizes, 2, (2, 2))
        check_positive_ints("pool_strides", self.pool_strides, 2, (2, 2))
        check_choice("pooling", self.pooling, POOLINGS)
        check_activation(self.activation)
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
        layers = [LayerSummary("input", (1, INPUT_SIDE, INPUT_SIDE))]
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
        activation = self.activation
        shapes = {layer.name: (batch_size, *layer.shape) for layer in self.layers()}
        filters = self.parameter_shapes()
        inside = slice(PADDING, PADDING + IMAGE_SIDE)
        images = x.reshape((batch_size, 1, IMAGE_SIDE, IMAGE_SIDE))
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


def train_lenet5(
    learning_rate=0.1,
    n_epochs=200,
    dataset="mnist.pkl.gz",
    nkerns=LeNet5.nkerns,
    batch_size=50,
    *,
    n_hidden=LeNet5.n_hidden,
    filter_sizes=LeNet5.filter_sizes,
    pool_sizes=LeNet5.pool_sizes,
    pool_strides=LeNet5.pool_strides,
    pooling=LeNet5.pooling,
    activation=LeNet5.activation,
    connection=LeNet5.connection,
    seed=23455,
    run=None,
):
    """Train LeNet-5 on MNIST.

    Parameters
    ----------
    learning_rate : float
        Step size of the gradient descent.
    n_epochs : int
        Maximum number of epochs; patience (20000 minibatches at first) usually ends training earlier.
    dataset : path
        MNIST, as `load_data` takes it.
    nkerns : tuple of int
        Filters in the convolutions C1, C3 and C5.
    batch_size : int
        Examples per minibatch.
    n_hidden : int
        Units in F6.
    filter_sizes : tuple of int
        Rows, and columns, of the filters in C1, C3 and C5.
    pool_sizes : tuple of int
        Rows, and columns, of the windows in S2 and S4.
    pool_strides : tuple of int
        From one window to the next in S2 and S4; windows overlap where it is less than their size.
    pooling : {'max', 'average', 'sum', 'l2', '1998'}
        What S2 and S4 take of a window: max, average, sum or l2, the root of the sum of squares; or 1998, the
        sum times a coefficient, plus a bias, and the activation, where each map trains both.
    activation : callable
        Of the convolutions and F6: tanh, relu, sigmoid or scaled_tanh, which is 1.7159 tanh(2x/3).
    connection : {'full', '1998'}
        Which maps of S2 each map of C3 takes: full, all of them; or 1998, those of the paper's table I.
    seed : int
        Seed of the generator that draws the initial weights.
    run : Run, optional
        Options of the run: its files, its progress bar, and how it is stopped.

    Returns
    -------
    TrainingResult

    Raises
    ------
    ValueError
        If an argument is out of range, a layer does not fit the one below, ``batch_size`` is larger than a
        split, or the checkpoint belongs to another run.
    OSError
        If a file of ``run`` exists that would be overwritten, or cannot be written.
    TrainingInterrupted, DivergenceError
        As `train_with_patience` raises them; what was reached is in their ``result``.
    """
    learning_rate = check_rate("learning_rate", learning_rate, 0.1)
    check_positive_int("n_epochs", n_epochs, 200)
    check_positive_int("batch_size", batch_size, 50)
    check_seed("seed", seed, 23455)
    network = LeNet5(
        nkerns=nkerns,
        n_hidden=n_hidden,
        filter_sizes=filter_sizes,
        pool_sizes=pool_sizes,
        pool_strides=pool_strides,
        pooling=pooling,
        activation=activation,
        connection=connection,
    )
    run = (run or Run()).start(
        "lenet5",
        dataset,
        learning_rate=learning_rate,
        n_epochs=n_epochs,
        nkerns=nkerns,
        batch_size=batch_size,
        n_hidden=n_hidden,
        filter_sizes=filter_sizes,
        pool_sizes=pool_sizes,
        pool_strides=pool_strides,
        pooling=pooling,
        activation=activation_name(activation),
        connection=connection,
        seed=seed,
    )
    rng = np.random.RandomState(seed)

    datasets = load_data(dataset)
    check_mnist(dataset, datasets)
    run.check_data(datasets)
    train_set_x, train_set_y = datasets[0]
    valid_set_x, valid_set_y = datasets[1]
    test_set_x, test_set_y = datasets[2]
    n_train_batches, n_valid_batches, n_test_batches = count_minibatches(
        batch_size, training=train_set_x, validation=valid_set_x, test=test_set_x
    )

    print("... building the model", file=stdout)
    index = pt.lscalar("index")
    x = pt.matrix("x")
    y = pt.ivector("y")
    layers = network.build(rng, x, batch_size)
    classifier = layers["output"]
    cost = classifier.negative_log_likelihood(y)

    batch = slice(index * batch_size, (index + 1) * batch_size)
    test_model = pytensor.function(
        [index],
        classifier.errors(y),
        givens={x: test_set_x[batch], y: test_set_y[batch]},
    )
    validate_model = pytensor.function(
        [index],
        classifier.errors(y),
        givens={x: valid_set_x[batch], y: valid_set_y[batch]},
    )
    parameters = named_parameters(**layers)
    params = list(parameters.values())
    grads = pytensor.grad(cost, params)
    updates = [(param, param - learning_rate * grad) for param, grad in zip(params, grads, strict=True)]
    train_model = pytensor.function(
        [index],
        cost,
        updates=updates,
        givens={x: train_set_x[batch], y: train_set_y[batch]},
    )

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
        parameters=parameters,
        run=run,
    )
    print("Optimization complete.", file=stdout)
    print(result.closing_line(), file=stdout)
    print(f"The code for file lenet5.py ran for {result.seconds / 60:.2f}m", file=stderr)
    return result


def build_lenet5(rng, x, batch_size, **architecture):
    """Build the network of a saved model; ``architecture`` is what `LeNet5` takes."""
    return LeNet5(**architecture).build(rng, x, batch_size)


def summary(**arguments):
    """Return the table of the layers that `train_lenet5` trains if it is given these arguments."""
    names = LeNet5.__dataclass_fields__.keys() & arguments.keys()
    return LeNet5(**{name: arguments[name] for name in names}).summary()


page = Page(
    train_lenet5,
    "LeNet-5 on MNIST",
    names=("train_lenet5",),
    # After 20 passes over all 60,000 images, of which 50,000 train here (section III.B, without distortions).
    published={"test error": 0.95},
    minibatches=(1000, 200, 200),
    build=build_lenet5,
    units={"nkerns": ("C1", "C3", "C5"), "n_hidden": "F6"},
    choices=("filter_sizes", "pool_sizes", "pool_strides", "pooling", "activation", "connection"),
    summary=summary,
    by_name={"activation": ACTIVATIONS},
)
experiment = page.experiment


if __name__ == "__main__":
    command_line.run(page, __doc__)
