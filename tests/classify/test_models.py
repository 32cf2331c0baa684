import numpy as np
import pytensor
import pytest
from scipy.signal import convolve2d
from small_networks import SIZES, shapes_of

from deeplearning_tutorial.classify.models import model_of, read_model
from deeplearning_tutorial.training.checkpoint import Checkpoint, write_checkpoint
from deeplearning_tutorial.training.parameters import save_parameters
from deeplearning_tutorial.training.results import TrainingResult, Validation


def parameters_of(script, dtype="float32", seed=1):
    rng = np.random.default_rng(seed)
    shapes = shapes_of(script)
    return {name: rng.normal(0, 0.3, shape).astype(dtype) for name, shape in shapes.items()}


@pytest.fixture
def uncompiled():
    """Evaluate graphs Op by Op in NumPy."""
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        yield


def scores(script, parameters, images):
    """The softmax's input, in NumPy and SciPy."""
    values = {name: value.astype("float64") for name, value in parameters.items()}
    below = images.astype("float64")
    if script == "convolutional_mlp":
        below = below.reshape(-1, 1, 28, 28)
        for layer in ("layer0", "layer1"):
            below = np.array([pooled(maps, values[f"{layer}.W"], values[f"{layer}.b"]) for maps in below])
        below = np.tanh(below.reshape(len(below), -1) @ values["layer2.W"] + values["layer2.b"])
    if script == "lenet5":
        below = np.pad(below.reshape(-1, 1, 28, 28), ((0, 0), (0, 0), (2, 2), (2, 2)))
        for layer, side in (("C1", 2), ("C3", 2), ("C5", 1)):
            parameters = values[f"{layer}.W"], values[f"{layer}.b"]
            below = np.array([pooled(maps, *parameters, side) for maps in below])
        below = np.tanh(below.reshape(len(below), -1) @ values["F6.W"] + values["F6.b"])
    if script == "mlp":
        below = np.tanh(below @ values["hiddenLayer.W"] + values["hiddenLayer.b"])
    W, b = list(values.values())[-2:]
    return below @ W + b


