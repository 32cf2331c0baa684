"""LeNet on MNIST: two convolution and max-pooling layers, a hidden layer, a softmax.

    python -m deeplearning_tutorial.convolutional_mlp                     # the tutorial's run
    python -m deeplearning_tutorial.convolutional_mlp --n-epochs 3        # a first look
    python -m deeplearning_tutorial.convolutional_mlp --nkerns 6 16 --batch-size 100

Like the original it simplifies LeNet-5 (LeCun et al., 1998): max-pooling without trainable coefficients
instead of averages, every feature map connected to all maps below, a softmax instead of RBF units.
Ported from the deep learning tutorial, "Convolutional Neural Networks (LeNet)". Other poolings have a page of
their own, `lenet_poolings`.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial.datasets import check_mnist
from deeplearning_tutorial.files.streams import stderr, stdout
from deeplearning_tutorial.layers.shapes import check_conv_pool_shapes
from deeplearning_tutorial.logistic_sgd import LogisticRegression, load_data
from deeplearning_tutorial.mlp import HiddenLayer
from deeplearning_tutorial.nnet import conv2d, pool_2d
from deeplearning_tutorial.training import command_line
from deeplearning_tutorial.training.checks import (
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
    image_shape : tuple of (int or None)
        ``(batch, feature maps below, rows, cols)``; None where a length is unknown.
    poolsize : tuple of int
        Rows and columns of the pooling window.

    Attributes
    ----------
    W, b : shared variable
        Shapes ``filter_shape`` and ``(filters,)``.
    params : list of shared variables
        ``[W, b]``.
    output : TensorVariable
        Shape ``(batch, filters, (rows - filter rows + 1) // pool rows, (cols - filter cols + 1) // pool
        cols)``.

    Raises
    ------
    ValueError
        If the shapes do not fit each other.
    """

    def __init__(self, rng, input, filter_shape, image_shape, poolsize=(2, 2)):
        check_conv_pool_shapes(filter_shape, image_shape, poolsize)
        floatX = pytensor.config.floatX
        self.input = input

        # Each unit of a feature map takes "maps below * filter rows * filter cols" inputs, and each input
        # receives a gradient from "filters * filter rows * filter cols / pooling size" units.
        fan_in = np.prod(filter_shape[1:])
        fan_out = filter_shape[0] * np.prod(filter_shape[2:]) // np.prod(poolsize)
        W_bound = np.sqrt(6.0 / (fan_in + fan_out))
        W_values = np.asarray(rng.uniform(low=-W_bound, high=W_bound, size=filter_shape), dtype=floatX)
        self.W = pytensor.shared(W_values, name="W", borrow=True, shape=W_values.shape)
        # One bias per feature map.
        b_values = np.zeros((filter_shape[0],), dtype=floatX)
        self.b = pytensor.shared(b_values, name="b", borrow=True, shape=b_values.shape)

        # Where Numba compiles, these lines and their gradients become one Op: see nnet/rewrites/conv_pool.py.
        conv_out = conv2d(input=input, filters=self.W, filter_shape=filter_shape, input_shape=image_shape)
        pooled_out = pool_2d(input=conv_out, ws=poolsize, ignore_border=True)
        # The bias becomes (1, filters, 1, 1), and so is added to all pixels of a map, of all images.
        self.output = pt.tanh(pooled_out + self.b.dimshuffle("x", 0, "x", "x"))
        self.params = [self.W, self.b]


