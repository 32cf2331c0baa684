import csv
import importlib
import io
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytensor
import pytest
from machine import INITDB

import deeplearning_tutorial
from deeplearning_tutorial import datasets
from deeplearning_tutorial.training import command_line
from deeplearning_tutorial.tune import study
from deeplearning_tutorial.tune.storage import open_storage, open_study

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a new folder, with the script importable by worker processes."""
    monkeypatch.chdir(tmp_path)
    path = [str(Path(deeplearning_tutorial.__file__).parents[1]), str(TESTS)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    # The command sets the precision of its process.
    with pytensor.config.change_flags(floatX=pytensor.config.floatX):
        yield


@pytest.fixture
def postgresql():
    """The URL of a PostgreSQL server for this test only, on a socket in a folder."""
    # The path must be short enough for a socket, and accessible to another user.
    folder = tempfile.mkdtemp(dir="/tmp")
    options = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root.
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    pg_ctl = [str(Path(INITDB).with_name("pg_ctl")), "-D", f"{folder}/data", "-w"]
    try:
        how = ["-A", "trust", "-U", "tuner", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run([INITDB, "-D", f"{folder}/data", *how], **options)
        server = f"-k {folder} -c listen_addresses='' -c fsync=off"
        subprocess.run([*pg_ctl, "-l", f"{folder}/log", "-o", server, "start"], **options)
        try:
            yield f"postgresql+psycopg://tuner@/postgres?host={folder}"
        finally:
            subprocess.run([*pg_ctl, "-m", "immediate", "stop"], **options)
    finally:
        shutil.rmtree(folder)


def tune_scripted(*arguments):
    return study.main(["scripted", "--search", "rate=0.1:0.9", *map(str, arguments)])


def check_two_workers_with_one_killed(url):
    """Run a study with two workers, one of which dies during a trial, and count the trials."""
    Path("kill").touch()
    options = ("--storage", url, "--workers", 2, "--heartbeat-timeout", 2, "--pruner", "none")
    options += ("--folder", Path.cwd())
    assert tune_scripted("--n-trials", 8, "--csv", "trials.csv", *options) == 0
    assert not Path("kill").exists()
    rows = list(csv.DictReader(Path("trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["complete"] * 8
    runs = [line.split() for line in Path("runs").read_text().splitlines()]
    assert len({process for process, _rate in runs}) == 2
    # One run died and was retried; every other trial ran once.
    rates = [float(rate) for _process, rate in runs]
    assert sorted(set(rates)) == sorted(float(row["rate"]) for row in rows)
    assert len(rates) == 9
    with open_storage(url, create=False) as storage:
        trials = open_study(storage, "scripted").trials
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    [killed] = [trial for trial in failed if "withdrawn" not in trial.user_attrs]
    [retry] = [trial for trial in trials if trial.user_attrs.get("retry_of") == killed.number]
    assert retry.state.name == "COMPLETE" and retry.params == killed.params


@pytest.mark.parametrize("url", ["sqlite:///study.db", "journal:study.log"])
def test_two_workers_run_each_trial_once_even_if_one_is_killed(url):
    check_two_workers_with_one_killed(url)


@pytest.mark.needs("postgresql")
def test_two_workers_run_each_trial_once_on_postgresql_even_if_one_is_killed(postgresql):
    check_two_workers_with_one_killed(postgresql)


def test_ctrl_c_requeues_the_trials_of_all_workers_and_the_same_command_continues():
    command = ["scripted", "--search", "rate=0.1:0.9", "--n-trials", "4", "--pruner", "none", "--folder", "."]
    # Handle the signal as in a terminal, wherever the tests run.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "from deeplearning_tutorial.tune.study import main; sys.exit(main())"
    running = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", start, *command, "--workers", "2"],
        env=os.environ | {"SCRIPTED_WAIT": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    give_up = time.monotonic() + 120
    while not Path("runs").exists() or len(Path("runs").read_text().splitlines()) < 2:
        assert running.poll() is None and time.monotonic() < give_up
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130
    assert err.endswith("Stopped; the same command continues from here\n") and "Traceback" not in err
    interrupted = {line.split()[1] for line in Path("runs").read_text().splitlines()}
    assert len(interrupted) == 2

    assert study.main(command) == 0
    runs = [line.split()[1] for line in Path("runs").read_text().splitlines()]
    assert len(runs) == 6 and interrupted < set(runs[2:])


def test_a_study_prints_its_trials_and_the_command_of_the_best(capsys):
    assert tune_scripted("--n-trials", 3, "--sizes", 5, 9, "--sampler-seed", 1) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["trial", "state"] and len(lines) == 7
    best = lines[1].split()[-1]
    assert lines[5:] == ["To repeat the best trial:", lines[6]]
    assert lines[6].startswith("  python -m scripted --sizes 5 9 --rate 0.") and best[:6] in lines[6]
    assert "study scripted: 0 of 3 trials done" in err and "[3/3] trial 2" in err
    assert study.main(["scripted", "--show"]) == 0
    assert capsys.readouterr().out == out


def test_csv_and_plots_are_written_even_if_the_table_is_lost(monkeypatch, capsys):
    assert tune_scripted("--n-trials", 3) == 0

    class Lost(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Lost())
    assert tune_scripted("--show", "--csv", "trials.csv", "--plots", "plots") == 1
    assert len(Path("trials.csv").read_text().splitlines()) == 4
    assert Path("plots", "slice.png").exists()
    assert "stdout could not be written: No space left on device" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_hides_neither_the_plots_nor_the_table(monkeypatch, capsys):
    assert tune_scripted("--n-trials", 2) == 0
    capsys.readouterr()

    def full(path, rows):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(study.results, "write_csv", full)
    assert tune_scripted("--show", "--csv", "trials.csv", "--plots", "plots") == 1
    out, err = capsys.readouterr()
    assert "To repeat the best trial:" in out and Path("plots", "slice.png").exists()
    assert err.splitlines()[-1] == "OSError: [Errno 28] No space left on device: 'trials.csv'"


def test_another_search_space_or_argument_is_rejected(capsys):
    assert tune_scripted("--n-trials", 1) == 0
    assert study.main(["scripted", "--search", "rate=0.2:0.9", "--sizes", "5", "9"]) == 1
    err = capsys.readouterr().err
    assert "search rate is '0.1:0.9' there and '0.2:0.9' here" in err
    assert "fixed sizes is [5, 7] there and [5, 9] here" in err


def test_a_space_may_come_from_a_file():
    Path("space.toml").write_text('rate = {low = 0.1, high = 0.9}\nkind = {choices = ["plain", "unfit"]}')
    arguments = ["--space", "space.toml", "--search", "sizes.0=3,5", "--n-trials", "6", "--csv", "trials.csv"]
    assert study.main(["scripted", *arguments, "--sampler-seed", "1"]) == 0
    rows = list(csv.DictReader(Path("trials.csv").read_text().splitlines()))
    assert {row["kind"] for row in rows} == {"plain", "unfit"}
    assert {row["sizes.0"] for row in rows} == {"3", "5"}
    assert {row["kind"] for row in rows if row["state"] == "complete"} == {"plain"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("scripted", "nothing is searched"),
        ("scripted --search speed=1,2", "'speed' is not a parameter"),
        ("scripted --search save=a,b", "'save' is not a parameter"),
        ("scripted --search rate=1,2 --rate 3", "rate is both searched and given"),
        ("scripted --search rate=1,2 --n-trials 0", "n_trials=0 is not a positive integer"),
        ("scripted --search rate=1,2 --workers 0", "workers=0"),
        ("scripted --search rate=1,2 --heartbeat-timeout 0", "heartbeat_timeout=0.0"),
        ("scripted --search rate=1,2 --sampler-seed -1", "sampler_seed=-1"),
        ("scripted --search rate=1,2 --plots /dev/null/plots", "'/dev/null' is not a folder"),
        ("scripted --search rate=1,2 --csv nowhere/t.csv", "there is no folder 'nowhere'"),
        ("scripted --search rate=1,2 --space none.toml", "none.toml"),
        ("scripted --show", "there is no file 'scripted.db'"),
        ("nosuchscript --search rate=1,2", "'nosuchscript' is not a page"),
        ("checks --search rate=1,2", "'checks' is not a page"),
        ("./mlp --search rate=1,2", "'./mlp' is not the name of a module; use e.g. mlp"),
        (".mlp --search rate=1,2", "'.mlp' is not the name of a module; use e.g. mlp"),
        ("..mlp --search rate=1,2", "'..mlp' is not the name of a module; use e.g. mlp"),
        ("a/lenet5.py --search rate=1,2", "'a/lenet5.py' is not the name of a module; use e.g. lenet5"),
        ("mlp.py --search rate=1,2", "'mlp.py' is not the name of a module; use e.g. mlp"),
        ("mlp. --search rate=1,2", "'mlp.' is not the name of a module; use e.g. mlp"),
        ("3 --search rate=1,2", "'3' is not the name of a module; use e.g. mlp"),
    ],
)
def test_invalid_arguments_are_rejected_before_anything_is_written(tmp_path, capsys, arguments, message):
    assert study.main(arguments.split()) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def own_script(tmp_path, monkeypatch):
    """Write a user's module whose runs raise their arguments as an error."""
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "modules").mkdir()

    def write(parameters, first=""):
        monkeypatch.delitem(sys.modules, "own", raising=False)
        importlib.invalidate_caches()
        (tmp_path / "modules" / "own.py").write_text(
            f"{first}\nfrom deeplearning_tutorial.training.page import Page\n"
            f"def train({parameters}, *, run=None):\n    raise ValueError(locals())\n"
            "page = Page(train, '')\n"
        )

    return write


