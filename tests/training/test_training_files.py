import csv
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytensor
import pytest
from pytensor.compile.mode import Mode, get_mode

import deeplearning_tutorial
from deeplearning_tutorial.training import training_files
from deeplearning_tutorial.training.checkpoint import read_checkpoint, write_checkpoint
from deeplearning_tutorial.training.parameters import load_parameters, read_metadata
from deeplearning_tutorial.training.results import TrainingResult, Validation
from deeplearning_tutorial.training.training_files import TrainingFiles

ARGUMENTS = {"learning_rate": 0.1, "n_epochs": 5, "nkerns": (2, 3), "seed": 7}
HISTORY = [
    Validation(1, 4, 4, cost=0.3, validation_error=0.4, test_error=0.41, seconds=0.5),
    Validation(2, 4, 8, cost=0.2, validation_error=0.45, test_error=None, seconds=1.25),
]
LINES = [
    "epoch,minibatch,iteration,cost,validation_error,test_error,seconds\n",
    "1,4,4,0.3,0.4,0.41,0.5\n",
    "2,4,8,0.2,0.45,,1.25\n",
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytensor.config.change_flags(floatX="float32"):
        yield tmp_path


@pytest.fixture
def parameters():
    return {"layer.W": pytensor.shared(np.arange(3, dtype="float32"), name="W")}


def result_after(n):
    """The result after ``n`` validations."""
    return TrainingResult(
        0.4, 4, 0.41, n, n / 2, HISTORY[:n], {"layer.W": np.full(3, 9, "float32")}, minibatches=(4, 2, 1)
    )


def resume(script="mlp", **changes):
    options = {"save": "m.npz", "checkpoint": "c.npz", "log": "run.csv"}
    options["resume"] = changes.pop("resume", True)
    return TrainingFiles(script, ARGUMENTS | changes, **options)


@pytest.fixture
def killed(parameters):
    """A run that was killed after its second validation."""
    files = resume(resume=False)
    for n in (1, 2):
        files.write(result_after(n), 4 * n, 20, parameters)


def log_lines():
    with open("run.csv", newline="") as file:
        return file.readlines()


def test_the_best_model_the_log_and_the_state_are_written(killed, parameters):
    assert sorted(os.listdir()) == ["c.npz", "m.npz", "run.csv"]
    assert log_lines() == LINES
    with open("run.csv", newline="") as file:
        assert [row["validation_error"] for row in csv.DictReader(file)] == ["0.4", "0.45"]
    assert read_metadata("m.npz") == {
        "script": "mlp",
        "arguments": {
            "learning_rate": 0.1,
            "n_epochs": 5,
            "nkerns": [2, 3],
            "seed": 7,
            "floatX": "float32",
            "mode": training_files.back_end(),
        },
    }
    load_parameters("m.npz", parameters)
    assert parameters["layer.W"].get_value().tolist() == [9, 9, 9]
    checkpoint = read_checkpoint("c.npz")
    assert (checkpoint.script, checkpoint.iteration, checkpoint.patience) == ("mlp", 8, 20)
    assert checkpoint.arguments == read_metadata("m.npz")["arguments"]
    assert checkpoint.parameters["layer.W"].tolist() == [0, 1, 2]
    assert checkpoint.result.history == HISTORY


def test_the_best_model_is_written_only_when_it_is_new(killed, parameters):
    files = resume()
    files.write(result_after(2), 8, 20, parameters)
    os.remove("m.npz")
    files.write(result_after(2), 9, 20, parameters)
    assert not os.path.exists("m.npz")


def test_without_files_nothing_is_written(parameters):
    files = TrainingFiles()
    files.write(result_after(1), 4, 20, parameters)
    assert os.listdir() == [] and files.resumed is None and files.locations() == ""


def test_resuming_restores_the_state(killed, parameters, capsys):
    files = resume()
    parameters["layer.W"].set_value(np.zeros(3, "float32"))
    with pytest.raises(ValueError, match=r"is damaged: \(4, 2, 1\) minibatches there, \(4, 2, 2\) here"):
        files.restore(parameters, (4, 2, 2))
    assert parameters["layer.W"].get_value().tolist() == [0, 0, 0]
    result, iteration, patience = files.restore(parameters, (4, 2, 1))
    assert parameters["layer.W"].get_value().tolist() == [0, 1, 2]
    assert (iteration, patience) == (8, 20) and result.history == HISTORY
    assert (result.best_validation_error, result.best_iteration, result.test_error) == (0.4, 4, 0.41)
    assert capsys.readouterr().err == "Resuming after iteration 8 from c.npz\n"
    result.history.append(HISTORY[0])
    assert files.resumed.result.history == HISTORY


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"learning_rate": 0.2}, "learning_rate is 0.1 there and 0.2 here. Give the same arguments, or"),
        ({"seed": 8, "nkerns": (2, 4)}, "nkerns is [2, 3] there and [2, 4] here; seed is 7 there and 8 here"),
        ({"n_hidden": 8}, "n_hidden is 500 there and 8 here"),
        ({"n_layers": 8}, "n_layers is None there and 8 here"),
        ({"script": "lenet", "seed": 8}, "another run: script is 'mlp' there and 'lenet' here. Give"),
        ({"n_epochs": 1}, "n_epochs=1, but checkpoint='c.npz' has reached epoch 2; use n_epochs=2 or more"),
    ],
)
def test_resuming_with_other_arguments_names_each_with_both_values(killed, changes, told):
    before = {path: path.read_bytes() for path in Path().iterdir()}
    with pytest.raises(ValueError) as caught:
        resume(**changes)
    assert told in str(caught.value)
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_an_argument_that_a_checkpoint_lacks_had_its_pages_default(parameters):
    resume("lenet5", resume=False).write(result_after(2), 8, 20, parameters)
    added = {"n_hidden": 84, "pool_sizes": (2, 2), "connection": "full", "activation": "tanh"}
    assert resume("lenet5", **added).resumed.iteration == 8
    with pytest.raises(ValueError, match="another run: activation is 'tanh' there and 'relu' here. Give"):
        resume("lenet5", **added | {"activation": "relu"})
    # What the checkpoint holds is not a default.
    with pytest.raises(ValueError, match="another run: seed is 7 there and 23455 here. Give"):
        resume("lenet5", **added | {"seed": 23455})