def build_lenet(rng, x, batch_size, nkerns=(20, 50), n_hidden=500):
    """Build the tutorial's LeNet over a minibatch of MNIST.

    Parameters
    ----------
    rng : numpy.random.RandomState
        Draws the initial weights, from the first layer upwards.
    x : TensorVariable
        Images, shape ``(batch_size, 784)``.
    batch_size : int
        Examples per minibatch.
    nkerns : tuple of int
        Filters in the first and in the second convolution.
    n_hidden : int
        Units of the fully connected layer.

    Returns
    -------
    dict of str to object
        `LeNetConvPoolLayer` "layer0" and "layer1", `HiddenLayer` "layer2", `LogisticRegression` "layer3".
    """
    # Rows of 784 pixels become images of 28x28 with one channel, the 4-d tensor that convolutions take.
    layer0_input = x.reshape((batch_size, 1, 28, 28))

    # The first convolution leaves 28 - 5 + 1 = 24 rows and columns, and the pooling half of them:
    # layer0.output has the shape (batch_size, nkerns[0], 12, 12).
    layer0 = LeNetConvPoolLayer(
        rng,
        input=layer0_input,
        image_shape=(batch_size, 1, 28, 28),
        filter_shape=(nkerns[0], 1, 5, 5),
        poolsize=(2, 2),
    )

    # The second leaves 12 - 5 + 1 = 8, and the pooling 4: (batch_size, nkerns[1], 4, 4).
    layer1 = LeNetConvPoolLayer(
        rng,
        input=layer0.output,
        image_shape=(batch_size, nkerns[0], 12, 12),
        filter_shape=(nkerns[1], nkerns[0], 5, 5),
        poolsize=(2, 2),
    )

    # The fully connected layer takes vectors, all maps of an image in a row: (batch_size, nkerns[1] * 4 * 4),
    # which is (500, 800) with the defaults.
    n_in = nkerns[1] * 4 * 4
    layer2_input = layer1.output.reshape((batch_size, n_in))
    layer2 = HiddenLayer(rng, input=layer2_input, n_in=n_in, n_out=n_hidden, activation=pt.tanh)

    # Its units are classified by logistic regression.
    layer3 = LogisticRegression(input=layer2.output, n_in=n_hidden, n_out=10)
    return {"layer0": layer0, "layer1": layer1, "layer2": layer2, "layer3": layer3}


def evaluate_lenet5(
    learning_rate=0.1,
    n_epochs=200,
    dataset="mnist.pkl.gz",
    nkerns=(20, 50),
    batch_size=500,
    *,
    seed=23455,
    run=None,
):
    """Train LeNet on MNIST.

    Parameters
    ----------
    learning_rate : float
        Step size of the gradient descent.
    n_epochs : int
        Maximum number of epochs; patience (10000 minibatches at first) may end training earlier.
    dataset : path
        MNIST, as `load_data` takes it.
    nkerns : tuple of int
        Filters in the first and in the second convolution.
    batch_size : int
        Examples per minibatch.
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
    learning_rate = check_rate("learning_rate", learning_rate, 0.1)
    check_positive_int("n_epochs", n_epochs, 200)
    check_positive_ints("nkerns", nkerns, 2, (20, 50))
    check_positive_int("batch_size", batch_size, 500)
    check_seed("seed", seed, 23455)
    run = (run or Run()).start(
        "convolutional_mlp",
        dataset,
        learning_rate=learning_rate,
        n_epochs=n_epochs,
        nkerns=nkerns,
        batch_size=batch_size,
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
    index = pt.lscalar("index")  # of a minibatch
    x = pt.matrix("x")  # images as rows of pixels
    y = pt.ivector("y")  # labels
    layers = build_lenet(rng, x, batch_size, nkerns)
    layer0, layer1, layer2, layer3 = layers.values()
    cost = layer3.negative_log_likelihood(y)

    batch = slice(index * batch_size, (index + 1) * batch_size)
    test_model = pytensor.function(
        [index],
        layer3.errors(y),
        givens={x: test_set_x[batch], y: test_set_y[batch]},
    )
    validate_model = pytensor.function(
        [index],
        layer3.errors(y),
        givens={x: valid_set_x[batch], y: valid_set_y[batch]},
    )
    params = layer3.params + layer2.params + layer1.params + layer0.params
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
        patience=10000,
        parameters=named_parameters(**layers),
        announce_every=100,
        run=run,
    )
    print("Optimization complete.", file=stdout)
    print(result.closing_line(), file=stdout)
    print(f"The code for file convolutional_mlp.py ran for {result.seconds / 60:.2f}m", file=stderr)
    return result


page = Page(
    evaluate_lenet5,
    "LeNet on MNIST",
    names=("LeNetConvPoolLayer", "evaluate_lenet5", "experiment"),
    published={"validation error": 0.91, "test error": 0.92, "iteration": 17800},
    minibatches=(100, 20, 20),
    build=build_lenet,
    units={"nkerns": ("layer0", "layer1"), "n_hidden": "layer2"},
)
experiment = page.experiment


if __name__ == "__main__":
    command_line.run(page, __doc__)
