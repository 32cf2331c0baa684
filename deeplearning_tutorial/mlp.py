"""A multilayer perceptron on MNIST: one hidden layer of tanh units, a softmax on top.

    python -m deeplearning_tutorial.mlp                                # the tutorial's run (long)
    python -m deeplearning_tutorial.mlp --n-epochs 10                  # a first look
    python -m deeplearning_tutorial.mlp --n-hidden 100 --L2-reg 0.001

Ported from the deep learning tutorial, "Multilayer Perceptron".
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial.datasets import check_mnist
from deeplearning_tutorial.files.streams import stderr, stdout
from deeplearning_tutorial.layers.activations import weight_factor
from deeplearning_tutorial.logistic_sgd import LogisticRegression, load_data
from deeplearning_tutorial.training import command_line
from deeplearning_tutorial.training.checks import (
    check_positive_int,
    check_rate,
    check_seed,
    count_minibatches,
)
from deeplearning_tutorial.training.early_stopping import train_with_patience
from deeplearning_tutorial.training.page import Page
from deeplearning_tutorial.training.parameters import named_parameters
from deeplearning_tutorial.training.run import Run


class HiddenLayer:
    """Fully connected layer, ``activation(dot(input, W) + b)``.

    Parameters
    ----------
    rng : numpy.random.RandomState
        Draws the initial weights, unless ``W`` is given.
    input : TensorVariable
        Shape ``(batch, n_in)``.
    n_in, n_out : int
        Units below and in this layer.
    W, b : shared variable, optional
        Shapes ``(n_in, n_out)`` and ``(n_out,)``; given when layers share weights.
    activation : callable or None
        Elementwise; None leaves the layer linear.

    Attributes
    ----------
    output : TensorVariable
        Shape ``(batch, n_out)``.
    params : list of shared variables
        ``[W, b]``.

    Raises
    ------
    ValueError
        If ``n_in`` or ``n_out`` is not a positive integer, or a given ``W`` or ``b`` has another shape.

    Notes
    -----
    ``W`` is uniform in ``+-sqrt(6 / (n_in + n_out))``, four times that for a sigmoid (Glorot and Bengio,
    2010, section 4.2.1); ``b`` starts at zero.
    """

    def __init__(self, rng, input, n_in, n_out, W=None, b=None, activation=pt.tanh):
        check_positive_int("n_in", n_in, 784)
        check_positive_int("n_out", n_out, 500)
        floatX = pytensor.config.floatX
        self.input = input
        drawn = W is None
        if drawn:
            # Zeros until the bound is known, which depends on the activation.
            W_values = np.zeros((n_in, n_out), dtype=floatX)
            W = pytensor.shared(W_values, name="W", borrow=True, shape=W_values.shape)
        if b is None:
            b_values = np.zeros((n_out,), dtype=floatX)
            b = pytensor.shared(b_values, name="b", borrow=True, shape=b_values.shape)
        _check_shape("W", W, (n_in, n_out))
        _check_shape("b", b, (n_out,))
        self.W = W
        self.b = b
        lin_output = pt.dot(input, self.W) + self.b
        self.output = lin_output if activation is None else activation(lin_output)
        if drawn:
            # Small enough to keep tanh in its linear part; the sigmoid's is four times as wide.
            bound = weight_factor(activation, self.output, lin_output) * np.sqrt(6.0 / (n_in + n_out))
            W_values = np.asarray(rng.uniform(low=-bound, high=bound, size=(n_in, n_out)), dtype=floatX)
            self.W.set_value(W_values, borrow=True)
        self.params = [self.W, self.b]


class MLP:
    """Multilayer perceptron: a tanh `HiddenLayer` below a `LogisticRegression`.

    Parameters
    ----------
    rng : numpy.random.RandomState
        Draws the hidden layer's weights.
    input : TensorVariable
        Shape ``(batch, n_in)``.
    n_in, n_hidden, n_out : int
        Inputs per example, hidden units, classes.

    Attributes
    ----------
    hiddenLayer : HiddenLayer
    logRegressionLayer : LogisticRegression
    L1, L2_sqr : TensorVariable
        Sum of the absolute weights and of the squared weights of both layers; scalars.
    negative_log_likelihood, errors : callable
        Those of ``logRegressionLayer``.
    params : list of shared variables
        ``[W, b]`` of the hidden layer, then of the upper one.

    Raises
    ------
    ValueError
        If ``n_in``, ``n_hidden`` or ``n_out`` is not a positive integer.
    """

    def __init__(self, rng, input, n_in, n_hidden, n_out):
        # The layers call it n_out and n_in.
        check_positive_int("n_hidden", n_hidden, 500)
        self.hiddenLayer = HiddenLayer(rng=rng, input=input, n_in=n_in, n_out=n_hidden, activation=pt.tanh)
        self.logRegressionLayer = LogisticRegression(
            input=self.hiddenLayer.output, n_in=n_hidden, n_out=n_out
        )
        self.L1 = abs(self.hiddenLayer.W).sum() + abs(self.logRegressionLayer.W).sum()
        self.L2_sqr = (self.hiddenLayer.W**2).sum() + (self.logRegressionLayer.W**2).sum()
        self.negative_log_likelihood = self.logRegressionLayer.negative_log_likelihood
        self.errors = self.logRegressionLayer.errors
        self.params = self.hiddenLayer.params + self.logRegressionLayer.params
        self.input = input


def test_mlp(
    learning_rate=0.01,
    L1_reg=0.00,
    L2_reg=0.0001,
    n_epochs=1000,
    dataset="mnist.pkl.gz",
    batch_size=20,
    n_hidden=500,
    *,
    seed=1234,
    run=None,
):
    """Train a multilayer perceptron on MNIST.

    Parameters
    ----------
    learning_rate : float
        Step size of the gradient descent.
    L1_reg : float
        Weight of the L1 norm in the cost.
    L2_reg : float
        Weight of the squared L2 norm in the cost.
    n_epochs : int
        Epochs at most; patience (10000 minibatches at first) may end training earlier.
    dataset : path
        MNIST, as `load_data` takes it.
    batch_size : int
        Examples per minibatch.
    n_hidden : int
        Hidden units.
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
        If an argument is out of range, ``batch_size`` is larger than a split, or the checkpoint belongs to
        another run.
    OSError
        If a file of ``run`` exists that would be overwritten, or cannot be written.
    TrainingInterrupted, DivergenceError
        As `train_with_patience` raises them; what was reached is in their ``result``.
    """
    learning_rate = check_rate("learning_rate", learning_rate, 0.01)
    L1_reg = check_rate("L1_reg", L1_reg, 0.0, minimum_excluded=False)
    L2_reg = check_rate("L2_reg", L2_reg, 0.0001, minimum_excluded=False)
    check_positive_int("n_epochs", n_epochs, 1000)
    check_positive_int("batch_size", batch_size, 20)
    check_positive_int("n_hidden", n_hidden, 500)
    check_seed("seed", seed, 1234)
    run = (run or Run()).start(
        "mlp",
        dataset,
        learning_rate=learning_rate,
        L1_reg=L1_reg,
        L2_reg=L2_reg,
        n_epochs=n_epochs,
        batch_size=batch_size,
        n_hidden=n_hidden,
        seed=seed,
    )

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
    rng = np.random.RandomState(seed)
    classifier = MLP(rng=rng, input=x, n_in=28 * 28, n_hidden=n_hidden, n_out=10)
    cost = classifier.negative_log_likelihood(y) + L1_reg * classifier.L1 + L2_reg * classifier.L2_sqr

    batch = slice(index * batch_size, (index + 1) * batch_size)
    test_model = pytensor.function(
        inputs=[index],
        outputs=classifier.errors(y),
        givens={x: test_set_x[batch], y: test_set_y[batch]},
    )
    validate_model = pytensor.function(
        inputs=[index],
        outputs=classifier.errors(y),
        givens={x: valid_set_x[batch], y: valid_set_y[batch]},
    )
    gparams = [pytensor.grad(cost, param) for param in classifier.params]
    updates = [
        (param, param - learning_rate * gparam)
        for param, gparam in zip(classifier.params, gparams, strict=True)
    ]
    train_model = pytensor.function(
        inputs=[index],
        outputs=cost,
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
        patience=10000,
        parameters=named_parameters(
            hiddenLayer=classifier.hiddenLayer, logRegressionLayer=classifier.logRegressionLayer
        ),
        run=run,
    )
    print(f"Optimization complete. {result.closing_line()}", file=stdout)
    print(f"The code for file mlp.py ran for {result.seconds / 60:.2f}m", file=stderr)
    return result


def build_mlp(rng, x, batch_size, n_hidden=500):
    """Build the network of a saved model; any ``batch_size`` will do."""
    classifier = MLP(rng=rng, input=x, n_in=28 * 28, n_hidden=n_hidden, n_out=10)
    return {"hiddenLayer": classifier.hiddenLayer, "logRegressionLayer": classifier.logRegressionLayer}


page = Page(
    test_mlp,
    "A multilayer perceptron on MNIST",
    names=("HiddenLayer", "MLP", "test_mlp"),
    published={"validation error": 1.69, "test error": 1.65, "iteration": 2070000},
    minibatches=(2500, 500, 500),
    build=build_mlp,
    units={"n_hidden": "hiddenLayer"},
)
experiment = page.experiment


def _check_shape(name, param, shape):
    """Compare static shapes, because a given ``W`` may be an expression, whose value is not known yet."""
    known = param.type.shape
    if len(known) != len(shape) or any(n not in (None, m) for n, m in zip(known, shape, strict=True)):
        raise ValueError(
            f"{name} has shape {known}, this layer needs {shape}; change {name}, or n_in and n_out"
        )


if __name__ == "__main__":
    command_line.run(page, __doc__)
