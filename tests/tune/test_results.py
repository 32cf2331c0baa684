import csv
import re
import sys

import optuna
import pytest

from deeplearning_tutorial.tune.results import (
    check_plots,
    command_of,
    configuration_of,
    rows_of,
    table,
    write_csv,
    write_plots,
)

COMPLETE, PRUNED, FAIL, RUNNING = (
    getattr(optuna.trial.TrialState, name) for name in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")
)


@pytest.fixture
def study():
    """Two complete trials, two pruned, one withdrawn, one running."""
    study = optuna.create_study()
    for error, state, extra in [
        (0.5, COMPLETE, {}),
        (0.25, COMPLETE, {}),
        (0.125, PRUNED, {"reason": "unpromising"}),
        (None, PRUNED, {"reason": "sizes do not fit"}),
        (None, FAIL, {"withdrawn": "interrupted"}),
        (None, RUNNING, {}),
    ]:
        trial = study.ask()
        rate = trial.suggest_float("rate", 0.01, 1, log=True)
        trial.suggest_categorical("sizes", ["5 5", "7 3"])
        if error is not None:
            extra |= {"validation_error": error, "test_error": error + 0.01, "iteration": 7, "epochs": 2}
            trial.report(error, 1)
        for name, value in (extra | {"worker": "here:1", "arguments": {"rate": rate}}).items():
            trial.set_user_attr(name, value)
        if state is COMPLETE:
            study.tell(trial, error)
        elif state is not RUNNING:
            study.tell(trial, state=state)
    return study


def test_rows_are_sorted_and_omit_withdrawn_trials(study):
    rows = rows_of(study)
    assert [(row["trial"], row["state"]) for row in rows] == [
        (1, "complete"),
        (0, "complete"),
        (2, "pruned"),
        (3, "pruned"),
        (5, "running"),
    ]
    assert list(rows[0]) == [
        *("trial", "state", "validation_error", "test_error", "iteration", "epochs", "seconds"),
        *("rate", "sizes", "worker", "reason"),
    ]
    assert (rows[0]["validation_error"], rows[0]["test_error"]) == (0.25, 0.26)


def test_the_table_has_percentages_and_reasons(study):
    lines = table(rows_of(study)).splitlines()
    titles = ["trial", "state", "validation %", "test %", "iteration", "epochs", "seconds", "rate", "sizes"]
    assert re.split("  +", lines[0].strip()) == titles
    assert lines[1].split()[:6] == ["1", "complete", "25.0000", "26.0000", "7", "2"]
    assert lines[3].endswith("  unpromising") and lines[4].endswith("  sizes do not fit")
    assert lines[4].split()[2:6] == ["-"] * 4
    # Columns are aligned with their titles.
    assert len({line.index(line.split()[1]) + len(line.split()[1]) for line in lines}) == 1
    assert table([]) == "There are no trials yet"


def test_the_csv_file_has_every_row(study, tmp_path):
    rows = rows_of(study)
    write_csv(tmp_path / "trials.csv", rows)
    with open(tmp_path / "trials.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["trial"] for row in read] == ["1", "0", "2", "3", "5"]
    assert [float(row["rate"]) for row in read] == [row["rate"] for row in rows]
    assert read[3]["reason"] == "sizes do not fit" and read[3]["validation_error"] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["trials.csv"]


def test_the_plots_are_not_empty(study, tmp_path):
    from PIL import Image

    written = write_plots(tmp_path / "plots", study)
    names = ["intermediate_values", "optimization_history", "parallel_coordinate", "param_importances"]
    assert sorted(path.stem for path in written) == [*names, "slice", "timeline"]
    assert sorted(written) == sorted((tmp_path / "plots").iterdir())
    for path in written:
        with Image.open(path) as picture:
            assert picture.width > 700 and picture.height > 400
            assert len(picture.getcolors(2**24)) > 20


def test_plots_do_not_change_the_users_matplotlib(study, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import matplotlib
    from matplotlib import pyplot

    with matplotlib.rc_context({"text.usetex": True, "savefig.dpi": 20, "figure.figsize": (1, 1)}):
        # As if the user's backend could not be loaded.
        monkeypatch.setattr(pyplot, "_backend_mod", None)
        monkeypatch.setattr(pyplot, "switch_backend", lambda name: pytest.fail(f"{name} is loaded"))
        before = dict(matplotlib.rcParams.copy())
        written = write_plots(tmp_path, study)
        assert dict(matplotlib.rcParams.copy()) == before and pyplot._backend_mod is None
    assert pyplot.get_fignums() == [] and len(written) == 6


def test_plots_that_need_more_trials_are_omitted(tmp_path):
    study = optuna.create_study()
    assert write_plots(tmp_path, study) == []
    study.add_trial(optuna.create_trial(params={}, distributions={}, value=0.5, intermediate_values={1: 0.5}))
    assert "param_importances.png" not in [path.name for path in write_plots(tmp_path, study)]


def test_the_command_is_quoted_for_a_shell():
    arguments = {"rate": 0.25, "sizes": [5, 7], "resume": True, "quiet": False, "dataset": "my digits.npz"}
    assert command_of("my.script", arguments) == (
        "python -m my.script --rate 0.25 --sizes 5 7 --resume --dataset 'my digits.npz'"
    )
    assert command_of("my.script", arguments, ["dataset"]) == (
        "python -m my.script 'my digits.npz' --rate 0.25 --sizes 5 7 --resume"
    )


@pytest.mark.parametrize(
    "floatX, mode, flags",
    [
        ("float32", "NUMBA", {}),
        ("float64", "JAX", {"floatX": "float64", "mode": "JAX"}),
        ("float32", "CVM", {}),
    ],
)
def test_a_command_has_flags_for_another_precision_and_back_end(floatX, mode, flags):
    study = optuna.create_study()
    assert configuration_of(study) == {}
    study.set_user_attr("settings", {"fixed": {"floatX": floatX, "mode": mode}})
    assert configuration_of(study) == flags


def test_check_plots_raises_if_plots_could_not_be_written(tmp_path, monkeypatch):
    check_plots(tmp_path / "new" / "plots")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file' is not a folder"):
        check_plots(tmp_path / "file" / "plots")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        check_plots(tmp_path)
