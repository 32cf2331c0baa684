"""Training on the full MNIST, beside figures that the tutorial published or that Theano itself gave."""

import re

import numba
import numpy as np
import pytest
from machine import MNIST

from deeplearning_tutorial import convolutional_mlp, mlp
from deeplearning_tutorial.convolutional_mlp import evaluate_lenet5
from deeplearning_tutorial.datasets import formats

pytestmark = pytest.mark.needs("mnist")


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    """Train on one thread: the result is bitwise that of more, which wait for each other in small kernels."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(threads)


def test_logistic_regression_ends_with_the_published_figures_to_the_last_digit(run_script, tmp_path):
    environment = {"NUMBA_NUM_THREADS": "1", "DEEPLEARNING_TUTORIAL_DATA": str(MNIST.resolve())}
    ended = run_script("logistic_sgd", cwd=tmp_path, **environment)
    assert ended.returncode == 0, ended.stderr
    *lines, speed = ended.stdout.splitlines()
    assert lines[:3] == ["... loading data", "... building the model", "... training the model"]
    assert lines[-1] == (
        "Optimization complete with best validation score of 7.500000 %,with test performance 7.489583 %"
    )
    assert re.fullmatch(r"The code run for 74 epochs, with \d+\.\d{6} epochs/sec", speed)
    assert ended.stderr.endswith(
        "\n"
        "                     published    this run\n"
        "validation error      7.500000    7.500000 %\n"
        "test error            7.489583    7.489583 %\n"
        "epochs                      74          74\n"
    )


def test_lenet_learns_as_it_did_with_theano(record):
    run = record(convolutional_mlp, evaluate_lenet5, n_epochs=2, dataset=MNIST)
    percent = [(100 * look.validation_error, 100 * look.test_error) for look in run.result.history]
    # A few hundredths of a point are rounding: five of ten thousand digits.
    np.testing.assert_allclose(percent, [(9.23, 9.52), (6.18, 6.50)], rtol=0, atol=0.05 + 1e-9)
    (first, first_test), (second, second_test) = percent
    assert run.stdout.splitlines() == [
        "... loading data",
        "... building the model",
        "... training",
        "training @ iter =  0",
        f"epoch 1, minibatch 100/100, validation error {first:f} %",
        f"     epoch 1, minibatch 100/100, test error of best model {first_test:f} %",
        "training @ iter =  100",
        f"epoch 2, minibatch 100/100, validation error {second:f} %",
        f"     epoch 2, minibatch 100/100, test error of best model {second_test:f} %",
        "Optimization complete.",
        f"Best validation score of {second:f} % obtained at iteration 200, "
        f"with test performance {second_test:f} %",
    ]


def test_an_epoch_of_the_multilayer_perceptron_is_that_of_plain_numpy(record, numpy_mlp):
    run = record(mlp, mlp.test_mlp, n_epochs=1, dataset=MNIST)
    (x, y), *others = formats.read_splits(MNIST)
    reference = numpy_mlp(
        x.astype("float64"), y, batch_size=20, n_hidden=500, learning_rate=0.01, L1_reg=0.0, L2_reg=0.0001
    )
    np.testing.assert_allclose(run.costs, reference.costs, rtol=2e-5)
    for name, value in run.result.best_parameters.items():
        np.testing.assert_allclose(value, reference.parameters[name], atol=2e-5, err_msg=name)
    for error, (x, y) in zip((run.result.best_validation_error, run.result.test_error), others, strict=True):
        scores = reference.scores(x)
        second, first = np.sort(scores, axis=1)[:, -2:].T
        # Digits between two classes, which rounding may push to either.
        undecided = (first - second < 1e-3).mean()
        assert abs(error - (scores.argmax(axis=1) != y).mean()) <= undecided + 1e-12