def test_a_scripts_own_default_dataset_is_kept(own_script, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "mnist_or_sample", lambda: pytest.fail("MNIST is looked for"))
    command = ["own", "--search", "rate=1,2", "--sampler-seed", "1"]
    own_script("rate=0.5, dataset='stars'")
    assert study.main(command) == 1
    assert "'dataset': 'stars'" in capsys.readouterr().err
    # If it is a file, its content is part of the settings.
    Path("stars").write_text("one")
    assert study.main(command) == 1
    with open_storage("sqlite:///own.db") as storage:
        assert "data" in open_study(storage, "own").user_attrs["settings"]["fixed"]


def test_the_error_for_an_unsuitable_script_gives_the_reason(own_script, capsys):
    command = ["own", "--search", "rate=1,2"]
    for parameters, first, message in [
        ("dataset, size, rate=0.5", "", "the script needs dataset and size"),
        ("rate=0.5, workers=3", "", "own has a parameter workers, which is an option of tune"),
        ("rate=0.5, mode='fast'", "", "own has a parameter mode, which is an option of tune"),
        ("rate=0.5", "import nosuchmodule", "No module named 'nosuchmodule'"),
    ]:
        own_script(parameters, first)
        assert study.main(command) == 1
        assert message in capsys.readouterr().err
    assert not Path("own.db").exists()
    own_script("rate=0.5", "import os; os.nothing")
    with pytest.raises(AttributeError, match="nothing"):
        study.main(command)
    own_script("size, rate=0.5")
    assert study.main(["own", "--search", "size=1,2"]) == 1
    assert "'size' is not a parameter that can be searched; use rate" in capsys.readouterr().err


