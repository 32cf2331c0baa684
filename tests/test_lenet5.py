import numpy as np
import pytensor
import pytest

from deeplearning_tutorial import lenet5
from deeplearning_tutorial.checkpoint import read_checkpoint
from deeplearning_tutorial.datasets import sample_path
from deeplearning_tutorial.feature_maps import feature_maps
from deeplearning_tutorial.lenet5 import train_lenet5
from deeplearning_tutorial.lenet5_layers import connections_1998
from deeplearning_tutorial.models import read_model

# Little is left at its default; tanh computes fastest where nothing is compiled.
SMALL = {
    "nkerns": (6, 16, 10),
    "batch_size": 25,
    "n_hidden": 12,
    "learning_rate": 0.3,
    "filter_sizes": (7, 3, 4),
    "pool_sizes": (3, 2),
    "pooling": "1998",
    "connection": "1998",
    "seed": 7,
}
NAMES = ["C1.W", "C1.b", "S2.coefficient", "S2.b", "C3.W", "C3.b", "S4.coefficient", "S4.b"]
NAMES += ["C5.W", "C5.b", "F6.W", "F6.b", "output.W", "output.b"]


@pytest.fixture(scope="module", autouse=True)
def uncompiled():
    """Compute Op by Op in NumPy."""
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lenet5")


@pytest.fixture(scope="module")
def digits(folder):
    """A twentieth of the sample."""
    with np.load(sample_path()) as stored:
        np.savez(folder / "digits.npz", **{name: array[: len(array) // 20] for name, array in stored.items()})
    return folder / "digits.npz"


@pytest.fixture(scope="module")
def run(record, folder, digits):
    """Two epochs without a stop."""
    files = {"save": folder / "m.npz", "checkpoint": folder / "c.npz", "log": folder / "l.csv"}
    return record(lenet5, train_lenet5, n_epochs=2, dataset=digits, **SMALL, **files)


def test_two_epochs_on_the_sample_learn(run):
    result = run.result
    assert (result.epochs, result.minibatches, len(run.costs)) == (2, (6, 2, 2), 12)
    # A tenth for each class at first, since the softmax starts at zero.
    assert run.costs[0] == pytest.approx(np.log(10), rel=1e-6)
    assert result.history[-1].validation_error < 0.8
    lines = run.stdout.splitlines()
    assert lines[:3] == ["... loading data", "... building the model", "... training"]
    assert lines[3].startswith("epoch 1, minibatch 6/6, validation error ")
    assert lines[-1] == result.summary()
    assert run.stderr.startswith("The code for file lenet5.py ran for ")


def test_the_initial_weights_are_the_seeds_and_unconnected_ones_stay_zero(run):
    assert list(run.initial) == list(run.result.best_parameters) == NAMES
    # C1 takes one map with filters of 49 and gives 6 to windows of 9.
    bound = np.sqrt(6 / (49 + 6 * 49 // 9))
    drawn = np.random.RandomState(7).uniform(-bound, bound, (6, 1, 7, 7)).astype("float32")
    np.testing.assert_array_equal(run.initial["C1.W"], drawn)
    trained = run.result.best_parameters
    assert (trained["C3.W"] != 0).any(axis=(2, 3)).T.tolist() == connections_1998().tolist()
    for name in NAMES:
        assert (trained[name] != run.initial[name]).any(), name


def test_a_saved_model_is_read_with_its_settings_and_predicts_as_in_training(run, folder, sample):
    model = read_model(folder / "m.npz")
    assert model.script == "lenet5" and model.arguments["filter_sizes"] == [7, 3, 4]
    x, y = (array[:50] for array in sample[2])
    probabilities = model.probabilities(x)
    assert (probabilities.argmax(axis=1) != y).mean() == pytest.approx(run.result.test_error)
    np.testing.assert_array_equal(read_model(folder / "c.npz").probabilities(x[:5]), probabilities[:5])
    shapes = {name: maps.shape for name, maps in feature_maps(model, x[0]).items()}
    assert shapes == {"C1": (6, 26, 26), "S2": (6, 12, 12), "C3": (16, 10, 10), "S4": (16, 5, 5)}


def test_a_run_that_is_resumed_ends_as_if_it_had_not_stopped(run, folder, digits, record, tmp_path):
    checkpoint = tmp_path / "c.npz"
    options = {"dataset": digits, "checkpoint": checkpoint} | SMALL
    record(lenet5, train_lenet5, n_epochs=1, **options)
    resumed = record(lenet5, train_lenet5, n_epochs=2, **options, resume=True)
    assert resumed.costs == run.costs[6:]
    ends = read_checkpoint(checkpoint).parameters, read_checkpoint(folder / "c.npz").parameters
    for name in NAMES:
        np.testing.assert_array_equal(*(end[name] for end in ends))
    with pytest.raises(ValueError, match="pooling is '1998' there and 'sum' here"):
        record(lenet5, train_lenet5, n_epochs=2, **options | {"pooling": "sum"}, resume=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"learning_rate": -0.1}, "learning_rate=-0.1 is not a positive finite number; use"),
        ({"n_epochs": 0}, "n_epochs=0 is not a positive integer; use"),
        ({"batch_size": 0}, "batch_size=0 is not a positive integer; use"),
        ({"seed": -1}, "seed=-1 is not an integer from 0 to 4294967295; use"),
        ({"nkerns": (6, 16)}, r"nkerns=\(6, 16\) is not a tuple of 3 integers; use"),
        ({"filter_sizes": (7, 5, 5)}, "the filters of C5 are 5x5, S4 gives them only 4x4; use"),
        ({"save": "model.pt"}, "save='model.pt' does not end in .npz"),
    ],
)
def test_bad_arguments_are_refused_by_name_before_any_work(no_work, capsys, arguments, message):
    with pytest.raises(ValueError, match=message):
        train_lenet5(**arguments)
    assert capsys.readouterr() == ("", "")
