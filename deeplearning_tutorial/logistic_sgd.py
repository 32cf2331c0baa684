"""Logistic regression on MNIST, trained by minibatch stochastic gradient descent.

    python -m deeplearning_tutorial.logistic_sgd                      # the tutorial's run
    python -m deeplearning_tutorial.logistic_sgd --n-epochs 5         # a first look
    python -m deeplearning_tutorial.logistic_sgd --learning-rate 0.05 --batch-size 100

The model gives class ``i`` the probability ``softmax(dot(x, W) + b)[i]`` and predicts the likeliest.
Ported from the deep learning tutorial, "Classifying MNIST digits using Logistic Regression".
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial.datasets import check_mnist, load_data
from deeplearning_tutorial.files.streams import stderr, stdout
from deeplearning_tutorial.training import command_line
from deeplearning_tutorial.training.checks import check_positive_int, check_rate, count_minibatches
from deeplearning_tutorial.training.early_stopping import train_with_patience
from deeplearning_tutorial.training.page import Page
from deeplearning_tutorial.training.parameters import load_parameters, named_parameters
from deeplearning_tutorial.training.run import Run

BEST_MODEL = "best_model.npz"


class LogisticRegression:
    """Multi-class logistic regression, ``softmax(dot(input, W) + b)``.

    Parameters
    ----------
    input : TensorVariable
        Shape ``(batch, n_in)``.
    n_in : int
        Inputs per example.
    n_out : int
        Classes.

    Attributes
    ----------
    W, b : shared variable
        Shapes ``(n_in, n_out)`` and ``(n_out,)``, of dtype floatX, both zero at first.
    params : list of shared variables
        ``[W, b]``.
    p_y_given_x : TensorVariable
        Class probabilities, shape ``(batch, n_out)``.
    y_pred : TensorVariable
        Likeliest classes, shape ``(batch,)``, int64.

    Raises
    ------
    ValueError
        If ``n_in`` or ``n_out`` is not a positive integer.
    """

    def __init__(self, input, n_in, n_out):
        check_positive_int("n_in", n_in, 784)
        check_positive_int("n_out", n_out, 10)
        floatX = pytensor.config.floatX
        W = np.zeros((n_in, n_out), dtype=floatX)
        b = np.zeros((n_out,), dtype=floatX)
        self.W = pytensor.shared(W, name="W", borrow=True, shape=W.shape)
        self.b = pytensor.shared(b, name="b", borrow=True, shape=b.shape)
        self.p_y_given_x = pt.special.softmax(pt.dot(input, self.W) + self.b, axis=1)
        self.y_pred = pt.argmax(self.p_y_given_x, axis=1)
        self.params = [self.W, self.b]
        self.input = input

    def negative_log_likelihood(self, y):
        """Mean negative log-likelihood of the labels under the model.

        The mean, not the sum, keeps the learning rate independent of the minibatch size.

        Parameters
        ----------
        y : TensorVariable
            Labels, integers of shape ``(batch,)``.

        Returns
        -------
        TensorVariable
            A scalar.
        """
        return -pt.mean(pt.log(self.p_y_given_x)[pt.arange(y.shape[0]), y])

    def errors(self, y):
        """Fraction of the minibatch that is misclassified.

        Parameters
        ----------
        y : TensorVariable
            Labels, integers of shape ``(batch,)``.

        Returns
        -------
        TensorVariable
            A scalar, float64.

        Raises
        ------
        TypeError
            If ``y`` is not a vector.
        NotImplementedError
            If ``y`` does not hold integers.
        """
        if y.ndim != self.y_pred.ndim:
            raise TypeError(f"y has {y.ndim} dimensions, y_pred has 1; give a vector of labels")
        if not y.dtype.startswith("int"):
            raise NotImplementedError(
                f"y has dtype {y.dtype}; cast the labels to an integer type, e.g. int32"
            )
        return pt.mean(pt.neq(self.y_pred, y))


def sgd_optimization_mnist(
    learning_rate=0.13,
    n_epochs=1000,
    dataset="mnist.pkl.gz",
    batch_size=600,
    *,
    run=None,
):
    """Train a logistic regression on MNIST.

    Parameters
    ----------
    learning_rate : float
        Step size of the gradient descent.
    n_epochs : int
        Epochs at most; patience (5000 minibatches at first) usually ends training earlier.
    dataset : path
        MNIST, as `load_data` takes it.
    batch_size : int
        Examples per minibatch.
    run : Run, optional
        Options of the run: its files, its progress bar, and how it is stopped. Without it, the best model is
        saved as ``best_model.npz``, where `predict` looks for it.

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
    learning_rate = check_rate("learning_rate", learning_rate, 0.13)
    check_positive_int("n_epochs", n_epochs, 1000)
    check_positive_int("batch_size", batch_size, 600)
    run = (run or Run(save=BEST_MODEL)).start(
        "logistic_sgd", dataset, learning_rate=learning_rate, n_epochs=n_epochs, batch_size=batch_size
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
    classifier = LogisticRegression(input=x, n_in=28 * 28, n_out=10)
    cost = classifier.negative_log_likelihood(y)

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
    g_W = pytensor.grad(cost=cost, wrt=classifier.W)
    g_b = pytensor.grad(cost=cost, wrt=classifier.b)
    updates = [
        (classifier.W, classifier.W - learning_rate * g_W),
        (classifier.b, classifier.b - learning_rate * g_b),
    ]
    train_model = pytensor.function(
        inputs=[index],
        outputs=cost,
        updates=updates,
        givens={x: train_set_x[batch], y: train_set_y[batch]},
    )

    print("... training the model", file=stdout)
    result = train_with_patience(
        train_model,
        validate_model,
        test_model,
        n_train_batches,
        n_valid_batches,
        n_test_batches,
        n_epochs,
        patience=5000,
        parameters=named_parameters(classifier=classifier),
        run=run,
    )
    print(
        f"Optimization complete with best validation score of {result.best_validation_error * 100:f} %,"
        f"with test performance {result.test_error * 100:f} %",
        file=stdout,
    )
    speed = result.epochs / result.seconds
    print(f"The code run for {result.epochs} epochs, with {speed:f} epochs/sec", file=stdout)
    print(f"The code for file logistic_sgd.py ran for {result.seconds:.1f}s", file=stderr)
    return result


def build_classifier(rng, x, batch_size, n_out=10):
    """Build the network of a saved model; nothing is drawn, and any ``batch_size`` will do."""
    return {"classifier": LogisticRegression(input=x, n_in=28 * 28, n_out=n_out)}


page = Page(
    sgd_optimization_mnist,
    "Logistic regression on MNIST",
    names=("LogisticRegression", "load_data", "sgd_optimization_mnist", "predict"),
    published={"validation error": 7.5, "test error": 7.489583, "epochs": 74},
    minibatches=(83, 16, 16),
    save=BEST_MODEL,
    build=build_classifier,
)
experiment = page.experiment


def predict(*, model=BEST_MODEL, dataset="mnist.pkl.gz"):
    """Print the classes that a saved logistic regression predicts for the first ten test digits.

    Parameters
    ----------
    model : path
        ``.npz`` file that `sgd_optimization_mnist` saved.
    dataset : path
        MNIST, as `load_data` takes it.

    Returns
    -------
    numpy.ndarray
        The ten classes, int64.

    Raises
    ------
    FileNotFoundError
        If ``model`` is missing: train first.
    ValueError
        If ``model`` holds something other than this model.
    """
    x = pt.matrix("x")
    classifier = LogisticRegression(input=x, n_in=28 * 28, n_out=10)
    load_parameters(model, named_parameters(classifier=classifier))
    predict_model = pytensor.function(inputs=[classifier.input], outputs=classifier.y_pred)
    datasets = load_data(dataset)
    check_mnist(dataset, datasets)
    test_set_x, _test_set_y = datasets[2]
    predicted_values = predict_model(test_set_x.get_value(borrow=True)[:10])
    print("Predicted values for the first 10 examples in test set:", file=stdout)
    print(predicted_values, file=stdout)
    return predicted_values


if __name__ == "__main__":
    command_line.run(page, __doc__)