def test_an_unsuitable_fixed_argument_ends_the_command_and_can_be_corrected(capsys):
    assert tune_scripted("--n-trials", 2, "--kind", "unfit") == 1
    assert "ValueError: sizes=(5, 7) do not fit" in capsys.readouterr().err
    assert tune_scripted("--n-trials", 2) == 0


def test_a_study_without_a_complete_trial_gives_status_1():
    assert tune_scripted("--n-trials", 1, "--kind", "diverged") == 1


def test_hyperband_gets_the_largest_number_of_epochs_searched(monkeypatch, capsys):
    def make_pruner(name, n_epochs):
        raise ValueError(f"n_epochs={n_epochs}")

    monkeypatch.setattr(study, "make_pruner", make_pruner)
    for searched, most in [("n_epochs=3:9:2", 9), ("n_epochs=4,2", 4), ("rate=0.1:0.9", 3)]:
        assert study.main(["scripted", "--search", searched, "--storage", f"journal:{most}"]) == 1
        assert f"n_epochs={most}\n" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--show", "scripted"]])
def test_the_script_is_required_first(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        study.main(arguments)
    assert ended.value.code == 2


def test_without_optuna_the_message_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert study.main(["scripted"]) == 1
    assert 'pip install "deeplearning_tutorial[tune]"' in capsys.readouterr().err


def test_a_page_is_tuned_on_data_identified_by_content(capsys, monkeypatch):
    monkeypatch.setattr(command_line, "mnist_or_sample", datasets.sample_path)
    command = "logistic_sgd --search learning_rate=log:0.01:1 --n-epochs 1 --batch-size 500".split()
    assert study.main([*command, "--n-trials", "2", "--sampler-seed", "1"]) == 0
    out, _err = capsys.readouterr()
    assert "loading" not in out and "python -m deeplearning_tutorial.logistic_sgd --n-epochs 1" in out
    # No trial left a saved model.
    assert [path.name for path in Path.cwd().iterdir()] == ["logistic_sgd.db"]
    shutil.copy(datasets.sample_path(), "elsewhere.npz")
    assert study.main([*command, "--n-trials", "2", "--dataset", "elsewhere.npz"]) == 0


@pytest.mark.parametrize("name", ["what?now", "a#b 100%", "数{x}"])
def test_a_study_of_any_name_is_stored_in_a_file_of_this_name(tmp_path, name):
    for n_trials in ("1", "2"):
        assert tune_scripted("--n-trials", n_trials, "--study", name) == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.db"]
    assert study.main(["scripted", "--show", "--study", name]) == 0


def test_a_study_with_an_unwritable_file_is_rejected(tmp_path, capsys):
    assert tune_scripted("--n-trials", "1", "--study", "a/b") == 1
    assert "storage='a/b.db': there is no folder 'a'; create it first" in capsys.readouterr().err
    assert tune_scripted("--n-trials", "1", "--study", "x" * 300) == 1
    assert "cannot be written: File name too long" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
