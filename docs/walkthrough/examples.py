"""The walkthrough's examples: every array that its pictures show and every number that it quotes.

The networks are small and the data the shipped sample, so that all of it takes seconds. PyTensor runs its
reference implementation here, which is slow but needs no compiling.
"""

import contextlib
import io
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode

from deeplearning_tutorial import LeNetConvPoolLayer, LogisticRegression
from deeplearning_tutorial.datasets import formats, sample_path
from deeplearning_tutorial.lenet5 import LeNet5
from deeplearning_tutorial.nnet import conv2d, pool_2d
from deeplearning_tutorial.training.early_stopping import train_with_patience

LENET_OUTPUT = Path(__file__).parents[1] / "convolutional_mlp.txt"
PLAIN = Mode(linker="py", optimizer=None)
NKERNS = (20, 50)
RATES = (0.01, 0.13, 5.0)
BATCH_SIZES = (10, 100, 3000)


def evaluate(*expressions):
    """Compute expressions that depend on no input."""
    return pytensor.function([], list(expressions), mode=PLAIN)()


@cache
def sample():
    """Return the shipped digits, (x, y) to train, validate and test, x in float64."""
    return [(x.astype("float64"), y) for x, y in formats.read_splits(sample_path())]


def digit():
    """Return a 2 of the sample, (28, 28)."""
    x, _y = sample()[2]
    return x[49].reshape(28, 28)


@cache
def lenet_layers():
    """Build the two lower layers of the tutorial's LeNet over one digit, as they are before training."""
    rng = np.random.RandomState(23455)
    with pytensor.config.change_flags(floatX="float64"):
        x = pt.constant(digit()[np.newaxis, np.newaxis])
        layer0 = LeNetConvPoolLayer(rng, x, filter_shape=(NKERNS[0], 1, 5, 5), image_shape=(1, 1, 28, 28))
        layer1 = LeNetConvPoolLayer(
            rng, layer0.output, filter_shape=(NKERNS[1], NKERNS[0], 5, 5), image_shape=(1, NKERNS[0], 12, 12)
        )
    return layer0, layer1


