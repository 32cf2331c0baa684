import os
import re
import subprocess
import sys
from collections import defaultdict

import pytest
from numba.core import event

from deeplearning_tutorial.datasets import sample_path
from deeplearning_tutorial.nnet.dispatch.numba.ahead import LACKING
from deeplearning_tutorial.nnet.dispatch.numba.machine_code import COMPILING
from deeplearning_tutorial.training import compilation
from deeplearning_tutorial.training.compilation import CompilationProgress


@pytest.fixture
def progress():
    progress = CompilationProgress()
    progress.start()
    yield progress
    progress.stop()


def announce(*names):
    event.broadcast(event.Event(LACKING, event.EventStatus.START, data={"names": names}))


def compile_kernel(name):
    return event.trigger_event(COMPILING, data={"name": name})


@pytest.fixture(autouse=True)
def nothing_else_listens(monkeypatch):
    # Runs that other tests have left unfinished would speak as well.
    monkeypatch.setattr(event, "_registered", defaultdict(list))


def test_whole_lines_say_what_is_compiled_how_far_and_how_long(progress, capsys, monkeypatch):
    monkeypatch.setattr(compilation, "_PAUSE", 0)
    announce("a.b.first-float32-1", "a.b.second-float32-1")
    with compile_kernel("a.b.first-float32-1"), event.trigger_event("numba:compile"):
        pass
    with event.trigger_event("numba:compile"), event.trigger_event("numba:compile"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\d+ s,", "N s,", line) for line in lines] == [
        "compiling 2 kernels for this processor: N s, and only this first time",
        "compiling kernel 1 of 2, first: N s, and only this first time",
        "compiling the functions between the kernels, 1 so far: N s, and only this first time",
        "compiling the functions between the kernels, 2 so far: N s, and only this first time",
    ]


def test_a_line_comes_at_once_and_others_after_a_pause(progress, capsys):
    for name in "abc":
        with compile_kernel(name):
            pass
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_terminal_gets_one_line_that_changes(progress, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    announce("a", "b")
    with compile_kernel("b"):
        pass
    text = capsys.readouterr().err
    assert "2 kernels" in text and "kernel 1 of 2, b" in text and "\n" not in text
    progress.stop()
    # The line is removed.
    assert capsys.readouterr().err.endswith("\r")


def test_a_second_start_does_not_speak_twice(progress, capsys):
    progress.start()
    announce("a")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_nothing_is_said_after_the_end_nor_by_what_has_gone(capsys):
    progress = CompilationProgress()
    progress.start()
    progress.stop()
    announce("a")
    progress.start()
    del progress
    announce("a")
    assert capsys.readouterr().err == ""


def run(folder, *arguments):
    command = [sys.executable, "-W", "error", "-m", "deeplearning_tutorial.logistic_sgd", *arguments]
    finished = subprocess.run(
        [*command, "--dataset", str(sample_path()), "--batch-size", "100"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env=os.environ | {"PYTENSOR_FLAGS": f"base_compiledir={folder / 'compiled'},cxx="},
    )
    assert finished.returncode == 0, finished.stderr
    return finished


def test_precompile_compiles_all_that_training_needs_and_writes_nothing_else(tmp_path):
    finished = run(tmp_path, "--precompile")
    assert finished.stdout == "Compiled: training starts at once from now on\n"
    assert finished.stderr.startswith("compiling ")
    assert [path.name for path in tmp_path.iterdir()] == ["compiled"]
    compiled = {path for path in (tmp_path / "compiled").rglob("*") if path.suffix in (".nbc", ".o")}
    finished = run(tmp_path, "--n-epochs", "1", "--save", "model.npz")
    assert "compiling the" not in finished.stderr and "compiling kernel" not in finished.stderr
    assert {path for path in (tmp_path / "compiled").rglob("*") if path.suffix in (".nbc", ".o")} == compiled
    assert "epoch 1, minibatch" in finished.stdout and (tmp_path / "model.npz").exists()


def test_precompile_can_be_quiet(tmp_path):
    finished = run(tmp_path, "--precompile", "--quiet")
    assert finished.stdout == ""
