import json
import math
import os
import re
import runpy
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytensor
import pytest

from deeplearning_tutorial import convolutional_mlp, datasets, lenet5, logistic_sgd, mlp
from deeplearning_tutorial.datasets import download
from deeplearning_tutorial.training import command_line
from deeplearning_tutorial.training.page import Page
from deeplearning_tutorial.training.results import (
    DivergenceError,
    TrainingInterrupted,
    TrainingResult,
    Validation,
)
from deeplearning_tutorial.training.run import Run

PAGES = {"logistic_sgd": logistic_sgd, "mlp": mlp, "convolutional_mlp": convolutional_mlp, "lenet5": lenet5}
PUBLISHED = {"validation error": 7.5, "test error": 7.489583, "epochs": 74, "iteration": 2070000}
FORMS = {"sine": math.sin, "cosine": math.cos}
calls = []


def train(rate=0.5, n_steps=3, dataset="mnist.pkl.gz", sizes=(2, 7), *, form=math.sin, run=None):
    """Train nothing.

    Parameters
    ----------
    rate : float
        Step size, at most 100 %.
    n_steps : int
        Steps.
    dataset : path
        Digits.
    sizes : tuple of int
        Two sizes.
    form : callable
        Which curve.
    run : Run, optional
        Its options.
    """
    call = {"rate": rate, "n_steps": n_steps, "dataset": dataset, "sizes": sizes, "form": form}
    call |= {"save": run.save, "resume": run.resume, "progress": run.progress}
    calls.append(call | {"floatX": pytensor.config.floatX})
    run.start("train", rate=rate, n_steps=n_steps, sizes=sizes)
    if rate < 0:
        raise ValueError(f"rate={rate} is negative; use e.g. rate=0.5")
    if n_steps == 13:
        raise FileNotFoundError(2, "No such file", "steps")
    if n_steps == 14:
        raise DivergenceError("the cost is nan at iteration 7", TrainingResult())
    if n_steps == 15:
        raise TrainingInterrupted("Interrupted after iteration 7.", TrainingResult(minibatches=(5, 2, 1)))
    if n_steps == 16:
        raise KeyboardInterrupt
    print("epoch 1")
    history = [Validation(1, 5, 17, 0.5, 0.075, 0.0825, 1.5)]
    result = TrainingResult(0.075, 17, 0.0825, epochs=4, seconds=2.0, history=history, minibatches=(5, 2, 1))
    if n_steps == 17:
        result.write_errors = ["the log could not be written"]
    return result


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Call the command line with a data set that lies in the working directory, and restore what it sets."""
    calls.clear()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist.pkl.gz").touch()

    def run(*arguments, minibatches=(5, 2, 1), is_on_mnist=True):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        monkeypatch.setattr(Run, "is_on_mnist", lambda self: is_on_mnist)
        page = Page(train, "", published=PUBLISHED, minibatches=minibatches, by_name={"form": FORMS})
        command_line.run(page, "A script.")
        [call] = calls
        return call

    with pytensor.config.change_flags(floatX=pytensor.config.floatX):
        yield run


def test_without_flags_the_functions_own_defaults_hold(run, tmp_path):
    call = run()
    assert call.pop("floatX") in ("float32", "float64")
    expected = {"rate": 0.5, "n_steps": 3, "sizes": (2, 7), "form": math.sin, "save": None}
    expected |= {"resume": False, "progress": True}
    assert call == expected | {"dataset": tmp_path / "mnist.pkl.gz"}


def test_every_parameter_has_a_flag(run):
    flags = "--rate 0.25 --n-steps 7 --dataset d.npz --sizes 4 5 --form cosine --save m.npz --floatX float64"
    call = run(*flags.split(), "--checkpoint", "c.npz", "--resume")
    assert call == {
        "rate": 0.25,
        "n_steps": 7,
        "dataset": "d.npz",
        "sizes": [4, 5],
        "form": math.cos,
        "save": "m.npz",
        "resume": True,
        "progress": True,
        "floatX": "float64",
    }


def test_help_shows_the_docstring_and_every_flag_with_its_meaning_and_default(run, capsys):
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "A script." in out
    assert "--rate RATE Step size, at most 100 %. (default: 0.5)" in out
    assert "--n-steps N_STEPS Steps. (default: 3)" in out
    assert "--dataset PATH Digits. (default: mnist.pkl.gz)" in out
    assert "--sizes SIZES SIZES Two sizes. (default: 2 7)" in out
    assert "--form {sine,cosine} Which curve. (default: sine)" in out
    # Documented once, by `Run`.
    assert "--save PATH ``.npz`` file for the best model. (default: none)" in out
    assert "--resume Continue from" in out and "is no such file yet. (default: no)" in out
    assert "--quiet No progress bar" in out and "--json Write the result" in out
    assert "--floatX {float32,float64} Precision (default: float32" in out
    assert "--progress" not in out
    assert not calls


@pytest.mark.parametrize("name", PAGES)
def test_a_scripts_help_names_every_parameter(monkeypatch, capsys, name):
    module = PAGES[name]
    function = module.page.train
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        command_line.run(module.page, module.__doc__)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert module.__doc__ in out
    for parameter in function.__code__.co_varnames[: function.__code__.co_argcount]:
        assert f"  --{parameter.replace('_', '-')} " in out
    for path in ("save", "checkpoint", "log"):
        assert f"  --{path} PATH" in out
    assert ("(default: best_model.npz)" in " ".join(out.split())) == (name == "logistic_sgd")
    assert ("  --seed SEED" in out) == (name != "logistic_sgd")
    assert "  --resume" in out and "  --floatX {float32,float64}" in out


@pytest.mark.parametrize(
    "name, published, minibatches",
    [
        # The tutorial's figures; and 50,000, 10,000 and 10,000 images in whole minibatches of 600, 20 or 500.
        ("logistic_sgd", {"validation error": 7.5, "test error": 7.489583, "epochs": 74}, (83, 16, 16)),
        ("mlp", {"validation error": 1.69, "test error": 1.65, "iteration": 2070000}, (2500, 500, 500)),
        (
            "convolutional_mlp",
            {"validation error": 0.91, "test error": 0.92, "iteration": 17800},
            (100, 20, 20),
        ),
        # LeCun et al., 1998, after 20 epochs of 60,000 images.
        ("lenet5", {"test error": 0.95}, (1000, 200, 200)),
    ],
)
def test_each_script_hands_over_its_page_with_the_published_figures(
    monkeypatch, name, published, minibatches
):
    handed = []
    monkeypatch.setattr(command_line, "run", lambda *args: handed.append(args))
    module = PAGES[name]
    runpy.run_path(module.__file__, run_name="__main__")
    [(page, doc)] = handed
    assert page.train.__name__ == module.page.train.__name__ and page.script == name
    assert doc == module.__doc__ and f"python -m deeplearning_tutorial.{name}" in doc
    assert (page.published, page.minibatches) == (published, minibatches)
    assert (page.summary is not None) == (name == "lenet5")


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--rate", "-1"], "ValueError: rate=-1.0 is negative; use e.g. rate=0.5"),
        (["--n-steps", "13"], "FileNotFoundError: [Errno 2] No such file: 'steps'"),
        (["--n-steps", "14"], "DivergenceError: the cost is nan at iteration 7"),
        (["--n-steps", "17"], "the log could not be written"),
    ],
)
def test_a_refused_value_ends_the_run_with_one_line(run, arguments, line):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    # What sys.exit is given goes to stderr, with exit status 1.
    assert ended.value.code == line


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--rate", "fast"], "argument --rate: invalid float value: 'fast'"),
        (["--n-steps", "1.5"], "argument --n-steps: invalid int value: '1.5'"),
        (["--sizes", "4"], "argument --sizes: expected 2 arguments"),
        (["--floatX", "float16"], "argument --floatX: invalid choice: 'float16'"),
        (["--steps", "3"], "unrecognized arguments: --steps 3"),
        (["--progress"], "unrecognized arguments: --progress"),
    ],
)
def test_a_flag_that_makes_no_sense_is_told_after_the_usage(run, capsys, arguments, told):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2 and not calls
    *usage, last = capsys.readouterr().err.splitlines()
    assert usage[0].startswith("usage: train.py") and last.startswith(f"train.py: error: {told}")


@pytest.mark.parametrize(
    "name, arguments, line",
    [
        ("logistic_sgd", ["--batch-size", "0"], "ValueError: batch_size=0 is not a positive integer; use "),
        ("mlp", ["--L2-reg", "-1"], "ValueError: L2_reg=-1.0 is not a non-negative finite number; use "),
        ("convolutional_mlp", ["--save", "no/m.npz"], "FileNotFoundError: save='no/m.npz': there is no "),
    ],
)
@pytest.mark.parametrize("as_module", [False, True])
def test_a_script_tells_a_wrong_value_in_one_line_without_a_traceback(
    run_script, tmp_path, name, arguments, line, as_module
):
    ended = run_script(name, *arguments, "--dataset", "mnist_5k.npz", cwd=tmp_path, as_module=as_module)
    assert ended.returncode == 1 and ended.stdout == ""
    [told] = ended.stderr.splitlines()
    assert told.startswith(line)
    assert os.listdir(tmp_path) == []


PRECISION = """
import sys, pytensor
from deeplearning_tutorial.training import command_line
from deeplearning_tutorial.training.page import Page
def train(dataset="d", *, run=None):
    '''Train.

    Parameters
    ----------
    dataset : path
        Digits.
    run : Run, optional
        Options.
    '''
    print(pytensor.config.floatX)
    raise ValueError
