"""A multilayer perceptron on MNIST: one hidden layer of tanh units, a softmax on top.

    python -m deeplearning_tutorial.mlp                                # the tutorial's run (long)
    python -m deeplearning_tutorial.mlp --n-epochs 10                  # a first look
    python -m deeplearning_tutorial.mlp --n-hidden 100 --L2-reg 0.001

Ported from the deep learning tutorial, "Multilayer Perceptron".
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial import command_line
from deeplearning_tutorial.activations import is_sigmoid
from deeplearning_tutorial.checks import check_positive_int, check_rate, check_seed, count_minibatches
from deeplearning_tutorial.datasets import check_mnist
from deeplearning_tutorial.early_stopping import train_with_patience
from deeplearning_tutorial.experiments import experiment_of
from deeplearning_tutorial.logistic_sgd import LogisticRegression, load_data
from deeplearning_tutorial.parameters import named_parameters
from deeplearning_tutorial.streams import stderr, stdout
from deeplearning_tutorial.training_files import TrainingFiles

PUBLISHED = {"validation error": 1.69, "test error": 1.65, "iteration": 2070000}


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
        drawn = None
        if W is None:
            bound = np.sqrt(6.0 / (n_in + n_out))
            W_values = np.asarray(rng.uniform(low=-bound, high=bound, size=(n_in, n_out)), dtype=floatX)
            drawn = W = pytensor.shared(W_values, name="W", borrow=True, shape=W_values.shape)
        if b is None:
            b_values = np.zeros((n_out,), dtype=floatX)
            b = pytensor.shared(b_values, name="b", borrow=True, shape=b_values.shape)
        _check_shape("W", W, (n_in, n_out))
        _check_shape("b", b, (n_out,))
        self.W = W
        self.b = b
        lin_output = pt.dot(input, self.W) + self.b
        self.output = lin_output if activation is None else activation(lin_output)
        if drawn is not None and is_sigmoid(self.output, lin_output):
            drawn.set_value(4 * W_values, borrow=True)
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
    save=None,
    checkpoint=None,
    resume=False,
    log=None,
    progress=False,
    channel=None,
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
    save : path or None
        ``.npz`` file for the best model.
    checkpoint : path or None
        ``.npz`` file that holds the complete state of the training after each validation.
    resume : bool
        Go on from ``checkpoint`` to the end an uninterrupted run has; if there is none yet, start anew.
    log : path or None
        ``.csv`` file that gets a line after each validation.
    progress : bool
        Show a progress bar on stderr.
    channel : callable or None
        Given each `Validation`; training ends after the one for which it returns ``'stop'``.

    Returns
    -------
    TrainingResult

    Raises
    ------
    ValueError
        If an argument is out of range, ``batch_size`` larger than a split, or ``checkpoint`` of another run.
    OSError
        If ``checkpoint`` or ``log`` exists though ``resume`` is False, or no file can be written there.
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
    # All arguments, for they tell one run from another.
    files = TrainingFiles("mlp", test_mlp, **locals())

    datasets = load_data(dataset)
    check_mnist(dataset, datasets)
    files.check_data(datasets)
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

    test_model = pytensor.function(
        inputs=[index],
        outputs=classifier.errors(y),
        givens={
            x: test_set_x[index * batch_size : (index + 1) * batch_size],
            y: test_set_y[index * batch_size : (index + 1) * batch_size],
        },
    )
    validate_model = pytensor.function(
        inputs=[index],
        outputs=classifier.errors(y),
        givens={
            x: valid_set_x[index * batch_size : (index + 1) * batch_size],
            y: valid_set_y[index * batch_size : (index + 1) * batch_size],
        },
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
        givens={
            x: train_set_x[index * batch_size : (index + 1) * batch_size],
            y: train_set_y[index * batch_size : (index + 1) * batch_size],
        },
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
        files=files,
        progress=progress,
        channel=channel,
    )
    print(f"Optimization complete. {result.summary()}", file=stdout)
    print(f"The code for file mlp.py ran for {result.seconds / 60:.2f}m", file=stderr)
    return result


experiment = experiment_of(test_mlp)


def _check_shape(name, param, shape):
    """Compare static shapes: a given ``W`` may as well be an expression, whose value is not known yet."""
    known = param.type.shape
    if len(known) != len(shape) or any(n not in (None, m) for n, m in zip(known, shape, strict=True)):
        raise ValueError(
            f"{name} has shape {known}, this layer needs {shape}; change {name}, or n_in and n_out"
        )


if __name__ == "__main__":
    command_line.run(test_mlp, __doc__, PUBLISHED, minibatches=(2500, 500, 500))
