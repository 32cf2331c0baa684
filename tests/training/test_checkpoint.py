import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytensor
import pytest

import deeplearning_tutorial
from deeplearning_tutorial import convolutional_mlp, lenet_poolings
from deeplearning_tutorial.classify.models import read_model
from deeplearning_tutorial.datasets import sample_path
from deeplearning_tutorial.training.checkpoint import (
    VERSIONS,
    Checkpoint,
    current_names,
    read_checkpoint,
    write_checkpoint,
)
from deeplearning_tutorial.training.results import TrainingResult, Validation
from deeplearning_tutorial.training.run import Run

# One epoch of LeNet with a map in each layer, on the sample; and of a small AlexNet.
OLD = Path(__file__).with_name("checkpoints")

HISTORY = [
    Validation(1, 4, 4, cost=0.1 + 0.2, validation_error=0.4, test_error=0.41, seconds=1 / 3),
    Validation(2, 4, 8, cost=-2e-310, validation_error=0.3, test_error=0.31, seconds=2 / 3),
    Validation(3, 4, 12, cost=1e300, validation_error=0.35, test_error=None, seconds=1.0),
]


def text(written):
    return np.frombuffer(written.encode(), np.uint8)


@pytest.fixture
def checkpoint():
    W = np.arange(6, dtype="float32").reshape(2, 3) / 3
    # NaNs have bits, too; and an array in column order stays in it.
    now = {"layer.W": np.asfortranarray(W), "layer.b": np.array([np.nan, -0.0, 3], "float32")}
    result = TrainingResult(
        best_validation_error=0.3,
        best_iteration=8,
        test_error=0.31,
        epochs=4,
        seconds=1.25,
        history=HISTORY,
        best_parameters={"layer.W": W * 2, "layer.b": np.ones(3, "float32")},
        minibatches=(4, 2, 1),
    )
    return Checkpoint("mlp", {"learning_rate": 0.1, "nkerns": [2, 3]}, "digits", 13, 28, now, result)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "c.npz"


def state_of(path):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(arrays.pop("state").tobytes()), arrays


def test_what_was_written_is_read_bitwise(path, checkpoint):
    write_checkpoint(path, checkpoint)
    read = read_checkpoint(str(path))
    assert replace(read, parameters={}, result=None) == replace(checkpoint, parameters={}, result=None)
    assert read.versions == VERSIONS and read.versions["pytensor"] == pytensor.__version__
    for got, given in (
        (read.parameters, checkpoint.parameters),
        (read.result.best_parameters, checkpoint.result.best_parameters),
    ):
        assert list(got) == list(given)
        for name, value in given.items():
            assert got[name].dtype == value.dtype and got[name].tobytes("A") == value.tobytes("A")
    assert replace(read.result, best_parameters={}) == replace(checkpoint.result, best_parameters={})
    assert [look.seconds for look in read.result.history] == [1 / 3, 2 / 3, 1.0]


def test_before_the_first_validation_there_is_no_best(path, checkpoint):
    nothing = TrainingResult(epochs=1, seconds=0.5, minibatches=(4, 2, 1))
    write_checkpoint(path, replace(checkpoint, iteration=3, result=nothing))
    assert read_checkpoint(path).result == nothing


def test_the_file_holds_no_pickle_and_leaves_nothing_beside_it(path, checkpoint):
    write_checkpoint(path, checkpoint)
    assert os.listdir(path.parent) == ["c.npz"]
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "fu" for name in file.files)


def refused(path):
    with pytest.raises(ValueError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "use a" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda state: state.pop("patience"), "does not consist of script, arguments"),
        (lambda state: state.update(more=1), "does not consist of"),
        (lambda state: state.update(script=3), "script of the state is 3"),
        (lambda state: state.update(arguments=[]), "arguments of the state is []"),
        (lambda state: state.update(arguments="x" * 9000), f"is '{'x' * 199} ...; use a file"),
        (lambda state: state.update(iteration=-1), "iteration of the state is -1"),
        (lambda state: state.update(iteration=True), "iteration of the state is True"),
        (lambda state: state.update(iteration=11), "validations are not in order"),
        (lambda state: state["history"].reverse(), "validations are not in order"),
        (lambda state: state["history"].append(state["history"][-1]), "validations are not in order"),
        (lambda state: state["history"].append(7), "a validation does not consist of epoch"),
        (lambda state: state["history"][0].update(epoch="1"), "epoch of a validation is '1'"),
        (lambda state: state["history"][0].update(cost=float("nan")), "NaN is not a number in JSON"),
        (lambda state: state["history"][0].update(validation_error=-0.5), "validation_error of a validation"),
        (lambda state: state.update(history=[]), "contradict each other"),
        (lambda state: state.update(minibatches=[4, 2]), "minibatches of the state is [4, 2]"),
        (lambda state: state.update(minibatches=[0, 2, 1]), "minibatches of the state is [0, 2, 1]"),
        (lambda state: state.update(seconds=None), "seconds of the state is None"),
    ],
)
def test_a_state_that_makes_no_sense_is_refused(path, checkpoint, change, told):
    write_checkpoint(path, checkpoint)
    state, arrays = state_of(path)
    change(state)
    np.savez(path, state=text(json.dumps(state)), **arrays)
    assert told in refused(path)