def test_another_precision_or_back_end_is_another_run(killed):
    with pytensor.config.change_flags(floatX="float64"):
        with pytest.raises(ValueError, match="floatX is 'float32' there and 'float64' here"):
            resume()
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        with pytest.raises(ValueError, match="mode is '[A-Z]+' there and 'FAST_COMPILE' here"):
            resume()


def test_pytensors_default_back_end_is_numba_by_another_name(killed):
    with pytensor.config.change_flags(mode="Mode"):
        assert training_files.back_end() == "NUMBA"


@pytest.mark.parametrize(
    "mode, name",
    [
        (get_mode("NUMBA").excluding("conv_pool_fusion"), "NUMBA"),
        (get_mode("JAX"), "JAX"),
        (get_mode("PYTORCH").including("fusion"), "PYTORCH"),
        (get_mode("FAST_COMPILE"), "FAST_COMPILE"),
        (Mode(linker="py"), "PERFORM"),
    ],
)
def test_of_a_mode_that_is_an_object_the_linker_tells_the_back_end(mode, name, parameters):
    with pytensor.config.change_flags(mode=mode):
        assert training_files.back_end() == name
        files = resume(resume=False)
        files.write(result_after(1), 4, 20, parameters)
    assert read_checkpoint("c.npz").arguments["mode"] == read_metadata("m.npz")["arguments"]["mode"] == name


