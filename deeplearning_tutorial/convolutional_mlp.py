"""LeNet on MNIST: two convolution and max-pooling layers, a hidden layer, a softmax.

    python -m deeplearning_tutorial.convolutional_mlp                     # the tutorial's run
    python -m deeplearning_tutorial.convolutional_mlp --n-epochs 3        # a first look
    python -m deeplearning_tutorial.convolutional_mlp --nkerns 6 16 --batch-size 100

Like the original it simplifies LeNet-5 (LeCun et al., 1998): max-pooling without trainable coefficients
instead of averages, every feature map connected to all maps below, a softmax instead of RBF units.
Ported from the deep learning tutorial, "Convolutional Neural Networks (LeNet)".
"""

import sys

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial import command_line
from deeplearning_tutorial.checks import (
    check_positive_int,
    check_positive_ints,
    check_rate,
    check_seed,
    count_minibatches,
)
from deeplearning_tutorial.early_stopping import train_with_patience
from deeplearning_tutorial.experiments import experiment_of
from deeplearning_tutorial.logistic_sgd import LogisticRegression, load_data
from deeplearning_tutorial.mlp import HiddenLayer
from deeplearning_tutorial.nnet import conv2d, pool
from deeplearning_tutorial.parameters import named_parameters
from deeplearning_tutorial.training_files import TrainingFiles

PUBLISHED = {"validation error": 0.91, "test error": 0.92, "iteration": 17800}


class LeNetConvPoolLayer:
    """Convolution, max-pooling, bias and tanh: ``tanh(pool_2d(conv2d(input, W)) + b)``.

    Parameters
    ----------
    rng : numpy.random.RandomState
        Draws the initial filters.
    input : TensorVariable
        Images or feature maps, shape ``image_shape``.
    filter_shape : tuple of int
        ``(filters, feature maps below, filter rows, filter cols)``.
    image_shape : tuple of int
        ``(batch, feature maps below, rows, cols)``.
    poolsize : tuple of int
        Rows and columns of the pooling window.

    Attributes
    ----------
    W, b : shared variable
        Shapes ``filter_shape`` and ``(filters,)``.
    params : list of shared variables
        ``[W, b]``.
    output : TensorVariable
        Shape ``(batch, filters, rows', cols')``, where ``rows' = (rows - filter rows + 1) // poolsize[0]``
        and likewise for columns.

    Raises
    ------
    ValueError
        If the shapes do not fit each other.

    Notes
    -----
    ``W`` is uniform in ``+-sqrt(6 / (fan_in + fan_out))`` with ``fan_in = feature maps below * filter rows
    * filter cols`` and ``fan_out = filters * filter rows * filter cols // (pool rows * pool cols)``; ``b``
    starts at zero. The bias is added after pooling, which gives the same as before it, with fewer sums.
    """

    def __init__(self, rng, input, filter_shape, image_shape, poolsize=(2, 2)):
        _check_layer(filter_shape, image_shape, poolsize)
        floatX = pytensor.config.floatX
        self.input = input

        fan_in = np.prod(filter_shape[1:])
        fan_out = filter_shape[0] * np.prod(filter_shape[2:]) // np.prod(poolsize)
        W_bound = np.sqrt(6.0 / (fan_in + fan_out))
        W_values = np.asarray(rng.uniform(low=-W_bound, high=W_bound, size=filter_shape), dtype=floatX)
        b_values = np.zeros((filter_shape[0],), dtype=floatX)
        self.W = pytensor.shared(W_values, name="W", borrow=True, shape=W_values.shape)
        self.b = pytensor.shared(b_values, name="b", borrow=True, shape=b_values.shape)

        conv_out = conv2d(input=input, filters=self.W, filter_shape=filter_shape, input_shape=image_shape)
        pooled_out = pool.pool_2d(input=conv_out, ws=tuple(poolsize), ignore_border=True)
        self.output = pt.tanh(pooled_out + self.b.dimshuffle("x", 0, "x", "x"))
        self.params = [self.W, self.b]


