import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytensor
import pytest

import deeplearning_tutorial
from deeplearning_tutorial.files.streams import finish, prepare, stderr, stdout
from deeplearning_tutorial.training.checkpoint import read_checkpoint
from deeplearning_tutorial.training.early_stopping import train_with_patience
from deeplearning_tutorial.training.results import TrainingInterrupted
from deeplearning_tutorial.training.run import Run

N_EPOCHS = 3
LINES = [
    f"{line} %"
    for epoch in range(1, N_EPOCHS + 1)
    for line in (
        f"epoch {epoch}, minibatch 2/2, validation error {50 / epoch:f}",
        f"     epoch {epoch}, minibatch 2/2, test error of best model 25.000000",
    )
]
PROGRAM = """
import os, signal, time
import numpy as np, pytensor
from deeplearning_tutorial.training import command_line
from deeplearning_tutorial.training.early_stopping import train_with_patience
from deeplearning_tutorial.files.streams import stdout
from deeplearning_tutorial.training.page import Page

def train(dataset="d", n_epochs=3, *, run=None):
    W = pytensor.shared(np.zeros(2), name="W")
    run.start("train")

    def train_model(index):
        W.set_value(W.get_value() + 1)
        if W.get_value()[0] == 4:
            while "GATE" in os.environ and not os.path.exists(os.environ["GATE"]):
                time.sleep(0.01)
            if "SIGNAL" in os.environ:
                signal.raise_signal(int(os.environ["SIGNAL"]))
        return 0.25

    validate_model = lambda index: 1 / W.get_value()[0]
    print("... training", file=stdout)
    return train_with_patience(
        train_model, validate_model, lambda index: 0.25, 2, 1, 1, n_epochs, 100, {"W": W}, run=run
    )

command_line.run(Page(train, "", summary=lambda dataset: "layers"), "")
"""
FILES = ["--dataset", "d", "--save", "m.npz", "--checkpoint", "c.npz", "--log", "log.csv"]


def environment(**more):
    return os.environ | {"PYTHONPATH": str(Path(deeplearning_tutorial.__file__).parents[1])} | more


@pytest.fixture
def program(tmp_path):
    (tmp_path / "train.py").write_text(PROGRAM)
    return [sys.executable, "-W", "error", "train.py"]