command_line.run(Page(train, ""), "")
"""


@pytest.mark.parametrize(
    "flags, arguments, floatX",
    [
        ("", [], "float32"),
        ("floatX=float64", [], "float64"),
        ("floatX=float64", ["--floatX", "float32"], "float32"),
        ("", ["--floatX", "float64"], "float64"),
    ],
)
def test_training_is_in_float32_unless_flags_or_arguments_say_otherwise(flags, arguments, floatX, tmp_path):
    # PyTensor reads the user's configuration once, when it is imported.
    env = os.environ | {"PYTENSOR_FLAGS": flags, "PYTENSORRC": str(tmp_path / "none")}
    env["PYTHONPATH"] = str(Path(datasets.__file__).parents[2])
    command = [sys.executable, "-c", PRECISION, "--dataset", "d", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert ended.stdout == f"{floatX}\n", ended.stderr


THREADS = """
import sys, numba
from threadpoolctl import threadpool_info
from deeplearning_tutorial.training import command_line
from deeplearning_tutorial.training.page import Page

def train(dataset="d", *, run=None):
    '''Train.

    Parameters
    ----------
    dataset : path
        Data.
    run : Run, optional
        Options.
    '''
    blas = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
    sys.exit(f"{numba.get_num_threads()} {blas}")

