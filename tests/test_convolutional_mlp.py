import os
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from calling import with_run
from numpy.lib.stride_tricks import sliding_window_view
from pytensor.compile.mode import Mode
from scipy.signal import convolve

from deeplearning_tutorial import convolutional_mlp
from deeplearning_tutorial.convolutional_mlp import LeNetConvPoolLayer, evaluate_lenet5
from deeplearning_tutorial.datasets import sample_path
from deeplearning_tutorial.lenet_poolings import LeNetPoolingLayer
from deeplearning_tutorial.training.parameters import load_parameters, named_parameters

# Small graphs are evaluated Op by Op; the run on the sample compiles as a user's does.
PLAIN = Mode(linker="py", optimizer=None)
NAMES = [f"layer{n}.{name}" for n in range(4) for name in "Wb"]
FILTER_SHAPE, IMAGE_SHAPE = (3, 2, 3, 5), (4, 2, 9, 12)


def true_convolution(x, W):
    """Sum over the maps below of convolutions with flipped filters, without padding."""
    windows = sliding_window_view(x, W.shape[2:], axis=(2, 3))
    return np.moveaxis(np.tensordot(windows, W[:, :, ::-1, ::-1], ((1, 4, 5), (1, 2, 3))), -1, 1)


def scipys_layer(x, W, b, poolsize):
    """``tanh(max-pooling of the convolution + b)``, image by image with SciPy."""
    maps = np.array([[convolve(image, filters[::-1], "valid")[0] for filters in W] for image in x])
    (window_rows, window_cols), (rows, cols) = poolsize, maps.shape[2:]
    pooled = np.empty((*maps.shape[:2], rows // window_rows, cols // window_cols))
    for row, col in np.ndindex(*pooled.shape[2:]):
        window = maps[
            :, :, row * window_rows : (row + 1) * window_rows, col * window_cols : (col + 1) * window_cols
        ]
        pooled[:, :, row, col] = window.max(axis=(2, 3))
    return np.tanh(pooled + b[:, np.newaxis, np.newaxis])


class Reference:
    """LeNet in NumPy, in float64; every maximum of a pooling window gets the window's whole gradient."""

    def __init__(self, nkerns, drawn_as, seed=23455):
        rng = np.random.RandomState(seed)
        n0, n1 = nkerns
        # fan_in + fan_out of the three layers; the softmax starts at zero.
        fans = (25 + n0 * 25 // 4, n0 * 25 + n1 * 25 // 4, n1 * 16 + 500)
        shapes = ((n0, 1, 5, 5), (n1, n0, 5, 5), (n1 * 16, 500))
        bounds = [np.sqrt(6 / n) for n in fans]
        W = [rng.uniform(-bound, bound, shape) for bound, shape in zip(bounds, shapes, strict=True)]
        self.W = [w.astype(drawn_as).astype("float64") for w in W] + [np.zeros((500, 10))]
        self.b = [np.zeros(n) for n in (n0, n1, 500, 10)]

    def parameters(self):
        layers = zip(self.W, self.b, strict=True)
        return dict(zip(NAMES, [p.copy() for layer in layers for p in layer], strict=True))

    def forward(self, images):
        self.outputs, self.maximal = [images.reshape(-1, 1, 28, 28)], []
        for W, b in zip(self.W[:2], self.b[:2], strict=True):
            maps = true_convolution(self.outputs[-1], W)
            batch, n, rows, cols = maps.shape
            windows = maps.reshape(batch, n, rows // 2, 2, cols // 2, 2)
            maxima = windows.max(axis=(3, 5), keepdims=True)
            self.maximal.append(windows == maxima)
            self.outputs.append(np.tanh(maxima[:, :, :, 0, :, 0] + b[:, np.newaxis, np.newaxis]))
        self.outputs.append(np.tanh(self.outputs[-1].reshape(len(images), -1) @ self.W[2] + self.b[2]))
        return self.outputs[-1] @ self.W[3] + self.b[3]

    def step(self, x, y, learning_rate, softmax_cost):
        cost, gradient = softmax_cost(self.forward(x), y)
        W_gradients, b_gradients = [], []
        for n in (3, 2):
            below = self.outputs[n].reshape(len(x), -1)
            W_gradients.append(below.T @ gradient)
            b_gradients.append(gradient.sum(axis=0))
            gradient = gradient @ self.W[n].T * (1 - below**2)
        for n in (1, 0):
            gradient = gradient.reshape(self.outputs[n + 1].shape)
            b_gradients.append(gradient.sum(axis=(0, 2, 3)))
            spread = self.maximal[n] * gradient[:, :, :, np.newaxis, :, np.newaxis]
            batch, n_maps, rows, _, cols, _ = spread.shape
            maps = spread.reshape(batch, n_maps, 2 * rows, 2 * cols)
            windows = sliding_window_view(self.outputs[n], maps.shape[2:], axis=(2, 3))
            flipped = np.tensordot(maps, windows, ((0, 2, 3), (0, 4, 5)))
            W_gradients.append(flipped[:, :, ::-1, ::-1])
            if n == 1:
                # The correlation with the filters, padded all around: the transposed convolution.
                padded = np.pad(maps, ((0, 0), (0, 0), (4, 4), (4, 4)))
                turned = self.W[1].transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
                gradient = true_convolution(padded, turned) * (1 - self.outputs[1] ** 2)
        for p, g in zip(self.W + self.b, W_gradients[::-1] + b_gradients[::-1], strict=True):
            p -= learning_rate * g
        return cost

    def epoch(self, x, y, batch_size, learning_rate, softmax_cost):
        batches = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
        return [self.step(x[batch], y[batch], learning_rate, softmax_cost) for batch in batches]


@pytest.fixture(scope="module")
def run(record):
    """One epoch on the sample with the tutorial's defaults."""
    return record(convolutional_mlp, evaluate_lenet5, n_epochs=1, dataset=sample_path())


@pytest.fixture(scope="module")
def reference(sample, softmax_cost, error_of):
    model = Reference((20, 50), "float32")
    initial = model.parameters()
    costs = model.epoch(*sample[0], 500, 0.1, softmax_cost)
    errors = [error_of(model.forward(x), y) for x, y in sample[1:]]
    return SimpleNamespace(initial=initial, costs=costs, parameters=model.parameters(), errors=errors)


def expected_lines(reference):
    validation, test = (100 * error for error in reference.errors)
    return [
        "... loading data",
        "... building the model",
        "... training",
        "training @ iter =  0",
        f"epoch 1, minibatch 6/6, validation error {validation:f} %",
        f"     epoch 1, minibatch 6/6, test error of best model {test:f} %",
        "Optimization complete.",
        f"Best validation score of {validation:f} % obtained at iteration 6, "
        f"with test performance {test:f} %",
    ]


@pytest.mark.parametrize("floatX", ["float32", "float64"])
@pytest.mark.parametrize("poolsize, fan_out", [((2, 2), 11), ((3, 2), 7), ((1, 1), 45)])
def test_filters_are_the_first_draws_between_bounds_with_an_integer_division(floatX, poolsize, fan_out):
    with pytensor.config.change_flags(floatX=floatX):
        x = pt.tensor4("x")
        layer = LeNetConvPoolLayer(np.random.RandomState(5), x, FILTER_SHAPE, IMAGE_SHAPE, poolsize)
    # 2 * 3 * 5 inputs; 3 * 3 * 5 outputs over 4, 6 or 1 elements of a window.
    bound = np.sqrt(6 / (30 + fan_out))
    drawn = np.random.RandomState(5).uniform(-bound, bound, FILTER_SHAPE).astype(floatX)
    np.testing.assert_array_equal(layer.W.get_value(), drawn)
    np.testing.assert_array_equal(layer.b.get_value(), np.zeros(3))
    assert layer.W.type.dtype == layer.b.type.dtype == floatX
    assert layer.params == [layer.W, layer.b] and layer.input is x
    assert [(param.name, param.type.shape) for param in layer.params] == [("W", FILTER_SHAPE), ("b", (3,))]


# The convolution leaves 7 rows and 8 columns: the windows fit, leave a rest, or are one element.
@pytest.mark.parametrize(
    "poolsize, shape", [((2, 2), (3, 4)), ((3, 2), (2, 4)), ((7, 3), (1, 2)), ((1, 1), (7, 8))]
)
def test_the_output_is_that_of_scipys_convolution(poolsize, shape):
    x = pt.tensor4("x", dtype="float64")
    layer = LeNetConvPoolLayer(np.random.RandomState(5), x, FILTER_SHAPE, IMAGE_SHAPE, poolsize)
    rng = np.random.default_rng(6)
    value, b = rng.normal(size=IMAGE_SHAPE), rng.normal(size=3).astype(layer.b.dtype)
    layer.b.set_value(b)
    output = pytensor.function([x], layer.output, mode=PLAIN)(value)
    assert output.shape == layer.output.type.shape == (4, 3, *shape)
    np.testing.assert_allclose(output, scipys_layer(value, layer.W.get_value(), b, poolsize), rtol=1e-6)


def test_the_pooling_window_is_two_by_two_unless_given():
    layer = LeNetConvPoolLayer(np.random.RandomState(5), pt.tensor4("x"), FILTER_SHAPE, IMAGE_SHAPE)
    assert layer.output.type.shape == (4, 3, 3, 4)


def test_shapes_may_be_lists_and_ints_of_numpy():
    layer = LeNetConvPoolLayer(
        np.random.RandomState(5), pt.tensor4("x"), list(FILTER_SHAPE), list(np.array(IMAGE_SHAPE)), [2, 2]
    )
    assert layer.output.type.shape == (4, 3, 3, 4)


stochastic = partial(LeNetPoolingLayer, pooling="stochastic", training_step=pt.constant(3))


@pytest.mark.parametrize("unknown", [(0,), (0, 1), (2, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("layer", [LeNetConvPoolLayer, stochastic], ids=["max", "stochastic"])
def test_lengths_of_the_images_may_be_unknown(unknown, layer):
    known, hint = (
        tuple(None if axis in places else n for axis, n in enumerate(IMAGE_SHAPE)) for places in ((), unknown)
    )
    x = pt.tensor4("x", dtype="float64")
    outputs = [
        layer(np.random.RandomState(5), x, FILTER_SHAPE, shape).output for shape in (known, hint)
    ]
    assert outputs[1].type.shape[0] == hint[0]
    images = np.random.default_rng(6).normal(size=IMAGE_SHAPE)
    results = pytensor.function([x], outputs, mode=PLAIN)(images)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"image_shape": (500, 2, 24 / 2, 12)}, r"\(500, 2, 12.0, 12\) .* 24 / 2, is 24 // 2 in Python 3"),
        ({"filter_shape": (3, None, 3, 5)}, r"filter_shape=\(3, None, 3, 5\) holds something other"),
        ({"image_shape": (None, 3, 9, 12)}, "takes 2 feature maps, .*has 3; make"),
        ({"image_shape": (None, 2, None, 4)}, r"has 4 cols, fewer than the 5 of"),
        ({"filter_shape": (3, 2, 3)}, r"filter_shape=\(3, 2, 3\) is not a tuple of 4 integers; use"),
        ({"filter_shape": (3, 2, 0, 5)}, r"filter_shape=\(3, 2, 0, 5\) holds something other than positive"),
        ({"image_shape": 28}, "image_shape=28 is not a tuple of 4 integers; use"),
        ({"image_shape": (4, 2, 9.0, 12)}, r"image_shape=\(4, 2, 9.0, 12\) holds something other than"),
        ({"poolsize": 2}, "poolsize=2 is not a tuple of 2 integers; use"),
        ({"poolsize": (2, -2)}, r"poolsize=\(2, -2\) holds something other than positive"),
        (
            {"image_shape": (4, 3, 9, 12)},
            r"filter_shape=\(3, 2, 3, 5\) takes 2 feature maps, image_shape=\(4, 3, 9, 12\) has 3; make",
        ),
        (
            {"image_shape": (4, 2, 2, 12)},
            r"image_shape=\(4, 2, 2, 12\) has 2 rows, fewer than the 3 of filter_shape=\(3, 2, 3, 5\); use",
        ),
        ({"image_shape": (4, 2, 9, 4)}, r"image_shape=\(4, 2, 9, 4\) has 4 cols, fewer than the 5 of"),
        ({"poolsize": (8, 2)}, r"poolsize=\(8, 2\) does not fit: .* leaves 7 rows; use smaller windows"),
        ({"poolsize": (2, 9)}, r"poolsize=\(2, 9\) does not fit: .* leaves 8 cols; use smaller windows"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(arguments, message):
    arguments = {"filter_shape": FILTER_SHAPE, "image_shape": IMAGE_SHAPE} | arguments
    with pytest.raises(ValueError, match=message):
        LeNetConvPoolLayer(np.random.RandomState(5), pt.tensor4("x"), **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"learning_rate": -0.1}, "learning_rate=-0.1 is not a positive finite number; use"),
        ({"learning_rate": None}, "learning_rate=None is not"),
        ({"n_epochs": 0}, "n_epochs=0 is not a positive integer; use"),
        ({"nkerns": (20,)}, r"nkerns=\(20,\) is not a tuple of 2 integers; use e.g. nkerns=\(20, 50\)"),
        ({"nkerns": (20, 50, 60)}, r"nkerns=\(20, 50, 60\) is not"),
        ({"nkerns": 20}, "nkerns=20 is not"),
        ({"nkerns": (20, 0)}, r"nkerns=\(20, 0\) holds something other than positive integers; use"),
        ({"seed": -1}, "seed=-1 is not an integer from 0 to 4294967295; use"),
        ({"checkpoint": "c"}, "checkpoint='c' does not end in .npz"),
        ({"resume": True}, "resume=True needs the file to continue from"),
        ({"batch_size": 0}, "batch_size=0 is not a positive integer; use"),
        ({"save": "model.pt"}, "save='model.pt' does not end in .npz, .*; add the ending"),
    ],
)
def test_bad_arguments_are_refused_by_name_before_any_work(no_work, capsys, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_lenet5(**with_run(arguments))
    assert capsys.readouterr() == ("", "")


def test_a_minibatch_larger_than_a_split_is_refused_before_compiling(no_compiling):
    with pytest.raises(ValueError, match="batch_size=1200 is larger than the validation set of 1000"):
        evaluate_lenet5(batch_size=1200, dataset=sample_path())


def test_training_starts_from_the_draws_of_seed_23455_in_the_order_of_the_layers(run, reference):
    assert list(run.initial) == NAMES
    for name, value in run.initial.items():
        assert value.dtype == "float32"
        np.testing.assert_array_equal(value, reference.initial[name])


def test_every_step_of_an_epoch_is_that_of_plain_numpy(run, reference):
    np.testing.assert_allclose(run.costs, reference.costs, rtol=1e-6)
    assert list(run.result.best_parameters) == NAMES
    for name, value in run.result.best_parameters.items():
        np.testing.assert_allclose(value, reference.parameters[name], atol=1e-6, err_msg=name)


def test_the_result_of_an_epoch(run, reference):
    result = run.result
    assert [result.best_validation_error, result.test_error] == pytest.approx(reference.errors, abs=1e-12)
    assert (result.best_iteration, result.epochs, result.minibatches) == (6, 1, (6, 2, 2))
    [look] = result.history
    assert (look.epoch, look.minibatch, look.iteration) == (1, 6, 6)
    assert look.cost == run.costs[-1] and result.seconds > 0
    assert (look.validation_error, look.test_error) == (result.best_validation_error, result.test_error)


def test_the_lines_of_an_epoch(run, reference):
    assert run.stdout.splitlines() == expected_lines(reference)
    ran_for = f"The code for file convolutional_mlp.py ran for {run.result.seconds / 60:.2f}m\n"
    assert run.stderr == ran_for


@pytest.mark.parametrize("as_module", [False, True])
def test_run_directly_it_trains_saves_and_prints_the_same(run_script, tmp_path, reference, as_module):
    arguments = ("--n-epochs", 1, "--dataset", "mnist_5k.npz", "--save", "m.npz")
    ended = run_script("convolutional_mlp", *arguments, cwd=tmp_path, as_module=as_module)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == expected_lines(reference)
    assert "training: 100%" in ended.stderr
    ran_for = r"^The code for file convolutional_mlp.py ran for \d+\.\d\dm\n\Z"
    assert re.search(ran_for, ended.stderr, re.MULTILINE)
    assert os.listdir(tmp_path) == ["m.npz"]
    with np.load(tmp_path / "m.npz") as file:
        assert file.files == [*NAMES, "about"]
        for name in NAMES:
            assert file[name].dtype == "float32"
            np.testing.assert_allclose(file[name], reference.parameters[name], atol=1e-6, err_msg=name)


def test_every_argument_reaches_the_training_in_float64(run_script, tmp_path, sample, softmax_cost):
    # FAST_COMPILE takes NumPy for every Op, which starts sooner.
    arguments = (
        "--learning-rate 0.2 --n-epochs 1 --nkerns 3 4 --batch-size 250 --dataset mnist_5k.npz "
        "--floatX float64 --seed 77 --save m.npz"
    )
    ended = run_script("convolutional_mlp", *arguments.split(), cwd=tmp_path, flags="mode=FAST_COMPILE")
    assert ended.returncode == 0, ended.stderr
    reference = Reference((3, 4), "float64", seed=77)
    reference.epoch(*sample[0], 250, 0.2, softmax_cost)
    with np.load(tmp_path / "m.npz") as file:
        for name, value in reference.parameters().items():
            assert file[name].dtype == "float64"
            np.testing.assert_allclose(file[name], value, atol=1e-12, err_msg=name)


def test_a_saved_lenet_loads_into_its_layers(tmp_path):
    filters = LeNetConvPoolLayer(np.random.RandomState(5), pt.tensor4("x"), FILTER_SHAPE, IMAGE_SHAPE)
    named = named_parameters(layer0=filters)
    stored = {"layer0.W": np.full(FILTER_SHAPE, 0.5), "layer0.b": np.arange(3.0)}
    np.savez(tmp_path / "m.npz", **stored)
    load_parameters(tmp_path / "m.npz", named)
    np.testing.assert_array_equal(filters.W.get_value(), stored["layer0.W"])
    np.testing.assert_array_equal(filters.b.get_value(), stored["layer0.b"])
    np.savez(tmp_path / "m.npz", **(stored | {"layer0.W": np.zeros((3, 2, 5, 3))}))
    with pytest.raises(ValueError, match=r"layer0.W is float64 of shape \(3, 2, 5, 3\), .* \(3, 2, 3, 5\)"):
        load_parameters(tmp_path / "m.npz", named)