@pytest.mark.parametrize("changes", [{"n_epochs": 2}, {"n_epochs": 50}, {"nkerns": [np.int64(2), 3]}])
def test_more_epochs_and_equal_arguments_of_other_types_are_the_same_run(killed, changes):
    assert resume(**changes).resumed.iteration == 8


def test_other_data_is_told_with_both_fingerprints(parameters):
    data = [tuple(pytensor.shared(np.zeros(shape, "float32")) for shape in ((2, 5), (2,)))] * 3
    files = resume(resume=False)
    files.check_data(data)
    files.write(result_after(1), 4, 20, parameters)
    resume().check_data(data)
    with pytest.raises(ValueError) as caught:
        resume().check_data(data[:2])
    assert "c.npz' belongs to another data set: 2 + 2 + 2 examples, SHA-256 " in str(caught.value)
    assert " there, 2 + 2 examples, SHA-256 " in str(caught.value)


def test_parameters_of_another_model_are_refused(killed):
    other = {"layer.W": pytensor.shared(np.zeros(4, "float32"), name="W")}
    with pytest.raises(ValueError, match=r"layer.W is float32 of shape \(3,\), .* shape \(4,\)"):
        resume().restore(other, (4, 2, 1))


@pytest.mark.parametrize("mode, restored", [("JAX", 1 / 3), ("NUMBA", float(np.float32(1 / 3)))])
def test_the_float64_that_jax_makes_of_float32_is_restored_to_the_last_digit(mode, restored):
    parameters = {"layer.W": pytensor.shared(np.zeros(3, "float32"), name="W")}
    with pytensor.config.change_flags(mode=mode):
        resume(resume=False).write(result_after(1), 4, 20, parameters)
        checkpoint = replace(read_checkpoint("c.npz"), parameters={"layer.W": np.full(3, 1 / 3)})
        write_checkpoint(Path("c.npz"), checkpoint)
        resume().restore(parameters, (4, 2, 1))
    assert parameters["layer.W"].get_value().tolist() == [restored] * 3


def test_other_versions_are_told_as_a_notice(killed, parameters, capsys):
    checkpoint = replace(read_checkpoint("c.npz"), versions={"pytensor": "2.0"})
    os.remove("run.csv")
    write_checkpoint(Path("c.npz"), checkpoint)
    resume().restore(parameters, (4, 2, 1))
    told = capsys.readouterr().err
    assert "NOTICE: c.npz was written with pytensor 2.0; with numba " in told
    assert f"deeplearning_tutorial {deeplearning_tutorial.__version__} the last digits" in told


def test_resuming_without_a_checkpoint_starts_anew_and_says_so(capsys):
    assert resume().resumed is None
    assert capsys.readouterr().err == "There is no checkpoint c.npz yet: training starts from the beginning\n"


@pytest.mark.parametrize("name", ["save", "checkpoint", "log"])
def test_the_data_set_is_never_written_over(name):
    Path("digits.npz").write_bytes(b"digits")
    with pytest.raises(ValueError, match=f"dataset and {name} are both '.*digits.npz'; give two names"):
        TrainingFiles("mlp", dataset="digits.npz", **{name: Path("digits.npz").absolute()})
    assert Path("digits.npz").read_bytes() == b"digits"


def test_files_that_links_name_are_written_there_and_are_one_file(parameters):
    Path("elsewhere").mkdir()
    for name in ("m.npz", "c.npz", "run.csv"):
        Path(name).symlink_to(f"elsewhere/{name}")
    resume(resume=False).write(result_after(1), 4, 20, parameters)
    assert all(Path(name).is_symlink() for name in ("m.npz", "c.npz", "run.csv"))
    assert sorted(os.listdir("elsewhere")) == ["c.npz", "m.npz", "run.csv"]
    assert resume().resumed.iteration == 4
    with pytest.raises(ValueError, match="save and checkpoint are both 'elsewhere/m.npz'; give two names"):
        TrainingFiles("mlp", save="m.npz", checkpoint="elsewhere/m.npz")


