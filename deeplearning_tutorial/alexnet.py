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
weight decay, the initial weights, and the mean training image, which is subtracted. Otherwise than there,
images are not shifted, mirrored or recoloured, biases do not decay, and the learning rate stays as it is.
With fewer filters and units signals fade on their way up unless --deviation grows, to 0.1 or so; images of
67x67 were learned with --deviation 0.03 --learning-rate 0.001.
"""

import itertools

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial import command_line
from deeplearning_tutorial.alexnet_architecture import CHANNELS, AlexNet
from deeplearning_tutorial.checks import (
    check_positive_int,
    check_probability,
    check_rate,
    check_seed,
    count_minibatches,
)
from deeplearning_tutorial.early_stopping import train_with_patience
from deeplearning_tutorial.experiments import experiment_of
from deeplearning_tutorial.image_sets import read_image_sets
from deeplearning_tutorial.layer_summary import from_arguments
from deeplearning_tutorial.momentum import momentum_updates, zero_velocities
from deeplearning_tutorial.parameters import named_parameters
from deeplearning_tutorial.streams import stderr, stdout
from deeplearning_tutorial.training_files import TrainingFiles


def train_alexnet(
    dataset,
    learning_rate=0.01,
    n_epochs=90,
    batch_size=128,
    *,
    momentum=0.9,
    weight_decay=0.0005,
    dropout=0.5,
    n_classes=1000,
    image_side=227,
    nkerns=(96, 256, 384, 384, 256),
    filter_sizes=(11, 5, 3, 3, 3),
    stride=4,
    num_groups=2,
    pool_size=3,
    pool_stride=2,
    n_hidden=(4096, 4096),
    deviation=0.01,
    seed=23455,
    save=None,
    checkpoint=None,
    resume=False,
    log=None,
    progress=False,
    channel=None,
):
    """Train AlexNet on labelled images.

    Parameters
    ----------
    dataset : path
        ``.npz`` file of images, as `read_image_sets` takes it.
    learning_rate : float
        Step size of the gradient descent.
    n_epochs : int
        Epochs at most; patience (20000 minibatches at first) may end training earlier.
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
    deviation : float
        Standard deviation of the initial weights.
    seed : int
        Seed of the initial weights, and of what is dropped.
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
        Beside the trained parameters it holds ``mean``, the mean training image, shape
        ``(3, image_side, image_side)``.

    Raises
    ------
    ValueError
        If an argument is out of range, a layer does not fit the one below, images or labels of ``dataset`` do
        not fit, ``batch_size`` is larger than a split, or ``checkpoint`` of another run.
    OSError
        If there is no ``dataset``, ``checkpoint`` or ``log`` exists though ``resume`` is False, or no file
        can be written there.
    TrainingInterrupted, DivergenceError
        As `train_with_patience` raises them; what was reached is in their ``result``.
    """
    learning_rate = check_rate("learning_rate", learning_rate, 0.01)
    check_positive_int("n_epochs", n_epochs, 90)
    check_positive_int("batch_size", batch_size, 128)
    momentum = check_probability("momentum", momentum, 0.9)
    weight_decay = check_rate("weight_decay", weight_decay, 0.0005, minimum_excluded=False)
    check_seed("seed", seed, 23455)
    # Refuses what does not fit.
    architecture = architecture_of(locals())
    arguments = {name: value for name, value in locals().items() if name != "architecture"}
    # All arguments, for they tell one run from another.
    files = TrainingFiles("alexnet", train_alexnet, **arguments)

    print("... loading data", file=stdout)
    datasets = [_shared(*split) for split in read_image_sets(dataset, image_side, n_classes)]
    files.check_data(datasets)
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
    kept = [pt.matrix("kept6"), pt.matrix("kept7")]
    mean = _mean_image(train_set_x)
    layers = architecture.build(np.random.RandomState(seed), pt.cast(x, mean.dtype) - mean, batch_size, kept)
    classifier = layers["output"]
    cost = classifier.negative_log_likelihood(y)
    all_units = dict(zip(kept, architecture.keep_all(batch_size), strict=True))

    test_model = pytensor.function(
        [index],
        classifier.errors(y),
        givens=all_units
        | {
            x: test_set_x[index * batch_size : (index + 1) * batch_size],
            y: test_set_y[index * batch_size : (index + 1) * batch_size],
        },
    )
    validate_model = pytensor.function(
        [index],
        classifier.errors(y),
        givens=all_units
        | {
            x: valid_set_x[index * batch_size : (index + 1) * batch_size],
            y: valid_set_y[index * batch_size : (index + 1) * batch_size],
        },
    )
    parameters = named_parameters(**layers)
    velocities = zero_velocities(parameters)
    train_step = pytensor.function(
        [index, *kept],
        cost,
        updates=momentum_updates(cost, parameters, velocities, learning_rate, momentum, weight_decay),
        givens={
            x: train_set_x[index * batch_size : (index + 1) * batch_size],
            y: train_set_y[index * batch_size : (index + 1) * batch_size],
        },
    )
    iterations = itertools.count(0 if files.resumed is None else files.resumed.iteration)

    def train_model(index):
        return train_step(index, *architecture.draw_kept(seed, next(iterations), batch_size))

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
        files=files,
        progress=progress,
        channel=channel,
    )
    print("Optimization complete.", file=stdout)
    print(result.summary(), file=stdout)
    print(f"The code for file alexnet.py ran for {result.seconds / 60:.2f}m", file=stderr)
    return result


experiment = experiment_of(train_alexnet)


def architecture_of(arguments):
    """Return the `AlexNet` that `train_alexnet` trains.

    Parameters
    ----------
    arguments : dict
        Some of its arguments by name; its defaults hold for the others.

    Returns
    -------
    AlexNet

    Raises
    ------
    ValueError
        If an argument is out of range, or a layer does not fit the one below.
    """
    return from_arguments(AlexNet, train_alexnet, arguments)


def summary(**arguments):
    """Return the table of the layers that `train_alexnet` trains if it is given these arguments."""
    return architecture_of(arguments).summary()


def _shared(x, y):
    # Bytes stay bytes, a quarter of the memory: a minibatch becomes floatX in the graph.
    x = x if x.dtype == np.uint8 else np.asarray(x, pytensor.config.floatX)
    return tuple(pytensor.shared(value, shape=value.shape, borrow=True) for value in (x, y))


def _mean_image(images):
    mean = images.get_value(borrow=True).mean(axis=0, dtype="float64").astype(pytensor.config.floatX)
    return pytensor.shared(mean, name="mean", borrow=True, shape=mean.shape)


if __name__ == "__main__":
    command_line.run(train_alexnet, __doc__, {}, minibatches=(), summary=summary)
