import numpy as np
import pytensor
import pytest
from scipy.signal import convolve2d

from deeplearning_tutorial import models
from deeplearning_tutorial.checkpoint import Checkpoint, write_checkpoint
from deeplearning_tutorial.models import ARCHITECTURES, model_of, read_model
from deeplearning_tutorial.parameters import save_parameters
from deeplearning_tutorial.results import TrainingResult, Validation

UNITS = {"logistic_sgd": (10,), "mlp": (7, 10), "convolutional_mlp": (2, 3, 5, 10)}


def parameters_of(script, dtype="float32", seed=1):
    rng = np.random.default_rng(seed)
    shapes = ARCHITECTURES[script].shapes(*UNITS[script])
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
    if script == "mlp":
        below = np.tanh(below @ values["hiddenLayer.W"] + values["hiddenLayer.b"])
    W, b = list(values.values())[-2:]
    return below @ W + b


def pooled(maps, W, b):
    convolved = [sum(convolve2d(*pair, "valid") for pair in zip(maps, filters, strict=True)) for filters in W]
    _, rows, cols = np.shape(convolved)
    windows = np.reshape(convolved, (len(W), rows // 2, 2, cols // 2, 2))
    return np.tanh(windows.max(axis=(2, 4)) + b[:, None, None])


@pytest.mark.parametrize("dtype, floatX, rtol", [("float32", "float32", 1e-4), ("float64", "float64", 1e-10)])
@pytest.mark.parametrize("script", ARCHITECTURES)
def test_a_model_gives_the_probabilities_of_plain_numpy_in_the_files_precision(
    tmp_path, uncompiled, sample, script, dtype, floatX, rtol
):
    parameters = parameters_of(script, dtype)
    save_parameters(tmp_path / "m.npz", parameters)
    model = read_model(tmp_path / "m.npz")
    assert (model.script, model.floatX, model.arguments) == (script, floatX, {})
    assert tuple(model.units) == UNITS[script]
    # More than a minibatch, and not a whole number of them.
    images = sample[2][0][:503] if script != "convolutional_mlp" else sample[2][0][:3]
    found = model.probabilities(images)
    z = np.exp(scores(script, parameters, images))
    np.testing.assert_allclose(found, z / z.sum(axis=1, keepdims=True), rtol=rtol)
    assert found.dtype == floatX


def test_no_images_have_no_probabilities(uncompiled):
    model = model_of("logistic_sgd", parameters_of("logistic_sgd"))
    assert model.probabilities(np.empty((0, 784))).shape == (0, 10)


@pytest.mark.parametrize("shape", [(784,), (2, 28, 28), (3, 783)])
def test_images_of_another_shape_are_refused(shape, no_compiling):
    model = model_of("logistic_sgd", parameters_of("logistic_sgd"))
    with pytest.raises(ValueError, match=r"images has shape .*; use \(n, 784\)"):
        model.probabilities(np.zeros(shape))


def test_what_the_file_says_about_itself_is_kept(tmp_path):
    about = {"script": "mlp", "arguments": {"n_hidden": 7, "learning_rate": 0.01}}
    save_parameters(tmp_path / "m.npz", parameters_of("mlp"), about=about)
    model = read_model(tmp_path / "m.npz")
    assert (model.script, model.arguments) == ("mlp", about["arguments"])


def test_of_a_checkpoint_the_best_model_is_taken(tmp_path):
    present, best = parameters_of("mlp", seed=1), parameters_of("mlp", seed=2)
    looks = [Validation(1, 5, 5, 2.0, 0.25, 0.5)]
    result = TrainingResult(history=looks, best_parameters=best, minibatches=(5, 2, 1))
    checkpoint = Checkpoint("mlp", {"n_hidden": 7}, "data", 5, 10, present, result)
    write_checkpoint(tmp_path / "run.npz", checkpoint)
    model = read_model(tmp_path / "run.npz")
    assert (model.script, model.arguments) == ("mlp", {"n_hidden": 7})
    np.testing.assert_array_equal(model.parameters["hiddenLayer.W"], best["hiddenLayer.W"])


def refused(path):
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
    ],
)
def test_shapes_that_do_not_fit_together_are_refused_by_name(tmp_path, no_compiling, script, name, shape):
    save_parameters(tmp_path / "m.npz", parameters_of(script) | {name: np.zeros(shape, "float32")})
    message = refused(tmp_path / "m.npz")
    assert "does not fit: " in message and " of shape " in message
    assert "it has to be floating point of shape" in message and "train anew" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, value):
    parameters = parameters_of("mlp")
    parameters["hiddenLayer.W"][3, 2] = value
    save_parameters(tmp_path / "m.npz", parameters)
    assert "hiddenLayer.W holds values that are not finite; train anew" in refused(tmp_path / "m.npz")


@pytest.mark.parametrize("dtype", ["int64", "complex64", "bool"])
def test_values_that_are_no_floats_are_refused(tmp_path, dtype):
    save_parameters(tmp_path / "m.npz", parameters_of("logistic_sgd", dtype))
    assert f"classifier.W is {dtype} of shape (784, 10)" in refused(tmp_path / "m.npz")


def test_names_of_no_scripts_model_are_listed(tmp_path):
    save_parameters(tmp_path / "m.npz", parameters_of("mlp") | {"top.W": np.zeros(3)})
    message = refused(tmp_path / "m.npz")
    assert "it holds hiddenLayer.W, " in message and "top.W, which are the parameters of none of" in message
    np.savez(tmp_path / "m.npz")
    assert "it holds nothing" in refused(tmp_path / "m.npz")


@pytest.mark.parametrize("script", ["tune", 7, ["mlp"], {"mlp": 1}])
def test_a_script_that_is_not_known_is_named(tmp_path, script):
    save_parameters(tmp_path / "m.npz", parameters_of("mlp"), about={"script": script})
    assert "it is a model of the script" in refused(tmp_path / "m.npz")


def test_another_scripts_names_are_refused(tmp_path):
    save_parameters(tmp_path / "m.npz", parameters_of("mlp"), about={"script": "logistic_sgd"})
    assert "a model of logistic_sgd has classifier.W, classifier.b" in refused(tmp_path / "m.npz")


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "m.npz").write_bytes(b"no archive")
    assert "is not a saved model" in refused(tmp_path / "m.npz")
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "absent.npz")


@pytest.mark.parametrize("script", ARCHITECTURES)
def test_the_shapes_are_those_of_the_layers_that_are_built(script):
    architecture = ARCHITECTURES[script]
    x = pytensor.tensor.matrix("x", shape=(models.BATCH_SIZE, 784))
    layers = architecture.build(np.random.RandomState(0), x, *UNITS[script])
    assert tuple(layers) == architecture.layers
    built = models.named_parameters(**layers)
    assert {name: variable.type.shape for name, variable in built.items()} == architecture.shapes(
        *UNITS[script]
    )