def check_files(folder, iteration=6):
    """Check that a run left complete files, with every validation up to ``iteration``."""
    checkpoint = read_checkpoint(folder / "c.npz")
    assert checkpoint.iteration == iteration and checkpoint.parameters["W"].tolist() == [iteration] * 2
    assert len(checkpoint.result.history) == iteration // 2
    assert len((folder / "log.csv").read_text().splitlines()) == 1 + iteration // 2
    with np.load(folder / "m.npz") as model:
        assert model["W"].tolist() == [iteration // 2 * 2] * 2


BROKEN = [
    ">/dev/full",
    "2>/dev/full",
    ">/dev/full 2>&1",
    "| true",
    "2>&1 | true",
    "| head -2",
    "2>&1 >/dev/null | true",
    ">&-",
    "2>&-",
    "<&- >&- 2>&-",
    ">&- 2>/dev/full",
    ">/dev/full 2>&-",
    "</dev/null >/dev/full 2>&1 &\nwait $!",
]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full and a shell")
@pytest.mark.parametrize("redirection", BROKEN)
def test_training_with_a_broken_stream_writes_its_files_and_succeeds(program, tmp_path, redirection):
    command = f"{' '.join([*program, *FILES])} {redirection}"
    if "|" in redirection:
        command = f"set -o pipefail; {command}"
    ended = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    check_files(tmp_path)
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
    reported = "stdout could not be written: No space left on device" in ended.stderr
    assert reported == (redirection == ">/dev/full")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full and a shell")
@pytest.mark.parametrize(
    "flag, redirection, status",
    [
        ("--json", ">/dev/full", 1),
        ("--json", "| true", 0),
        ("--json", ">&-", 0),
        ("--quiet", ">/dev/full", 1),
        ("--summary", ">/dev/full", 1),
        ("--summary", "| true", 0),
        ("--help", "| true", 0),
        ("--help", ">&-", 0),
    ],
)
def test_a_command_that_only_prints_reports_lost_output(program, tmp_path, flag, redirection, status):
    command = f"set -o pipefail; {' '.join(program)} --dataset d {flag} {redirection}"
    ended = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_training_that_ignores_sighup_survives_its_terminal(program, tmp_path):
    master, slave = os.openpty()
    process = subprocess.Popen(
        ["bash", "-c", f"trap '' HUP; exec {' '.join([*program, *FILES])}"],
        cwd=tmp_path,
        env=environment(GATE=str(tmp_path / "gate")),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    printed = b""
    while b"epoch 1" not in printed:
        printed += os.read(master, 1000)
    os.close(master)
    (tmp_path / "gate").touch()
    assert process.wait(timeout=120) == 0
    check_files(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize(
    "signalled, redirection",
    [
        ("SIGINT", "2>&1 | true"),
        ("SIGINT", ">/dev/full 2>&1"),
        ("SIGINT", "<&- >&- 2>&-"),
        ("SIGTERM", "2>&1 | true"),
        ("SIGTERM", ">/dev/null 2>&1"),
    ],
)
def test_a_signal_writes_a_checkpoint_even_with_broken_streams(
    program, tmp_path, ctrl_c, redirection, signalled
):
    command = f"set -o pipefail; {' '.join([*program, *FILES])} {redirection}"
    number = str(int(getattr(signal, signalled)))
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment(SIGNAL=number), timeout=120)
    assert ended.returncode == 130
    check_files(tmp_path, iteration=4)


def test_a_signal_between_validations_saves_the_current_iteration(program, tmp_path, ctrl_c):
    (tmp_path / "train.py").write_text(PROGRAM.replace("== 4", "== 3"))
    options = {"env": environment(SIGNAL="2"), "capture_output": True, "text": True, "timeout": 120}
    ended = subprocess.run([*program, *FILES], cwd=tmp_path, **options)
    assert ended.returncode == 130 and "Interrupted after iteration 3." in ended.stderr
    assert read_checkpoint(tmp_path / "c.npz").iteration == 3


class Odd:
    """Not even a stream."""


class Failing(io.StringIO):
    """The stream of a window that was closed."""

    def write(self, text):
        raise RuntimeError("main thread is not in main loop")

    flush = isatty = fileno = write


class Unsure(io.StringIO):
    """A stream with ``write`` alone."""

    isatty = fileno = flush = property()


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def detached():
    stream = io.TextIOWrapper(io.BytesIO())
    stream.detach()
    return stream


STREAMS = [lambda: None, Odd, Failing, Unsure, closed, detached, io.BytesIO]


@pytest.fixture(params=STREAMS, ids=["None", "odd", "failing", "unsure", "closed", "detached", "bytes"])
def odd_stream(request):
    return request.param()


def add_one(W):
    W.set_value(W.get_value() + 1)


def run(folder, progress=True, update=add_one):
    W = pytensor.shared(np.zeros(2), name="W")

    def train_model(index):
        update(W)
        return 0.25

    return train_with_patience(
        train_model,
        lambda index: 1 / W.get_value()[0],
        lambda index: 0.25,
        *(2, 1, 1),
        N_EPOCHS,
        100,
        {"W": W},
        run=Run(folder / "m.npz", folder / "c.npz", log=folder / "log.csv", progress=progress).start("train"),
    )


@pytest.mark.parametrize("which", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_training_writes_its_files_whatever_replaces_a_stream(tmp_path, capsys, odd_stream, which):
    with contextlib.ExitStack() as redirected:
        if "stdout" in which:
            redirected.enter_context(contextlib.redirect_stdout(odd_stream))
        if "stderr" in which:
            redirected.enter_context(contextlib.redirect_stderr(odd_stream))
        result = run(tmp_path)
    assert len(result.history) == N_EPOCHS and not result.write_errors
    check_files(tmp_path)
    out, err = capsys.readouterr()
    # print(file=None) would write to stdout; text for stderr must never go there.
    assert out.splitlines() == ([] if "stdout" in which else LINES)
    assert ("100%" in err) == ("stderr" not in which)


def test_ctrl_c_in_a_callers_process_ends_with_files_and_result_whatever_replaces_its_streams(
    tmp_path, ctrl_c, odd_stream
):
    def add_one_and_interrupt(W):
        add_one(W)
        if W.get_value()[0] == 4:
            ctrl_c()

    with contextlib.redirect_stdout(odd_stream), contextlib.redirect_stderr(odd_stream):
        with pytest.raises(TrainingInterrupted, match="Interrupted after iteration 4.") as caught:
            run(tmp_path, update=add_one_and_interrupt)
    assert len(caught.value.result.history) == 2
    check_files(tmp_path, iteration=4)


def test_threads_train_with_broken_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Failing())
    monkeypatch.setattr(sys, "stderr", None)
    folders = [tmp_path / "one", tmp_path / "two"]
    threads = []
    for folder in folders:
        folder.mkdir()
        threads.append(threading.Thread(target=run, args=[folder]))
        threads[-1].start()
    for thread, folder in zip(threads, folders, strict=True):
        thread.join()
        check_files(folder)


@pytest.mark.parametrize(
    "encoding, expected",
    [
        ("ascii", rb"\u6570 \u2013 \xe9 \udce9"),
        ("utf-8", "数 – é ".encode() + rb"\udce9"),
        ("cp1252", rb"\u6570 " + b"\x96 \xe9 " + rb"\udce9"),
    ],
)
def test_characters_missing_from_the_encoding_are_escaped(monkeypatch, encoding, expected):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    print("数 – é \udce9", file=stdout, flush=True)
    assert written.getvalue().rstrip() == expected


def test_a_validation_is_printed_after_its_checkpoint_is_written(tmp_path, monkeypatch):
    seen = []

    class Watcher(io.StringIO):
        def write(self, text):
            if "validation error" in text:
                seen.append(read_checkpoint(tmp_path / "c.npz").iteration)
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Watcher())
    run(tmp_path)
    assert seen == [2, 4, 6] and sys.stdout.getvalue().splitlines() == LINES


def test_each_write_looks_up_the_current_stream(capsys):
    with contextlib.redirect_stdout(io.StringIO()) as redirected:
        print("within", file=stdout)
    print("after", file=stdout)
    print("aside", file=stderr)
    assert redirected.getvalue() == "within\n"
    assert capsys.readouterr() == ("after\n", "aside\n")


def test_lost_output_is_reported_unless_the_reader_closed_the_pipe(monkeypatch, capsys):
    class Lost(io.StringIO):
        def __init__(self, error):
            self.error = error

        def write(self, text):
            raise self.error

    for error, status, message in [
        (OSError(28, "No space left on device"), 1, "stdout could not be written: No space left on device\n"),
        (RuntimeError("gone"), 1, "stdout could not be written: gone\n"),
        (BrokenPipeError(32, "Broken pipe"), 0, ""),
    ]:
        prepare()
        monkeypatch.setattr(sys, "stdout", Lost(error))
        print("digits", file=stdout)
        assert finish() == status
        assert capsys.readouterr().err == message
    prepare()
    assert finish() == 0


IMPORTING = """
import sys
sys.stderr = sys.stdout = None
from deeplearning_tutorial import evaluate_lenet5, test_mlp
import deeplearning_tutorial.training.early_stopping as home
del home.train_with_patience, sys.modules["deeplearning_tutorial.logistic_sgd"]
try:
    from deeplearning_tutorial import LogisticRegression
except ImportError as error:
    sys.exit(3 if "train_with_patience" in str(error) else 1)
"""


def test_the_package_can_be_imported_without_streams():
    ended = subprocess.run([sys.executable, "-c", IMPORTING], env=environment(), timeout=120)
    assert ended.returncode == 3


def test_the_import_error_of_a_page_names_its_cause(monkeypatch):
    def broken(name):
        raise AttributeError("'NoneType' object has no attribute 'isatty'")

    monkeypatch.setattr(deeplearning_tutorial, "import_module", broken)
    with pytest.raises(ImportError, match="the pages cannot be imported: 'NoneType' object has no"):
        deeplearning_tutorial.LogisticRegression  # noqa: B018
