"""LeNet on MNIST: two convolution and max-pooling layers, a hidden layer, a softmax.

    python -m deeplearning_tutorial.convolutional_mlp                     # the tutorial's run
    python -m deeplearning_tutorial.convolutional_mlp --n-epochs 3        # a first look
    python -m deeplearning_tutorial.convolutional_mlp --nkerns 6 16 --batch-size 100
    python -m deeplearning_tutorial.convolutional_mlp --pooling stochastic --activation relu

Like the original it simplifies LeNet-5 (LeCun et al., 1998): max-pooling without trainable coefficients
instead of averages, every feature map connected to all maps below, a softmax instead of RBF units.
Ported from the deep learning tutorial, "Convolutional Neural Networks (LeNet)".
"""

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
from deeplearning_tutorial.datasets import check_mnist
from deeplearning_tutorial.early_stopping import train_with_patience
from deeplearning_tutorial.experiments import experiment_of
from deeplearning_tutorial.lenet5_layers import ACTIVATIONS
from deeplearning_tutorial.lenet_poolings import NORMALISATIONS, check_choices, check_layer, pooled_sides
from deeplearning_tutorial.logistic_sgd import LogisticRegression, load_data
from deeplearning_tutorial.mlp import HiddenLayer
from deeplearning_tutorial.nnet import (
    conv2d,
    deformation_constrained_pool,
    stochastic_pool,
    uniform_numbers,
)
from deeplearning_tutorial.nnet.poolings import POOLINGS_BY_NAME
from deeplearning_tutorial.nnet.shape_hint import lengths_of
from deeplearning_tutorial.parameters import named_parameters
from deeplearning_tutorial.streams import stderr, stdout
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
    activation : {'tanh', 'relu', 'sigmoid', 'scaled_tanh'}
        Stochastic pooling is meant for relu: it samples positive activations only.
    normalisation : {'contrast', 'response'}, optional
        Normalise the activations before pooling: see `local_contrast_normalisation` and
        `local_response_normalisation`.
    training_step : TensorVariable, optional
        Integer scalar that stochastic pooling samples by, another time for each step. Without it there is no
        sampling.

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
        ``output`` itself; but where that is sampled, what takes its place in testing, by ``givens``.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, or a choice is unknown.

    Notes
    -----
    ``W`` is uniform in ``+-sqrt(6 / (fan_in + fan_out))`` with ``fan_in = feature maps below * filter rows
    * filter cols`` and ``fan_out = filters * filter rows * filter cols // (pool rows * pool cols)``; ``b``
    starts at zero, and so does ``deformation``, where the pooling is max-pooling.

    The maximum is taken before bias and activation, which gives the same as after them, with fewer sums. With
    'deformation', too, unless there is normalisation: there the filters' responses are the part detection
    maps.
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
        activation="tanh",
        normalisation=None,
        training_step=None,
    ):
        check_layer(filter_shape, image_shape, poolsize, stride)
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
            return ACTIVATIONS[activation](maps + self.b.dimshuffle("x", 0, "x", "x"))

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


def evaluate_lenet5(
    learning_rate=0.1,
    n_epochs=200,
    dataset="mnist.pkl.gz",
    nkerns=(20, 50),
    batch_size=500,
    *,
    pooling="max",
    pool_sizes=(2, 2),
    pool_strides=(2, 2),
    activation="tanh",
    normalisation=None,
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
    pooling : {'max', 'average', 'sum', 'l2', 'stochastic', 'deformation'}
        What both layers take of a window: max, average, sum, l2, stochastic or deformation.
    pool_sizes : tuple of int
        Rows, and columns, of the first layer's windows and of the second's.
    pool_strides : tuple of int
        From one window to the next in each layer; windows overlap where it is less than their size.
    activation : {'tanh', 'relu', 'sigmoid', 'scaled_tanh'}
        Of the convolutions: tanh, relu, sigmoid or scaled_tanh.
    normalisation : {'contrast', 'response'}, optional
        Local contrast or local response normalisation, between activation and pooling.
    seed : int
        Seed of the generator that draws the initial weights, and by which stochastic pooling samples.
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
    check_choices(pooling, activation, normalisation)
    # Refuses what does not fit.
    pooled_sides(pool_sizes, pool_strides)
    # All arguments, for they tell one run from another.
    files = TrainingFiles("convolutional_mlp", evaluate_lenet5, **locals())
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

    # What stochastic pooling samples by; a run that is resumed goes on with it.
    training_step = pytensor.shared(np.int64(files.resumed.iteration if files.resumed else 0))
    choices = {
        "pooling": pooling,
        "activation": activation,
        "normalisation": normalisation,
        "training_step": training_step,
    }
    side0, side1 = pooled_sides(pool_sizes, pool_strides)
    # With the defaults 28x28 images become 24x24 by convolution and 12x12 by pooling, then 8x8 and 4x4.
    layer0_input = x.reshape((batch_size, 1, 28, 28))
    layer0 = LeNetConvPoolLayer(
        rng,
        input=layer0_input,
        image_shape=(batch_size, 1, 28, 28),
        filter_shape=(nkerns[0], 1, 5, 5),
        poolsize=(pool_sizes[0], pool_sizes[0]),
        stride=(pool_strides[0], pool_strides[0]),
        **choices,
    )
    layer1 = LeNetConvPoolLayer(
        rng,
        input=layer0.output,
        image_shape=(batch_size, nkerns[0], side0, side0),
        filter_shape=(nkerns[1], nkerns[0], 5, 5),
        poolsize=(pool_sizes[1], pool_sizes[1]),
        stride=(pool_strides[1], pool_strides[1]),
        **choices,
    )
    n_in = nkerns[1] * side1 * side1
    layer2_input = layer1.output.reshape((batch_size, n_in))
    layer2 = HiddenLayer(rng, input=layer2_input, n_in=n_in, n_out=500, activation=pt.tanh)
    layer3 = LogisticRegression(input=layer2.output, n_in=500, n_out=10)
    cost = layer3.negative_log_likelihood(y)

    # Nothing is sampled in testing. From below upwards, for each replacement is built on those before.
    in_testing = {
        layer.output: layer.test_output
        for layer in (layer0, layer1)
        if layer.test_output is not layer.output
    }
    test_model = pytensor.function(
        [index],
        layer3.errors(y),
        givens={
            x: test_set_x[index * batch_size : (index + 1) * batch_size],
            y: test_set_y[index * batch_size : (index + 1) * batch_size],
            **in_testing,
        },
    )
    validate_model = pytensor.function(
        [index],
        layer3.errors(y),
        givens={
            x: valid_set_x[index * batch_size : (index + 1) * batch_size],
            y: valid_set_y[index * batch_size : (index + 1) * batch_size],
            **in_testing,
        },
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
        parameters=named_parameters(layer0=layer0, layer1=layer1, layer2=layer2, layer3=layer3),
        announce_every=100,
        files=files,
        progress=progress,
        channel=channel,
    )
    print("Optimization complete.", file=stdout)
    print(result.summary(), file=stdout)
    print(f"The code for file convolutional_mlp.py ran for {result.seconds / 60:.2f}m", file=stderr)
    return result


experiment = experiment_of(evaluate_lenet5)


if __name__ == "__main__":
    command_line.run(evaluate_lenet5, __doc__, PUBLISHED, minibatches=(100, 20, 20))