@pytest.mark.parametrize(
    "stored, told",
    [
        (text("{"), "damaged"),
        (text("[" * 100_000), "nested too deeply"),
        (text("[]"), "does not consist of"),
        (text(""), "damaged"),
        (np.array([0xFF, 0xFE, 0xFF], "uint8"), "damaged"),
        (np.zeros((1, 2), "uint8"), "bytes of JSON text are expected, not uint8 of shape (1, 2)"),
        (np.array("{}"), "state is not an array of numbers (<U2 of shape ())"),
    ],
)
def test_a_text_that_is_no_state_is_refused(path, stored, told):
    np.savez(path, state=stored)
    assert told in refused(path)


def test_a_number_beyond_all_bounds_is_refused(path, checkpoint):
    write_checkpoint(path, checkpoint)
    state, arrays = state_of(path)
    np.savez(path, state=text(json.dumps(state).replace("1.25", "1e999")), **arrays)
    assert "seconds of the state is inf" in refused(path)


def test_a_saved_model_and_an_array_too_many_are_refused(path, checkpoint):
    np.savez(path, **{"layer.W": np.zeros(3)})
    assert "it lacks 'state'" in refused(path)
    write_checkpoint(path, checkpoint)
    state, arrays = state_of(path)
    np.savez(path, state=text(json.dumps(state)), more=np.zeros(3), **arrays)
    assert "it holds more, which no checkpoint has" in refused(path)


def test_a_checkpoint_cut_short_or_damaged_is_refused_or_the_very_same(path, checkpoint):
    write_checkpoint(path, checkpoint)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert "is not a checkpoint" in refused(path)
    for at in range(0, len(whole), 11):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            read = read_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert read.iteration == 13 and read.result.history == HISTORY
            assert read.parameters["layer.W"].tobytes("A") == checkpoint.parameters["layer.W"].tobytes("A")


def test_a_missing_file_is_a_file_not_found_error(path):
    with pytest.raises(FileNotFoundError, match="c.npz"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["before_poolings.npz", "before_own_version.npz"])
def test_a_checkpoint_of_an_older_version_is_read_and_resumed(tmp_path, capsys, name):
    path = shutil.copy(OLD / name, tmp_path / "c.npz")
    checkpoint = read_checkpoint(path)
    assert (checkpoint.script, checkpoint.iteration) == ("convolutional_mlp", 6)
    assert (checkpoint.result.best_validation_error, checkpoint.result.test_error) == (0.758, 0.772)
    assert checkpoint.parameters["layer2.W"].shape == (16, 500)
    assert "deeplearning_tutorial" not in checkpoint.versions
    assert len(read_model(path).parameters["layer0.b"]) == 1

    class Interrupted(Run):
        def check_data(self, datasets):
            raise InterruptedError

    run = Interrupted(checkpoint=path, resume=True)
    arguments = {"dataset": sample_path(), "nkerns": (1, 1)}
    with pytensor.config.change_flags(floatX="float32", mode="NUMBA"):
        with pytest.raises(InterruptedError):
            convolutional_mlp.evaluate_lenet5(**arguments, run=run)
        with pytest.raises(ValueError, match="is 'convolutional_mlp' there and 'lenet_poolings' here. Give"):
            lenet_poolings.train_lenet_poolings(**arguments, pooling="l2", run=run)
    parameters = {each: pytensor.shared(0 * value) for each, value in checkpoint.parameters.items()}
    with pytensor.config.change_flags(floatX="float32", mode="NUMBA"), pytest.raises(InterruptedError):
        convolutional_mlp.evaluate_lenet5(**arguments, run=run)
    with run.training(parameters, None, (6, 2, 2), 6, 20):
        assert run.iteration == 6
    np.testing.assert_array_equal(parameters["layer0.b"].get_value(), checkpoint.parameters["layer0.b"])
    assert f"deeplearning_tutorial {deeplearning_tutorial.__version__}" in capsys.readouterr().err


POOLINGS = {
    "pooling": "max",
    "pool_sizes": [2, 2],
    "pool_strides": [2, 2],
    "activation": "tanh",
    "normalisation": None,
}


def test_the_poolings_of_older_files_are_a_page_of_their_own():
    plain = {"nkerns": [20, 50], "seed": 1}
    assert current_names("convolutional_mlp", plain) == ("convolutional_mlp", plain)
    assert current_names("convolutional_mlp", plain | POOLINGS) == ("convolutional_mlp", plain)
    other = plain | POOLINGS | {"pooling": "l2"}
    assert current_names("convolutional_mlp", other) == ("lenet_poolings", other)
    assert current_names("convolutional_mlp", {"pooling": "l2"}) == (
        "lenet_poolings", POOLINGS | {"pooling": "l2"}
    )  # fmt: skip
    assert current_names("lenet5", {"pooling": "max"}) == ("lenet5", {"pooling": "max"})


def test_an_older_alexnets_deviation_is_its_weight_std():
    now = {"weight_std": 0.1, "seed": 1}
    assert current_names("alexnet", {"deviation": 0.1, "seed": 1}) == ("alexnet", now)


def test_a_checkpoint_with_an_optimiser_is_read():
    checkpoint = read_checkpoint(OLD / "with_optimiser.npz")
    assert (checkpoint.script, checkpoint.iteration, len(checkpoint.result.history)) == ("alexnet", 1, 1)
    assert checkpoint.optimiser and checkpoint.parameters.keys() == checkpoint.result.best_parameters.keys()
    assert checkpoint.arguments["momentum"] == 0.9 and checkpoint.versions["deeplearning_tutorial"] == "0.1.0"
