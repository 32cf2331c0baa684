"""The tutorial's LeNet with another pooling, stride, activation or normalisation.

    python -m deeplearning_tutorial.lenet_poolings --pooling stochastic --activation relu
    python -m deeplearning_tutorial.lenet_poolings --pool-sizes 3 3 --pool-strides 2 2 --n-epochs 3
    python -m deeplearning_tutorial.lenet_poolings --pooling average --normalisation contrast

With the defaults it is the network of `convolutional_mlp`, with the same weights. docs/poolings.md says what
each pooling is, and what LeNet reaches with it.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial.datasets import check_mnist
from deeplearning_tutorial.datasets.formats import IMAGE_SIDE
from deeplearning_tutorial.files.streams import stderr, stdout
from deeplearning_tutorial.layers.activations import ACTIVATIONS, activation_name, check_activation
from deeplearning_tutorial.layers.shapes import check_conv_pool_shapes
from deeplearning_tutorial.logistic_sgd import LogisticRegression, load_data
from deeplearning_tutorial.mlp import HiddenLayer
from deeplearning_tutorial.nnet import (
    conv2d,
    deformation_constrained_pool,
    local_contrast_normalisation,
    local_response_normalisation,
    stochastic_pool,
    uniform_numbers,
)
from deeplearning_tutorial.nnet.pool import pool_output_length
from deeplearning_tutorial.nnet.poolings import POOLINGS_BY_NAME
from deeplearning_tutorial.nnet.shape_hint import lengths_of
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

POOLINGS = (*POOLINGS_BY_NAME, "stochastic", "deformation")
NORMALISATIONS = {"contrast": local_contrast_normalisation, "response": local_response_normalisation}


class LeNetPoolingLayer:
    """Convolution, bias, activation and pooling; with max and tanh, the same as `LeNetConvPoolLayer`.

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
    pooling : {'max', 'average', 'sum', 'l2', 'stochastic', 'deformation'}
        What to take of each window: see `max_pool`, `average_pool`, `sum_pool`, `l2_pool`, `stochastic_pool`
        and `deformation_constrained_pool`.
    stride : tuple of int, optional
        Rows and columns from one window to the next, which overlap if it is smaller than ``poolsize``;
        ``poolsize`` if not given.
    activation : callable
        Elementwise and non-decreasing. Stochastic pooling is meant for `relu`: it samples positive
        activations only.
    normalisation : {'contrast', 'response'}, optional
        Normalise the activations before pooling: see `local_contrast_normalisation` and
        `local_response_normalisation`.
    training_step : TensorVariable, optional
        Integer scalar by which stochastic pooling samples; each step has samples of its own. Without it
        nothing is sampled.

    Attributes
    ----------
    W, b : shared variable
        Shapes ``filter_shape`` and ``(filters,)``.
    deformation : shared variable
        With 'deformation' only: the penalties' coefficients, shape ``(filters, 4)``.
    params : list of shared variables
        ``[W, b]``, and ``deformation`` if there is one.
    maps : TensorVariable
        What is pooled, after bias, activation and normalisation: shape ``(batch, filters, rows - filter rows
        + 1, cols - filter cols + 1)``.
    output : TensorVariable
        Shape ``(batch, filters, rows', cols')``, where ``rows' = (rows - filter rows + 1 - poolsize[0]) //
        stride[0] + 1`` and likewise for columns.
    test_output : TensorVariable
        ``output`` itself; but where that is sampled, what replaces it in testing, by ``givens``.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, or a choice is unknown.

    Notes
    -----
    The initial values are those of `LeNetConvPoolLayer`. ``deformation`` starts at zero, where the pooling is
    max-pooling.

    The maximum is taken before bias and activation, which gives the same as after them with fewer sums. So it
    is with 'deformation', unless there is normalisation: the filters' responses are the part detection maps.
    """

    def __init__(
        self,
        rng,
        input,
        filter_shape,
        image_shape,
        poolsize=(2, 2),
        *,
        pooling="max",
        stride=None,
        activation=pt.tanh,
        normalisation=None,
        training_step=None,
    ):
        check_conv_pool_shapes(filter_shape, image_shape, poolsize)
        if stride is not None:
            check_positive_ints("stride", stride, 2, (2, 2))
        check_choices(pooling, activation, normalisation)
        floatX = pytensor.config.floatX
        self.input = input

        fan_in = np.prod(filter_shape[1:])
        fan_out = filter_shape[0] * np.prod(filter_shape[2:]) // np.prod(poolsize)
        W_bound = np.sqrt(6.0 / (fan_in + fan_out))
        W_values = np.asarray(rng.uniform(low=-W_bound, high=W_bound, size=filter_shape), dtype=floatX)
        b_values = np.zeros((filter_shape[0],), dtype=floatX)
        self.W = pytensor.shared(W_values, name="W", borrow=True, shape=W_values.shape)
        self.b = pytensor.shared(b_values, name="b", borrow=True, shape=b_values.shape)
        self.params = [self.W, self.b]

        def activate(maps):
            return activation(maps + self.b.dimshuffle("x", 0, "x", "x"))

        conv_out = conv2d(input=input, filters=self.W, filter_shape=filter_shape, input_shape=image_shape)
        self.maps = activate(conv_out)
        if normalisation is not None:
            self.maps = NORMALISATIONS[normalisation](self.maps)
        windows = {"ws": tuple(poolsize), "stride": None if stride is None else tuple(stride)}
        pool = POOLINGS_BY_NAME.get(pooling)
        if pooling == "stochastic":
            pool = stochastic_pool
        elif pooling == "deformation":
            pool = deformation_constrained_pool
            zeros = np.zeros((filter_shape[0], 4), dtype=floatX)
            self.deformation = pytensor.shared(zeros, name="deformation", borrow=True, shape=zeros.shape)
            self.params.append(self.deformation)
            windows["coefficients"] = self.deformation
        if pooling in ("max", "deformation") and normalisation is None:
            self.output = activate(pool(conv_out, **windows))
        else:
            self.output = pool(self.maps, **windows)
        self.test_output = self.output
        if pooling == "stochastic" and training_step is not None:
            seed = int(rng.randint(2**32, dtype=np.uint64))
            uniform = uniform_numbers(training_step, lengths_of(self.maps), seed, floatX)
            self.output = pool(self.maps, **windows, uniform=uniform)


def build_lenet(
    rng,
    x,
    batch_size,
    nkerns=(20, 50),
    n_hidden=500,
    *,
    pooling="max",
    pool_sizes=(2, 2),
    pool_strides=(2, 2),
    activation=pt.tanh,
    normalisation=None,
    training_step=None,
):
    """Build the tutorial's LeNet with other poolings.

    Parameters
    ----------
    rng, x, batch_size, nkerns, n_hidden
        As `convolutional_mlp.build_lenet` takes them.
    pooling, pool_sizes, pool_strides, activation, normalisation
        As `train_lenet_poolings` takes them.
    training_step : TensorVariable, optional
        As `LeNetPoolingLayer` takes it.

    Returns
    -------
    dict of str to object
        `LeNetPoolingLayer` "layer0" and "layer1", `HiddenLayer` "layer2", `LogisticRegression` "layer3".
    """
    output = x.reshape((batch_size, 1, IMAGE_SIDE, IMAGE_SIDE))
    maps, side, layers = 1, IMAGE_SIDE, {}
    sides = pooled_sides(pool_sizes, pool_strides)
    for index, (filters, size, stride, pooled) in enumerate(
        zip(nkerns, pool_sizes, pool_strides, sides, strict=True)
    ):
        # With the defaults 28x28 images become 24x24 by convolution and 12x12 by pooling, then 8x8 and 4x4.
        layers[f"layer{index}"] = layer = LeNetPoolingLayer(
            rng,
            input=output,
            image_shape=(batch_size, maps, side, side),
            filter_shape=(filters, maps, 5, 5),
            poolsize=(size, size),
            stride=(stride, stride),
            pooling=pooling,
            activation=activation,
            normalisation=normalisation,
            training_step=training_step,
        )
        output, maps, side = layer.output, filters, pooled
    n_in = maps * side * side
    layer2_input = output.reshape((batch_size, n_in))
    layers["layer2"] = HiddenLayer(rng, input=layer2_input, n_in=n_in, n_out=n_hidden, activation=pt.tanh)
    layers["layer3"] = LogisticRegression(input=layers["layer2"].output, n_in=n_hidden, n_out=10)
    return layers


def train_lenet_poolings(
    learning_rate=0.1,
    n_epochs=200,
    dataset="mnist.pkl.gz",
    nkerns=(20, 50),
    batch_size=500,
    *,
    pooling="max",
    pool_sizes=(2, 2),
    pool_strides=(2, 2),
    activation=pt.tanh,
    normalisation=None,
    seed=23455,
    run=None,
):
    """Train LeNet with another pooling on MNIST.

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
    pooling : {'max', 'average', 'sum', 'l2', 'stochastic', 'deformation'}
        What both layers take of a window: max, average, sum, l2, stochastic or deformation.
    pool_sizes : tuple of int
        Rows, and columns, of the first layer's windows and of the second's.
    pool_strides : tuple of int
        From one window to the next in each layer; windows overlap where it is less than their size.
    activation : callable
        Of the convolutions: tanh, relu, sigmoid or scaled_tanh.
    normalisation : {'contrast', 'response'}, optional
        Local contrast or local response normalisation, between activation and pooling.
    seed : int
        Seed of the generator that draws the initial weights, and by which stochastic pooling samples.
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
    check_choices(pooling, activation, normalisation)
    pooled_sides(pool_sizes, pool_strides)
    run = (run or Run()).start(
        "lenet_poolings",
        dataset,
        learning_rate=learning_rate,
        n_epochs=n_epochs,
        nkerns=nkerns,
        batch_size=batch_size,
        pooling=pooling,
        pool_sizes=pool_sizes,
        pool_strides=pool_strides,
        activation=activation_name(activation),
        normalisation=normalisation,
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
    # What stochastic pooling samples by; a run that is resumed continues it.
    training_step = pytensor.shared(np.int64(run.iteration))
    layers = build_lenet(
        rng,
        x,
        batch_size,
        nkerns,
        pooling=pooling,
        pool_sizes=pool_sizes,
        pool_strides=pool_strides,
        activation=activation,
        normalisation=normalisation,
        training_step=training_step,
    )
    layer0, layer1, layer2, layer3 = layers.values()
    cost = layer3.negative_log_likelihood(y)

    # Nothing is sampled in testing. From below upwards, because each replacement builds on the one before.
    in_testing = {
        layer.output: layer.test_output
        for layer in (layer0, layer1)
        if layer.test_output is not layer.output
    }
    batch = slice(index * batch_size, (index + 1) * batch_size)
    test_model = pytensor.function(
        [index],
        layer3.errors(y),
        givens={x: test_set_x[batch], y: test_set_y[batch]} | in_testing,
    )
    validate_model = pytensor.function(
        [index],
        layer3.errors(y),
        givens={x: valid_set_x[batch], y: valid_set_y[batch]} | in_testing,
    )
    params = layer3.params + layer2.params + layer1.params + layer0.params
    grads = pytensor.grad(cost, params)
    updates = [(param, param - learning_rate * grad) for param, grad in zip(params, grads, strict=True)]
    if in_testing:
        updates.append((training_step, training_step + 1))
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
    print(f"The code for file lenet_poolings.py ran for {result.seconds / 60:.2f}m", file=stderr)
    return result


def check_choices(pooling, activation, normalisation):
    """Raise ValueError unless `LeNetPoolingLayer` takes these."""
    check_choice("pooling", pooling, POOLINGS)
    check_activation(activation)
    if normalisation is not None:
        check_choice("normalisation", normalisation, NORMALISATIONS)


def pooled_sides(pool_sizes, pool_strides):
    """Return the sides of the tutorial's LeNet's maps after each of its two poolings, a list of int.

    Raises
    ------
    ValueError
        If the windows do not fit.
    """
    check_positive_ints("pool_sizes", pool_sizes, 2, (2, 2))
    check_positive_ints("pool_strides", pool_strides, 2, (2, 2))
    sides, side = [], IMAGE_SIDE
    for layer, (size, stride) in enumerate(zip(pool_sizes, pool_strides, strict=True)):
        check_no_gaps("pool_strides", tuple(pool_strides), stride, f"the windows of layer {layer}", size)
        convolved = side - 5 + 1
        if convolved < size:
            raise ValueError(
                f"pool_sizes={tuple(pool_sizes)} with pool_strides={tuple(pool_strides)} do not fit: the 5x5 "
                f"filters of layer {layer} leave {max(convolved, 0)} rows of {side}, too few for windows of "
                f"{size}x{size}; use smaller windows or strides"
            )
        side = pool_output_length(convolved, size, stride, 0, ignore_border=True)
        sides.append(side)
    return sides


page = Page(
    train_lenet_poolings,
    "LeNet with another pooling on MNIST",
    names=("LeNetPoolingLayer", "train_lenet_poolings"),
    # The tutorial's, with max-pooling.
    published={"validation error": 0.91, "test error": 0.92, "iteration": 17800},
    minibatches=(100, 20, 20),
    build=build_lenet,
    units={"nkerns": ("layer0", "layer1"), "n_hidden": "layer2"},
    choices=("pooling", "pool_sizes", "pool_strides", "activation", "normalisation"),
    by_name={"activation": ACTIVATIONS},
)
experiment = page.experiment


if __name__ == "__main__":
    command_line.run(page, __doc__)
