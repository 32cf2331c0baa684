"""Training is killed or interrupted from outside, as a user or a machine does it, and resumed."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytensor
import pytest

import deeplearning_tutorial
from deeplearning_tutorial.datasets import sample_path
from deeplearning_tutorial.logistic_sgd import sgd_optimization_mnist
from deeplearning_tutorial.training.checkpoint import read_checkpoint
from deeplearning_tutorial.training.run import Run

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")

N_KILLS = int(os.environ.get("DEEPLEARNING_TUTORIAL_KILLS", "2"))
N_EPOCHS = 150


def train(folder, resume=False):
    """Train in this process; return the result and the files, in forms that compare bitwise."""
    with pytensor.config.change_flags(floatX="float32"):
        result = sgd_optimization_mnist(
            n_epochs=N_EPOCHS,
            dataset=sample_path(),
            run=Run(folder / "m.npz", folder / "c.npz", resume, folder / "run.csv"),
        )
    return ending(result), state(folder / "c.npz"), (folder / "m.npz").read_bytes(), logged(folder)


def ending(result):
    best = {name: value.tobytes() for name, value in result.best_parameters.items()}
    return replace(result, seconds=0, best_parameters=best)


def state(path):
    checkpoint = read_checkpoint(path)
    parameters = {name: value.tobytes() for name, value in checkpoint.parameters.items()}
    return replace(checkpoint, parameters=parameters, result=ending(checkpoint.result))


def logged(folder):
    with open(folder / "run.csv", newline="") as file:
        return [row[:-1] for row in csv.reader(file)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture
def start(tmp_path, ctrl_c):
    """Start the same run as a script, and return it once it has printed a line that starts as given."""

    def start(line):
        flags = "--floatX float32 --save m.npz --checkpoint c.npz --log run.csv --resume".split()
        command = [sys.executable, "-m", "deeplearning_tutorial.logistic_sgd", *flags]
        process = subprocess.Popen(
            [*command, "--n-epochs", str(N_EPOCHS), "--dataset", sample_path()],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # So small that the process cannot run far ahead of its reader, let alone end.
            pipesize=4096,
            bufsize=1024,
            env=os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(deeplearning_tutorial.__file__))},
        )
        while not process.stdout.readline().startswith(line.encode()):
            assert process.poll() is None, process.stderr.read()
        return process

    processes = []
    yield lambda line: processes.append(start(line)) or processes[-1]
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("n", range(N_KILLS))
def test_killed_at_any_moment_it_resumes_to_the_same_end(start, uninterrupted, tmp_path, n):
    rng = random.Random(n)
    epoch = rng.randrange(N_EPOCHS // 3)
    process = start(f"epoch {epoch}," if epoch else "... training")
    # An epoch and its three files take about two milliseconds.
    time.sleep(rng.uniform(0, 0.004))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    # Shown by -s; before the first checkpoint there is none.
    path = tmp_path / "c.npz"
    left = len(list(tmp_path.glob(".*.part")))
    print("killed after iteration", state(path).iteration if path.exists() else 0, "writing" if left else "")
    assert train(tmp_path, resume=True) == uninterrupted


def test_ctrl_c_ends_with_status_130_and_resumes_to_the_same_end(start, uninterrupted, tmp_path):
    process = start("epoch 3,")
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    err = err.decode()
    assert process.returncode == 130
    assert "Interrupted after iteration " in err and "Best validation score of " in err
    assert err.endswith(
        "The best model is in m.npz. The checkpoint is c.npz; resume to continue from there.\n"
    )
    assert "Traceback" not in err
    assert state(tmp_path / "c.npz").iteration < 5 * N_EPOCHS
    assert train(tmp_path, resume=True) == uninterrupted