def evaluate_lenet5(
    learning_rate=0.1,
    n_epochs=200,
    dataset="mnist.pkl.gz",
    nkerns=(20, 50),
    batch_size=500,
    *,
    seed=23455,
    save=None,
    checkpoint=None,
    resume=False,
    log=None,
    progress=False,
    channel=None,
):
    """Train LeNet on MNIST.

    Parameters
    ----------
    learning_rate : float
        Step size of the gradient descent.
    n_epochs : int
        Epochs at most; patience (10000 minibatches at first) may end training earlier.
    dataset : path
        MNIST, as `load_data` takes it.
    nkerns : tuple of int
        Filters in the first and in the second convolution.
    batch_size : int
        Examples per minibatch.
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
    learning_rate = check_rate("learning_rate", learning_rate, 0.1)
    check_positive_int("n_epochs", n_epochs, 200)
    check_positive_ints("nkerns", nkerns, 2, (20, 50))
    check_positive_int("batch_size", batch_size, 500)
    check_seed("seed", seed, 23455)
    # All arguments, for they tell one run from another.
    files = TrainingFiles("convolutional_mlp", **locals())
    rng = np.random.RandomState(seed)

    datasets = load_data(dataset)
    files.check_data(datasets)
    train_set_x, train_set_y = datasets[0]
    valid_set_x, valid_set_y = datasets[1]
    test_set_x, test_set_y = datasets[2]
    n_train_batches, n_valid_batches, n_test_batches = count_minibatches(
        batch_size, training=train_set_x, validation=valid_set_x, test=test_set_x
    )

    print("... building the model")
    index = pt.lscalar("index")
    x = pt.matrix("x")
    y = pt.ivector("y")

    # 28x28 images become 24x24 by convolution and 12x12 by pooling, then 8x8 and 4x4.
    layer0_input = x.reshape((batch_size, 1, 28, 28))
    layer0 = LeNetConvPoolLayer(
        rng,
        input=layer0_input,
        image_shape=(batch_size, 1, 28, 28),
        filter_shape=(nkerns[0], 1, 5, 5),
        poolsize=(2, 2),
    )
    layer1 = LeNetConvPoolLayer(
        rng,
        input=layer0.output,
        image_shape=(batch_size, nkerns[0], 12, 12),
        filter_shape=(nkerns[1], nkerns[0], 5, 5),
        poolsize=(2, 2),
    )
    layer2_input = layer1.output.reshape((batch_size, nkerns[1] * 4 * 4))
    layer2 = HiddenLayer(rng, input=layer2_input, n_in=nkerns[1] * 4 * 4, n_out=500, activation=pt.tanh)
    layer3 = LogisticRegression(input=layer2.output, n_in=500, n_out=10)
    cost = layer3.negative_log_likelihood(y)

    test_model = pytensor.function(
        [index],
        layer3.errors(y),
        givens={
            x: test_set_x[index * batch_size : (index + 1) * batch_size],
            y: test_set_y[index * batch_size : (index + 1) * batch_size],
        },
    )
    validate_model = pytensor.function(
        [index],
        layer3.errors(y),
        givens={
            x: valid_set_x[index * batch_size : (index + 1) * batch_size],
            y: valid_set_y[index * batch_size : (index + 1) * batch_size],
        },
    )
    params = layer3.params + layer2.params + layer1.params + layer0.params
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

    print("... training")
    result = train_with_patience(
        train_model,
        validate_model,
        test_model,
        n_train_batches,
        n_valid_batches,
        n_test_batches,
        n_epochs,
        patience=10000,
        parameters=named_parameters(layer0=layer0, layer1=layer1, layer2=layer2, layer3=layer3),
        announce_every=100,
        files=files,
        progress=progress,
        channel=channel,
    )
    print("Optimization complete.")
    print(result.summary())
    print(f"The code for file convolutional_mlp.py ran for {result.seconds / 60:.2f}m", file=sys.stderr)
    return result


experiment = experiment_of(evaluate_lenet5)


def _check_layer(filter_shape, image_shape, poolsize):
    check_positive_ints("filter_shape", filter_shape, 4, (20, 1, 5, 5))
    check_positive_ints("image_shape", image_shape, 4, (500, 1, 28, 28))
    check_positive_ints("poolsize", poolsize, 2, (2, 2))
    if filter_shape[1] != image_shape[1]:
        raise ValueError(
            f"filter_shape={filter_shape} takes {filter_shape[1]} feature maps, image_shape={image_shape} "
            f"has {image_shape[1]}; make the second entries equal"
        )
    for axis, image, filters, window in zip(
        ("rows", "cols"), image_shape[2:], filter_shape[2:], poolsize, strict=True
    ):
        if image < filters:
            raise ValueError(
                f"image_shape={image_shape} has {image} {axis}, fewer than the {filters} of "
                f"filter_shape={filter_shape}; use larger images or smaller filters"
            )
        if image - filters + 1 < window:
            raise ValueError(
                f"poolsize={poolsize} does not fit: the convolution of image_shape={image_shape} with "
                f"filter_shape={filter_shape} leaves {image - filters + 1} {axis}; use smaller windows"
            )


if __name__ == "__main__":
    command_line.run(evaluate_lenet5, __doc__, PUBLISHED, minibatches=(100, 20, 20))