@cache
def convolution():
    """Convolve a digit with two filters that find edges and two random ones."""
    edge = np.array([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    random = lenet_layers()[0].W.get_value()[:2, 0]
    filters = [edge, edge.T, *random]
    image = pt.constant(digit()[np.newaxis, np.newaxis])
    maps = evaluate(*(conv2d(image, f[np.newaxis, np.newaxis]) for f in filters))
    return {"image": digit()} | {
        f"{name}{i}": array
        for name, arrays in (("filter", filters), ("map", [m[0, 0] for m in maps]))
        for i, array in enumerate(arrays)
    }


@cache
def flip():
    """Show the filter by one bright pixel: upright where it is convolved, turned where correlated."""
    image = np.zeros((5, 5))
    image[2, 2] = 1
    filter = np.arange(1.0, 10).reshape(3, 3)
    arguments = image[np.newaxis, np.newaxis], filter[np.newaxis, np.newaxis]
    convolved, correlated = evaluate(conv2d(*arguments), conv2d(*arguments, filter_flip=False))
    return {
        "image": image,
        "filter": filter,
        "convolved": convolved[0, 0],
        "correlated": correlated[0, 0],
    }


@cache
def pooling():
    """Pool four windows, three of them with ties, and take the gradient back."""
    image = np.array([[1.0, 3, 2, 0], [4, 4, 1, 2], [0, 0, 5, 1], [0, 0, 2, 3]])
    arriving = np.array([[10.0, 20], [30, 40]])
    x = pt.constant(image)
    pooled = pool_2d(x, ws=(2, 2), ignore_border=True)
    maxima, gradient = evaluate(pooled, pytensor.grad((pooled * arriving).sum(), x))
    return {"image": image, "maxima": maxima, "arriving": arriving, "gradient": gradient}


@cache
def feature_maps():
    """Follow a digit through C1, S2, C3 and S4: three maps of each."""
    layer0, layer1 = lenet_layers()
    outputs = (
        conv2d(layer0.input, layer0.W),
        layer0.output,
        conv2d(layer1.input, layer1.W),
        layer1.output,
    )
    names = ("C1", "S2", "C3", "S4")
    return {"image": digit()} | {n: maps[0, :3] for n, maps in zip(names, evaluate(*outputs), strict=True)}


class Layer(NamedTuple):
    """A layer's name, the lengths of its output, and how many of what it has."""

    name: str
    shape: tuple
    filters: tuple = ()
    parameters: int = 0
    multiplications: int = 0
    connections: int = 0
    sees: int = 0


def lenet():
    """Return the tutorial's LeNet, layer by layer, for one image; ``sees`` is the receptive field's side."""
    maps, side, sees, step = 1, 28, 1, 1
    layers = [Layer("input", (maps, side, side), sees=sees)]
    for i, n in enumerate(NKERNS):
        filters = (n, maps, 5, 5)
        maps, side, sees = n, side - 4, sees + 4 * step
        weights = int(np.prod(filters))
        layers.append(
            Layer(f"C{2 * i + 1}", (n, side, side), filters, weights + n, weights * side**2, sees=sees)
        )
        side, sees, step = side // 2, sees + step, 2 * step
        layers.append(Layer(f"S{2 * i + 2}", (n, side, side), sees=sees))
    units = maps * side**2
    for name, n in (("hidden", 500), ("output", 10)):
        layers.append(Layer(name, (n,), (units, n), units * n + n, units * n, sees=28))
        units = n
    return layers


def lenet5():
    """Return the LeNet-5 of 1998, as `lenet5` counts it.

    Its softmax is not the paper's: that has RBF units without a bias, and trains no parameter of them.
    """
    *layers, output = LeNet5(pooling="1998", connection="1998").layers()
    rows = [
        Layer(
            layer.name,
            layer.shape[:1] if layer.shape[1:] == (1, 1) else layer.shape,
            parameters=layer.parameters,
            connections=layer.connections,
        )
        for layer in layers
    ]
    n_in, n_out = output.parameter_shapes["W"]
    return [*rows, Layer(output.name, output.shape, connections=n_in * n_out)]


@cache
def matrix_product():
    """Convolve two maps of S2 with the filters of two maps of C3, as the product of two matrices."""
    maps = np.array([[[1.0, 0, 2], [0, 1, 0], [2, 0, 1]], [[0, 1, 0], [1, 0, 1], [0, 1, 0]]])
    filters = np.array([[[[1.0, 2], [0, 1]], [[3, 0], [1, 1]]], [[[0, 1], [1, 0]], [[2, 1], [0, 0]]]])
    W = filters[:, :, ::-1, ::-1].reshape(2, 8)
    windows = np.lib.stride_tricks.sliding_window_view(maps, (2, 2), axis=(1, 2))
    X = windows.transpose(0, 3, 4, 1, 2).reshape(8, 4)
    [convolved] = evaluate(conv2d(maps[np.newaxis], filters))
    return {"maps": maps, "filters": filters, "W": W, "X": X, "P": W @ X, "convolved": convolved[0]}


def patience_after(improvements, patience):
    """Return patience after each (iteration, error) that was the best so far, as `train_with_patience`."""
    best, reached = np.inf, []
    for iteration, error in improvements:
        if error < best * 0.995:
            patience = max(patience, 2 * (iteration - 1))
        best = error
        reached.append((iteration, patience))
    return np.array(reached)


@cache
def lenet_run():
    """Read LeNet's whole run: iteration and validation error in percent, and patience after each best."""
    lines = LENET_OUTPUT.read_text()
    errors = [float(error) for error in re.findall(r"validation error ([\d.]+) %", lines)]
    curve = np.column_stack([100 * np.arange(1, len(errors) + 1), errors])
    lower = [i for i, error in enumerate(errors) if error < min([np.inf, *errors[:i]])]
    return {"curve": curve, "best": curve[lower], "patience": patience_after(curve[lower], 10000)}


class Softmax:
    """The tutorial's logistic regression, ready to be trained at any rate with minibatches of any size."""

    def __init__(self):
        with pytensor.config.change_flags(floatX="float64"):
            x, y, rate = pt.matrix("x"), pt.ivector("y"), pt.scalar("rate")
            self.classifier = LogisticRegression(x, n_in=784, n_out=10)
            cost = self.classifier.negative_log_likelihood(y)
        params = self.classifier.params
        updates = [(p, p - rate * g) for p, g in zip(params, pytensor.grad(cost, params), strict=True)]
        self.train = pytensor.function([x, y, rate], cost, updates=updates, mode=PLAIN)
        self.error = pytensor.function([x, y], 100 * self.classifier.errors(y), mode=PLAIN)

    def epochs(self, n, batch_size, rate):
        """Train for n epochs; return each minibatch's cost and the validation error in percent."""
        x, y = sample()[0]
        batches = [slice(i, i + batch_size) for i in range(0, len(x), batch_size)]
        costs = [float(self.train(x[b], y[b], rate)) for _ in range(n) for b in batches]
        return costs, float(self.error(*sample()[1]))


@cache
def rates():
    """Return each minibatch's cost over five epochs, for three learning rates, and where they have led."""
    runs = [Softmax().epochs(5, 100, rate) for rate in RATES]
    return {"costs": np.array([costs for costs, _ in runs]), "errors": np.array([error for _, error in runs])}


@cache
def batch_sizes():
    """Count the updates of five epochs, and measure where they lead, for three sizes of the minibatch."""
    runs = [Softmax().epochs(5, size, 0.05) for size in BATCH_SIZES]
    return [(size, len(costs), error) for size, (costs, error) in zip(BATCH_SIZES, runs, strict=True)]


@cache
def small_run():
    """Train on 500 digits, few enough to learn them by heart, until patience runs out."""
    model, x, y = Softmax(), sample()[0][0][:500], sample()[0][1][:500]
    training = []

    def train(index):
        batch = slice(20 * index, 20 * index + 20)
        cost = model.train(x[batch], y[batch], 0.13)
        if index == 24:
            training.append(float(model.error(x, y)))
        return cost

    with contextlib.redirect_stdout(io.StringIO()):
        result = train_with_patience(
            train,
            lambda index: model.error(*sample()[1]) / 100,
            lambda index: model.error(*sample()[2]) / 100,
            n_train_batches=25,
            n_valid_batches=1,
            n_test_batches=1,
            n_epochs=100,
            patience=500,
            parameters={},
        )
    curve = np.array([(v.iteration, 100 * v.validation_error) for v in result.history])
    best = np.array(
        [(v.iteration, 100 * v.validation_error) for v in result.history if v.test_error is not None]
    )
    return {
        "curve": curve,
        "best": best,
        "training": training,
        "patience": patience_after(best, 500),
        "epochs": result.epochs,
    }


def learning_curves():
    """Both runs."""
    return {
        f"{run}.{name}": array
        for run, arrays in (("small", small_run()), ("LeNet", lenet_run()))
        for name, array in arrays.items()
    }