def test_where_the_working_directory_was_removed_absolute_files_are_written(folder, parameters, capsys):
    Path("here").mkdir()
    Path("gone").mkdir()
    os.chdir("gone")
    os.rmdir(folder / "gone")
    names = {"save": "m.npz", "checkpoint": "c.npz", "log": "run.csv"}
    absolute = {each: folder / "here" / name for each, name in names.items()}
    files = TrainingFiles("mlp", dataset="digits.npz", **absolute)
    files.write(result_after(1), 4, 20, parameters)
    assert not files.write_errors and sorted(os.listdir(folder / "here")) == sorted(names.values())
    for each in names:
        with pytest.raises(FileNotFoundError, match=f"{each}='{names[each]}'"):
            TrainingFiles("mlp", **{each: names[each]})


def test_training_continues_if_a_folder_is_removed_or_becomes_inaccessible(
    folder, parameters, monkeypatch, capsys
):
    Path("here").mkdir()
    files = TrainingFiles("mlp", save="here/m.npz", checkpoint="here/c.npz", log="here/run.csv")
    os.rmdir("here")
    files.write(result_after(1), 4, 20, parameters)
    assert list(files.write_errors) == ["the best model", "the log", "the checkpoint"]
    assert capsys.readouterr().err.count("each validation tries again\n") == 3

    def stale(path, **options):
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stale)
        assert files.locations() == ""
    Path("here").mkdir()
    files.write(result_after(2), 8, 20, parameters)
    assert files.write_errors == {} and sorted(os.listdir("here")) == ["c.npz", "m.npz", "run.csv"]


def test_names_as_long_as_the_system_takes_are_written(parameters):
    names = {each: f"{each[0] * 251}.npz" for each in ("save", "checkpoint")} | {"log": "l" * 255}
    files = TrainingFiles("mlp", **names)
    files.write(result_after(1), 4, 20, parameters)
    assert files.write_errors == {} and sorted(os.listdir()) == sorted(names.values())


def test_a_damaged_checkpoint_is_refused_by_name():
    Path("c.npz").write_text("PK half")
    with pytest.raises(ValueError, match="c.npz is not a checkpoint"):
        resume()


@pytest.mark.parametrize("name", ["checkpoint", "log"])
def test_without_resume_an_existing_run_is_not_overwritten(killed, name):
    path = {"checkpoint": "c.npz", "log": "run.csv"}[name]
    before = Path(path).read_bytes()
    with pytest.raises(FileExistsError, match=f"{name}='{path}' exists; resume that run, or give another"):
        TrainingFiles("mlp", **{name: path})
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize(
    "options, error, told",
    [
        ({"checkpoint": "c"}, ValueError, "checkpoint='c' does not end in .npz"),
        ({"checkpoint": "no/c.npz"}, FileNotFoundError, "checkpoint='no/c.npz': there is no folder 'no'"),
        ({"log": "no/run.csv"}, FileNotFoundError, "log='no/run.csv': there is no folder 'no'"),
        ({"log": "."}, PermissionError, "log='.' cannot be written"),
        ({"resume": True}, ValueError, "resume=True needs the file to continue from; give checkpoint as"),
        ({"save": "a.npz", "checkpoint": "./a.npz"}, ValueError, "save and checkpoint are both 'a.npz'"),
        ({"log": "a.npz", "checkpoint": "a.npz"}, ValueError, "checkpoint and log are both 'a.npz'"),
    ],
)
def test_unfit_paths_are_refused_by_name(options, error, told):
    with pytest.raises(error) as caught:
        TrainingFiles("mlp", **options)
    assert told in str(caught.value)
    assert os.listdir() == []