command_line.run(Page(train, ""), "")
"""


def test_threads_are_those_of_the_kernels_and_of_blas():
    env = os.environ | {"NUMBA_NUM_THREADS": "3", "PYTHONPATH": str(Path(datasets.__file__).parents[2])}
    command = [sys.executable, "-c", THREADS, "--dataset", "d"]
    for threads in ("1", "2"):
        ended = subprocess.run(
            [*command, "--threads", threads], capture_output=True, text=True, timeout=60, env=env
        )
        assert ended.stderr == f"{threads} {{{threads}}}\n"
    ended = subprocess.run([*command, "--threads", "4"], capture_output=True, text=True, timeout=60, env=env)
    assert "invalid choice: 4" in ended.stderr


def test_the_published_figures_stand_beside_this_runs_after_a_run_with_defaults(run, capsys):
    run()
    assert capsys.readouterr() == (
        "epoch 1\n",
        "\n"
        "                     published    this run\n"
        "validation error      7.500000    7.500000 %\n"
        "test error            7.489583    8.250000 %\n"
        "epochs                      74           4\n"
        "iteration              2070000          17\n",
    )


@pytest.mark.parametrize("arguments", [["--dataset", "d"], ["--save", "m.npz"], ["--floatX", "float32"]])
def test_where_the_data_lies_and_what_is_kept_does_not_matter_to_the_comparison(run, capsys, arguments):
    run(*arguments)
    assert "published" in capsys.readouterr().err


def test_other_data_under_mnists_names_are_not_compared(run, capsys):
    run(is_on_mnist=False)
    told = "These data are not MNIST's, so the figures are not comparable with the tutorial's."
    assert capsys.readouterr() == ("epoch 1\n", f"\n{told}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rate", "0.25"],
        ["--sizes", "2", "8"],
        ["--rate", "0.5"],
    ],
)
def test_with_other_arguments_nothing_is_compared(run, capsys, arguments):
    run(*arguments)
    assert capsys.readouterr() == ("epoch 1\n", "")


def test_a_summary_is_all_that_is_printed_and_nothing_is_trained(no_mnist, monkeypatch, capsys):
    calls.clear()
    monkeypatch.chdir(no_mnist)
    monkeypatch.setattr(sys, "argv", ["train.py", "--summary", "--n-steps", "7"])
    with pytensor.config.change_flags(floatX="float32"):
        command_line.run(Page(train, "", summary=lambda **arguments: f"layers of {arguments}"), "")
    assert capsys.readouterr() == ("layers of {'n_steps': 7}\n", "") and not calls


def test_a_summary_of_what_does_not_fit_ends_with_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lenet5.py", "--summary", "--filter-sizes", "7", "5", "5"])
    with pytensor.config.change_flags(floatX="float32"), pytest.raises(SystemExit, match="C5 are 5x5, S4"):
        command_line.run(lenet5.page, "")


def test_with_less_data_nothing_is_compared(run, capsys):
    run(minibatches=(83, 16, 16))
    assert capsys.readouterr() == ("epoch 1\n", "")


def test_quiet_leaves_the_best_score_alone(run, capsys):
    assert run("--quiet")["progress"] is False
    assert capsys.readouterr() == (
        "Best validation score of 7.500000 % obtained at iteration 17, with test performance 8.250000 %\n",
        "",
    )


RESULT = {
    "script": "test_command_line",
    "arguments": {
        "dataset": "d",
        "rate": 0.25,
        "n_steps": 3,
        "sizes": [2, 7],
        "floatX": "float32",
        "mode": "NUMBA",
        "save": None,
        "checkpoint": None,
        "resume": False,
        "log": None,
    },
    "interrupted": False,
    "best_validation_error": 0.075,
    "best_iteration": 17,
    "test_error": 0.0825,
    "epochs": 4,
    "seconds": 2.0,
    "minibatches": [5, 2, 1],
    "write_errors": [],
    "history": [
        {
            "epoch": 1,
            "minibatch": 5,
            "iteration": 17,
            "cost": 0.5,
            "validation_error": 0.075,
            "test_error": 0.0825,
            "seconds": 1.5,
        }
    ],
}


@pytest.mark.parametrize("quiet", [True, False])
def test_json_is_all_there_is_on_stdout(run, capsys, quiet):
    run("--json", "--rate", "0.25", "--dataset", "d", "--floatX", "float32", *["--quiet"] * quiet)
    out, err = capsys.readouterr()
    assert json.loads(out) == RESULT
    assert err == ("" if quiet else "epoch 1\n")


def test_json_has_null_where_nothing_was_measured(run, capsys):
    with pytest.raises(SystemExit):
        run("--json", "--n-steps", "15")
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["interrupted"] and result["best_validation_error"] is result["test_error"] is None
    assert result["arguments"]["dataset"].endswith("mnist.pkl.gz")


@pytest.mark.parametrize("arguments", [[], ["--quiet"]])
@pytest.mark.parametrize("n_steps, told", [(15, "Interrupted after iteration 7."), (16, "Interrupted")])
def test_ctrl_c_ends_with_status_130_and_what_was_reached(run, capsys, n_steps, told, arguments):
    with pytest.raises(SystemExit) as ended:
        run("--n-steps", str(n_steps), *arguments)
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", f"{told}\n")


@pytest.fixture
def no_mnist(monkeypatch, tmp_path):
    """MNIST neither on this machine nor on its only mirror, a port of this machine where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setattr(download, "MIRRORS", (f"http://127.0.0.1:{port}/",))
    monkeypatch.setattr(datasets, "_own_folder", lambda: tmp_path / "own")
    monkeypatch.delenv("DEEPLEARNING_TUTORIAL_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_where_mnist_cannot_be_had_training_goes_on_with_the_sample_after_a_notice(
    run, no_mnist, monkeypatch, capsys
):
    monkeypatch.chdir(no_mnist)
    assert run()["dataset"] == datasets.sample_path()
    out, err = capsys.readouterr()
    assert out == "epoch 1\n"
    assert "http://127.0.0.1:" in err and "refused" in err
    [notice] = [line for line in err.splitlines() if line.startswith("NOTICE")]
    assert "the sample of 5,000 digits" in notice and str(datasets.sample_path()) in notice
    assert notice.endswith("Its figures are not comparable with the tutorial's.")