def pooled(maps, W, b, side=2):
    convolved = [sum(convolve2d(*pair, "valid") for pair in zip(maps, filters, strict=True)) for filters in W]
    _, rows, cols = np.shape(convolved)
    windows = np.reshape(convolved, (len(W), rows // side, side, cols // side, side))
    return np.tanh(windows.max(axis=(2, 4)) + b[:, None, None])


@pytest.mark.parametrize("dtype, floatX, rtol", [("float32", "float32", 1e-4), ("float64", "float64", 1e-10)])
@pytest.mark.parametrize("script", SIZES)
def test_probabilities_equal_numpys_in_the_precision_of_the_file(
    tmp_path, uncompiled, sample, script, dtype, floatX, rtol
):
    parameters = parameters_of(script, dtype)
    save_parameters(tmp_path / "m.npz", parameters)
    model = read_model(tmp_path / "m.npz")
    assert (model.script, model.floatX, model.arguments) == (script, floatX, {})
    # More than one minibatch, but not a whole number of minibatches.
    images = sample[2][0][:503] if script in ("logistic_sgd", "mlp") else sample[2][0][:3]
    found = model.probabilities(images)
    z = np.exp(scores(script, parameters, images))
    np.testing.assert_allclose(found, z / z.sum(axis=1, keepdims=True), rtol=rtol)
    assert found.dtype == floatX


def test_zero_images_give_zero_probabilities(uncompiled):
    model = model_of("logistic_sgd", parameters_of("logistic_sgd"))
    assert model.probabilities(np.empty((0, 784))).shape == (0, 10)


@pytest.mark.parametrize("shape", [(784,), (2, 28, 28), (3, 783)])
def test_images_of_another_shape_are_rejected(shape, no_compiling):
    model = model_of("logistic_sgd", parameters_of("logistic_sgd"))
    with pytest.raises(ValueError, match=r"images has shape .*; use \(n, 784\)"):
        model.probabilities(np.zeros(shape))


def test_script_and_arguments_are_read_from_the_file(tmp_path):
    about = {"script": "mlp", "arguments": {"n_hidden": 7, "learning_rate": 0.01}}
    save_parameters(tmp_path / "m.npz", parameters_of("mlp"), metadata=about)
    model = read_model(tmp_path / "m.npz")
    assert (model.script, model.arguments) == ("mlp", about["arguments"])


def test_the_best_model_of_a_checkpoint_is_read(tmp_path):
    current, best = parameters_of("mlp", seed=1), parameters_of("mlp", seed=2)
    history = [Validation(1, 5, 5, 2.0, 0.25, 0.5)]
    result = TrainingResult(history=history, best_parameters=best, minibatches=(5, 2, 1))
    checkpoint = Checkpoint("mlp", {"n_hidden": 7}, "data", 5, 10, current, result)
    write_checkpoint(tmp_path / "run.npz", checkpoint)
    model = read_model(tmp_path / "run.npz")
    assert (model.script, model.arguments) == ("mlp", {"n_hidden": 7})
    np.testing.assert_array_equal(model.parameters["hiddenLayer.W"], best["hiddenLayer.W"])


def rejection(path):
    with pytest.raises(ValueError) as caught:
        read_model(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "script, name, shape",
    [
        ("logistic_sgd", "classifier.W", (10, 784)),
        ("logistic_sgd", "classifier.b", (11,)),
        ("mlp", "hiddenLayer.b", (8,)),
        ("mlp", "hiddenLayer.b", (0,)),
        ("mlp", "hiddenLayer.b", (1, 7)),
        ("mlp", "logRegressionLayer.W", (7, 11)),
        ("convolutional_mlp", "layer1.W", (3, 1, 5, 5)),
        ("convolutional_mlp", "layer0.W", (2, 1, 5)),
        ("convolutional_mlp", "layer2.W", (3 * 5 * 5, 5)),
        ("convolutional_mlp", "layer2.W", (0, 10**9)),
        ("lenet5", "C5.W", (4, 3, 4, 4)),
        ("lenet5", "F6.b", (6,)),
    ],
)
def test_shapes_that_do_not_match_are_rejected_by_name(tmp_path, no_compiling, script, name, shape):
    save_parameters(tmp_path / "m.npz", parameters_of(script) | {name: np.zeros(shape, "float32")})
    message = rejection(tmp_path / "m.npz")
    assert "does not fit: " in message and " of shape " in message
    assert "it must be floating point of shape" in message and "train again" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_rejected_by_name(tmp_path, value):
    parameters = parameters_of("mlp")
    parameters["hiddenLayer.W"][3, 2] = value
    save_parameters(tmp_path / "m.npz", parameters)
    assert "hiddenLayer.W has values that are not finite; train again" in rejection(tmp_path / "m.npz")


@pytest.mark.parametrize("dtype", ["int64", "complex64", "bool"])
def test_values_that_are_not_floats_are_rejected(tmp_path, dtype):
    save_parameters(tmp_path / "m.npz", parameters_of("logistic_sgd", dtype))
    assert f"classifier.W is {dtype} of shape (784, 10)" in rejection(tmp_path / "m.npz")


def test_unknown_parameter_names_are_listed(tmp_path):
    save_parameters(tmp_path / "m.npz", parameters_of("mlp") | {"top.W": np.zeros(3)})
    message = rejection(tmp_path / "m.npz")
    assert "it holds hiddenLayer.W, " in message
    assert "top.W, which are not the parameters of any of" in message
    np.savez(tmp_path / "m.npz")
    assert "it holds nothing" in rejection(tmp_path / "m.npz")


@pytest.mark.parametrize("script", ["tune", 7, ["mlp"], {"mlp": 1}])
def test_an_unknown_script_is_rejected_by_name(tmp_path, script):
    save_parameters(tmp_path / "m.npz", parameters_of("mlp"), metadata={"script": script})
    assert "it is a model of the script" in rejection(tmp_path / "m.npz")


def test_parameter_names_of_another_script_are_rejected(tmp_path):
    save_parameters(tmp_path / "m.npz", parameters_of("mlp"), metadata={"script": "logistic_sgd"})
    assert "a model of logistic_sgd has classifier.W, classifier.b" in rejection(tmp_path / "m.npz")


def test_a_file_that_is_not_an_archive_is_rejected(tmp_path):
    (tmp_path / "m.npz").write_bytes(b"no archive")
    assert "is not a saved model" in rejection(tmp_path / "m.npz")
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "absent.npz")


SETTINGS = {"filter_sizes": [3, 4, 5], "pooling": "sum", "activation": "relu", "learning_rate": 0.5}


def lenet5_file(path, arguments):
    shapes = shapes_of("lenet5", filter_sizes=(3, 4, 5))
    values = {name: np.full(shape, 0.01, "float32") for name, shape in shapes.items()}
    save_parameters(path, values, metadata={"script": "lenet5", "arguments": arguments})
    return path


def test_a_lenet5_is_built_with_the_settings_in_its_file(tmp_path, uncompiled):
    model = read_model(lenet5_file(tmp_path / "m.npz", SETTINGS))
    layers = model.layers(pytensor.tensor.matrix("x", shape=(1, 784)))
    shapes = [layers[name].output.type.shape[1:] for name in ("C1", "S2", "C3", "S4", "C5", "F6")]
    assert shapes == [(2, 30, 30), (2, 15, 15), (3, 12, 12), (3, 6, 6), (4, 2, 2), (5,)]
    # White images: 9 weights per unit, then the sum of 4, and so on; relu keeps positive values.
    c1 = 9 * 0.01 + 0.01
    c3 = 2 * 16 * 0.01 * 4 * c1 + 0.01
    output = layers["S4"].output.eval({layers["C1"].input: np.ones((1, 1, 32, 32), "float32")})
    np.testing.assert_allclose(output, np.full((1, 3, 6, 6), 4 * c3), rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, r"C1.W is float32 of shape \(2, 1, 3, 3\); .* of shape \(2, 1, 5, 5\)"),
        (SETTINGS | {"pooling": "1998"}, "a model of lenet5 has C1.W, C1.b, S2.coefficient, "),
        (SETTINGS | {"pooling": ["max"]}, r"pooling=\['max'\] is unknown"),
        (SETTINGS | {"filter_sizes": [3, 4, 10**30]}, "the filters of C5 are 1000"),
        (SETTINGS | {"filter_sizes": "345"}, "filter_sizes='345' is not a tuple of 3 integers"),
        (SETTINGS | {"pool_strides": [2, 10**30]}, "would leave gaps between them"),
        (SETTINGS | {"connection": "1998"}, "does not fit connection='1998'"),
        ([3, 4, 5], r"its arguments are \[3, 4, 5\]; use a file that a script saved"),
    ],
)
def test_settings_that_do_not_fit_are_rejected_by_name(tmp_path, no_compiling, arguments, message):
    with pytest.raises(ValueError, match=f"m.npz does not fit: .*{message}"):
        read_model(lenet5_file(tmp_path / "m.npz", arguments))