@pytest.mark.parametrize(
    "present",
    [
        LINES,
        LINES[:1],
        [],
        [*LINES[:2], "2,4,8,0."],
        # The log is written before the checkpoint, so it may hold more.
        [*LINES, "3,4,12,0.1,0.5,,1.5\n", "4,4,16,0.1,0.5,,1.6"],
    ],
)
def test_a_resumed_log_goes_on_without_gaps_or_duplicates(killed, parameters, present):
    with open("run.csv", "w", newline="") as file:
        file.writelines(present)
    files = resume()
    third = Validation(3, 4, 12, 0.125, 0.5, None, 2.5)
    files.write(replace(result_after(2), history=[*HISTORY, third]), 12, 20, parameters)
    assert log_lines() == [*LINES, "3,4,12,0.125,0.5,,2.5\n"]


def test_a_log_of_a_run_that_was_killed_before_its_first_checkpoint_is_begun_anew(parameters):
    with open("run.csv", "w", newline="") as file:
        file.writelines([LINES[0], "1,4,4,0.3,0.4,0.41,0.75\n"])
    files = resume()
    files.write(result_after(1), 4, 20, parameters)
    assert log_lines() == LINES[:2]


@pytest.mark.parametrize("checkpointed", [True, False])
@pytest.mark.parametrize("present", [["a,b\n", "1,2\n"], [LINES[0], "1,4,4,0.9,0.4,0.41,0.5\n", LINES[2]]])
def test_a_log_of_another_run_is_refused_and_kept(killed, present, checkpointed):
    if not checkpointed:
        os.remove("c.npz")
    with open("run.csv", "w", newline="") as file:
        file.writelines(present)
    with pytest.raises(ValueError, match="log='run.csv' holds other validations than this run's; give"):
        resume()
    assert log_lines() == present


def test_a_write_that_fails_is_told_and_tried_again(parameters, monkeypatch, capsys):
    fsync, written = os.fsync, []

    def full(descriptor):
        raise OSError(28, "No space left on device")

    files = resume(resume=False)
    monkeypatch.setattr(os, "fsync", full)
    files.write(result_after(1), 4, 20, parameters)
    told = [
        "the best model could not be written to m.npz: No space left on device",
        "the checkpoint could not be written to c.npz: No space left on device",
    ]
    assert list(files.write_errors.values()) == told
    assert capsys.readouterr().err.splitlines() == [
        f"WARNING: {line}; each validation tries again" for line in told
    ]
    assert files.locations() == "" and os.listdir() == ["run.csv"]
    monkeypatch.setattr(os, "fsync", lambda descriptor: written.append(descriptor) or fsync(descriptor))
    # The second validation is no better, yet the best model is still to be written.
    files.write(result_after(2), 8, 20, parameters)
    assert files.write_errors == {} and len(written) == 2 and capsys.readouterr().err == ""
    assert sorted(os.listdir()) == ["c.npz", "m.npz", "run.csv"]
    assert files.locations() == (
        "The best model is in m.npz. The checkpoint is c.npz; resume to continue from there."
    )


def test_a_log_line_cut_short_by_a_full_disk_is_written_whole_later(parameters, monkeypatch):
    files = resume(resume=False)
    files.write(result_after(1), 4, 20, parameters)
    plain_open = open

    def half(path, mode):
        with plain_open(path, mode) as file:
            file.write(b"2,4,8,0")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training_files, "open", half, raising=False)
        files.write(result_after(2), 8, 20, parameters)
    assert list(files.write_errors) == ["the log"] and log_lines()[-1] == "2,4,8,0"
    files.write(result_after(2), 8, 20, parameters)
    assert files.write_errors == {} and log_lines() == LINES


def test_what_killed_processes_left_is_removed_once_it_is_old():
    names = [".c.npz.12345678.part", ".c.npz.9abcdef0.part", ".other.npz.12345678.part", "c.npz.part"]
    for name in names:
        Path(name).touch()
    for name in names[::2]:
        os.utime(name, (time.time() - 3600,) * 2)
    TrainingFiles("mlp", checkpoint="c.npz")
    assert sorted(os.listdir()) == sorted(names[1:])
