"""LeNet-5, the network of 1998, on MNIST: three convolutions, two poolings, a hidden layer, a softmax.

    python -m deeplearning_tutorial.lenet5                                  # the classic sizes
    python -m deeplearning_tutorial.lenet5 --pooling 1998 --connection 1998 # as the paper has it
    python -m deeplearning_tutorial.lenet5 --filter-sizes 7 3 5 --nkerns 8 24 120
    python -m deeplearning_tutorial.lenet5 --summary                        # its layers; nothing is trained

Images of 28x28, padded by 2 on each side: C1 6 maps of 28x28, S2 14x14, C3 16 maps of 10x10, S4 5x5, C5 120
maps of 1x1, F6 84 units, 10 outputs (LeCun, Bottou, Bengio and Haffner, 1998, section II.B).

Three things are the tutorial's. The output is a softmax: the paper's RBF units measure distances to fixed
bitmaps, which are no probabilities. The activation is tanh, not 1.7159 tanh(2x/3): weights can learn these
factors, which are meant for targets of +1 and -1; --activation scaled_tanh has them. Pixels go from 0 to 1.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial import command_line
from deeplearning_tutorial.checks import check_positive_int, check_rate, check_seed, count_minibatches
from deeplearning_tutorial.datasets import check_mnist
from deeplearning_tutorial.early_stopping import train_with_patience
from deeplearning_tutorial.experiments import experiment_of
from deeplearning_tutorial.layer_summary import from_arguments
from deeplearning_tutorial.lenet5_architecture import LeNet5
from deeplearning_tutorial.logistic_sgd import load_data
from deeplearning_tutorial.parameters import named_parameters
from deeplearning_tutorial.streams import stderr, stdout
from deeplearning_tutorial.training_files import TrainingFiles

# After 20 passes over all 60,000 images, of which 50,000 train here (section III.B, without distortions).
PUBLISHED = {"test error": 0.95}


def train_lenet5(
    learning_rate=0.1,
    n_epochs=200,
    dataset="mnist.pkl.gz",
    nkerns=(6, 16, 120),
    batch_size=50,
    *,
    n_hidden=84,
    filter_sizes=(5, 5, 5),
    pool_sizes=(2, 2),
    pool_strides=(2, 2),
    pooling="max",
    activation="tanh",
    connection="full",
    seed=23455,
    save=None,
    checkpoint=None,
    resume=False,
    log=None,
    progress=False,
    channel=None,
):
    """Train LeNet-5 on MNIST.

    Parameters
    ----------
    learning_rate : float
        Step size of the gradient descent.
    n_epochs : int
        Epochs at most; patience (20000 minibatches at first) usually ends training earlier.
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
    activation : {'tanh', 'relu', 'sigmoid', 'scaled_tanh'}
        Of the convolutions and F6: tanh, relu, sigmoid or scaled_tanh, which is 1.7159 tanh(2x/3).
    connection : {'full', '1998'}
        Which maps of S2 each map of C3 takes: full, all of them; or 1998, those of the paper's table I.
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
        If an argument is out of range, a layer does not fit the one below, ``batch_size`` is larger than a
        split, or ``checkpoint`` of another run.
    OSError
        If ``checkpoint`` or ``log`` exists though ``resume`` is False, or no file can be written there.
    TrainingInterrupted, DivergenceError
        As `train_with_patience` raises them; what was reached is in their ``result``.
    """
    learning_rate = check_rate("learning_rate", learning_rate, 0.1)
    check_positive_int("n_epochs", n_epochs, 200)
    check_positive_int("batch_size", batch_size, 50)
    check_seed("seed", seed, 23455)
    # Refuses what does not fit.
    architecture_of(locals())
    # All arguments, for they tell one run from another.
    files = TrainingFiles("lenet5", train_lenet5, **locals())
    rng = np.random.RandomState(seed)

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
    layers = architecture_of(files.arguments).build(rng, x, batch_size)
    classifier = layers["output"]
    cost = classifier.negative_log_likelihood(y)

    test_model = pytensor.function(
        [index],
        classifier.errors(y),
        givens={
            x: test_set_x[index * batch_size : (index + 1) * batch_size],
            y: test_set_y[index * batch_size : (index + 1) * batch_size],
        },
    )
    validate_model = pytensor.function(
        [index],
        classifier.errors(y),
        givens={
            x: valid_set_x[index * batch_size : (index + 1) * batch_size],
            y: valid_set_y[index * batch_size : (index + 1) * batch_size],
        },
    )
    parameters = named_parameters(**layers)
    params = list(parameters.values())
    grads = pytensor.grad(cost, params)
    updates = [(param, param - learning_rate * grad) for param, grad in zip(params, grads, strict=True)]
    train_model = pytensor.function(
        [index],
        cost,
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
        patience=20000,
        parameters=parameters,
        files=files,
        progress=progress,
        channel=channel,
    )
    print("Optimization complete.", file=stdout)
    print(result.summary(), file=stdout)
    print(f"The code for file lenet5.py ran for {result.seconds / 60:.2f}m", file=stderr)
    return result


experiment = experiment_of(train_lenet5)


def architecture_of(arguments):
    """Return the `LeNet5` that `train_lenet5` trains.

    Parameters
    ----------
    arguments : dict
        Some of its arguments by name; its defaults hold for the others.

    Returns
    -------
    LeNet5

    Raises
    ------
    ValueError
        If an argument is out of range, or a layer does not fit the one below.
    """
    return from_arguments(LeNet5, train_lenet5, arguments)


def summary(**arguments):
    """Return the table of the layers that `train_lenet5` trains if it is given these arguments."""
    return architecture_of(arguments).summary()


if __name__ == "__main__":
    command_line.run(train_lenet5, __doc__, PUBLISHED, minibatches=(1000, 200, 200), summary=summary)