def test_a_data_set_that_was_asked_for_is_never_replaced_by_the_sample(
    no_mnist, monkeypatch, capsys
):
    monkeypatch.chdir(no_mnist)
    monkeypatch.setattr(sys, "argv", ["mlp.py", "--dataset", "mnist.pkl.gz"])
    with pytensor.config.change_flags(floatX="float32"), pytest.raises(SystemExit) as ended:
        command_line.run(mlp.page, mlp.__doc__)
    assert ended.value.code.startswith("DatasetNotFoundError: MNIST is not on this machine")
    out, err = capsys.readouterr()
    assert out == "" and "NOTICE" not in err


@pytest.mark.parametrize("mode", ["JAX", "PYTORCH"])
def test_a_mode_whose_package_is_missing_says_how_to_install_it(run, monkeypatch, mode):
    monkeypatch.setattr(command_line.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=rf"--mode {mode} needs .*pip install -e '.\[{mode.lower()}\]'"):
        run("--mode", mode)
    assert not calls


@pytest.fixture(scope="module")
def first_epoch(tmp_path_factory):
    """Train a small network on the sample as a user does; return what goes to stdout but for the speed."""

    @cache
    def train(script, sizes, mode):
        arguments = f"--mode {mode} --dataset mnist_5k.npz --n-epochs 1 --batch-size 250 {sizes}".split()
        ended = subprocess.run(
            [sys.executable, "-m", f"deeplearning_tutorial.{script}", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path_factory.mktemp("run"),
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        return re.sub(r"[\d.]+ epochs/sec", "", ended.stdout)

    return train


@pytest.mark.parametrize(
    "script, sizes, mode",
    [
        pytest.param("convolutional_mlp", "--nkerns 2 3", "JAX", marks=pytest.mark.needs("jax")),
        pytest.param("convolutional_mlp", "--nkerns 2 3", "PYTORCH", marks=pytest.mark.needs("torch")),
        # LeNet would compile for a minute where nothing is fused; `test_callers.py` has its layer so.
        ("logistic_sgd", "", "FAST_RUN"),
    ],
)
def test_a_script_prints_the_same_under_each_back_end(first_epoch, script, sizes, mode):
    printed = first_epoch(script, sizes, mode)
    assert "validation error" in printed
    assert printed == first_epoch(script, sizes, "NUMBA")


def test_mnist_takes_the_place_of_no_other_default(monkeypatch):
    def train(dataset="stars", scaling=None, kind=None, *, run=None):
        raise ValueError(f"{dataset} {scaling!r} {kind!r}")

    monkeypatch.setattr(command_line, "mnist_or_sample", lambda: pytest.fail("MNIST is looked for"))
    monkeypatch.setattr(sys, "argv", ["train.py", "--scaling", "none", "--kind", "unit"])
    with pytest.raises(SystemExit) as ended, pytensor.config.change_flags(floatX=pytensor.config.floatX):
        command_line.run(Page(train, ""), "")
    # It has no docstring, either; and the text none is None where that is the default.
    assert ended.value.code == "ValueError: stars None 'unit'"
