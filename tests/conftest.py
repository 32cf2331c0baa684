import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytensor
import pytest
from calling import with_run
from machine import HAS
from threadpoolctl import threadpool_limits

import deeplearning_tutorial
from deeplearning_tutorial.datasets import formats, sample_path
from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import REGISTER_BYTES
from deeplearning_tutorial.training.parameters import copy_parameters

PACKAGE = Path(deeplearning_tutorial.__file__).parent
NO_SKIPS = "DEEPLEARNING_TUTORIAL_NO_SKIPS" in os.environ


def pytest_report_header():
    return f"kernels: vectors of {REGISTER_BYTES} bytes"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    lacking = [thing for marker in item.iter_markers("needs") for thing in marker.args if not HAS[thing]()]
    message = f"this machine lacks {', '.join(lacking)}"
    if lacking and NO_SKIPS:
        pytest.fail(message, pytrace=False)
    elif lacking:
        pytest.skip(message)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Fail what is skipped in another way, but for Windows, which lacks the signals of some tests."""
    report = yield
    allowed = hasattr(report, "wasxfail") or os.name == "nt" or any(item.iter_markers("needs"))
    if report.skipped and not allowed:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} is skipped; mark it with needs, and add what it needs to machine.py"
    return report


@pytest.fixture(scope="session", autouse=True)
def no_c_compiler():
    """Let PyTensor find no C compiler, as on most users' machines: with one, it also compiles constants."""
    with pytensor.config.change_flags(cxx=""):
        yield


@pytest.fixture(scope="session", autouse=True)
def single_blas_thread():
    """Compute what is expected on one thread: more would only wait for each other in small products."""
    import scipy.linalg  # noqa: F401  only libraries that are loaded can be limited

    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture
def plain_inner_graphs():
    """Let perform of PyTensor's Ops with a graph inside, such as its softmax, not compile that with Numba.

    They compile it in the default mode: functions that are for Numba must name their mode.
    """
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        yield


@pytest.fixture(scope="session")
def sample():
    """The shipped digits as NumPy arrays: (x, y) to train, validate and test, x in float64."""
    return [(x.astype("float64"), y) for x, y in formats.read_splits(sample_path())]


@pytest.fixture(scope="session")
def record():
    """Train in this process in float32, keep what is printed, and look over the loop's shoulder."""

    def record(module, train, **arguments):
        run = SimpleNamespace(costs=[])
        loop = module.train_with_patience

        def watched_loop(train_model, *models_and_sizes, parameters, **options):
            run.initial = copy_parameters(parameters)

            def watched_train_model(index):
                cost = train_model(index)
                run.costs.append(float(cost))
                return cost

            return loop(watched_train_model, *models_and_sizes, parameters=parameters, **options)

        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            pytensor.config.change_flags(floatX="float32"),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr(module, "train_with_patience", watched_loop)
            run.result = train(**with_run(arguments))
        run.stdout, run.stderr = out.getvalue(), err.getvalue()
        return run

    return record


@pytest.fixture(scope="session")
def run_script():
    """Run a script of the package in a process of its own, by its path or as a module."""

    def run_script(name, *arguments, cwd, as_module=True, flags="", **environment):
        script = ["-m", f"deeplearning_tutorial.{name}"] if as_module else [str(PACKAGE / f"{name}.py")]
        flags = ",".join(filter(None, (os.environ.get("PYTENSOR_FLAGS"), flags)))
        return subprocess.run(
            [sys.executable, "-W", "error", *script, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTENSOR_FLAGS": flags} | environment,
        )

    return run_script


@pytest.fixture
def ctrl_c():
    """Interrupt this process as Ctrl-C does, for which processes started meanwhile listen, too.

    A shell starts what it puts in the background with the signal ignored, and Python leaves it so.
    """
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, inherited)


@pytest.fixture
def no_compiling(monkeypatch):
    """Fail where a test would compile."""

    def refuse(*args, **kwargs):
        raise AssertionError("something is compiled")

    monkeypatch.setattr(pytensor, "function", refuse)


@pytest.fixture
def no_work(no_compiling, monkeypatch):
    """Fail where a test would read data or compile."""

    def refuse(*args, **kwargs):
        raise AssertionError("data is read")

    # Both are how the three scripts could come by their data.
    monkeypatch.setattr(formats, "read_splits", refuse)
    monkeypatch.setattr(deeplearning_tutorial.datasets, "locate", refuse)


@pytest.fixture(scope="session")
def softmax_cost():
    """The mean negative log-likelihood of a softmax, and its gradient, in NumPy."""

    def softmax_cost(z, y):
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        chosen = np.arange(len(y)), y
        cost = -np.log(p[chosen]).mean()
        p[chosen] -= 1
        return cost, p / len(y)

    return softmax_cost


@pytest.fixture(scope="session")
def error_of():
    """The fraction of rows whose largest element is not at the label, where rounding cannot change it."""

    def error_of(z, y):
        second, first = np.sort(z, axis=1)[:, -2:].T
        assert (first - second).min() > 1e-6
        return (z.argmax(axis=1) != y).mean()

    return error_of


@pytest.fixture(scope="session")
def numpy_mlp(softmax_cost):
    """The multilayer perceptron of `test_mlp`, trained in NumPy for one epoch in float64."""

    def numpy_mlp(x, y, batch_size, n_hidden, learning_rate, L1_reg, L2_reg, seed=1234, drawn_as="float32"):
        bound = np.sqrt(6 / (784 + n_hidden))
        drawn = np.random.RandomState(seed).uniform(-bound, bound, (784, n_hidden))
        W0, b0 = drawn.astype(drawn_as).astype("float64"), np.zeros(n_hidden)
        W1, b1 = np.zeros((n_hidden, 10)), np.zeros(10)
        costs, steps = [], {W.shape: np.empty_like(W) for W in (W0, W1)}
        for start in range(0, len(x) // batch_size * batch_size, batch_size):
            batch = slice(start, start + batch_size)
            h = np.tanh(x[batch] @ W0 + b0)
            cost, dz = softmax_cost(h @ W1 + b1, y[batch])
            penalty = sum(L2_reg * np.vdot(W, W) + (L1_reg and L1_reg * abs(W).sum()) for W in (W0, W1))
            costs.append(cost + penalty)
            dh = dz @ W1.T * (1 - h**2)
            for W, b, below, gradient in ((W0, b0, x[batch], dh), (W1, b1, h, dz)):
                step = np.matmul(below.T, learning_rate * gradient, out=steps[W.shape])
                if L1_reg:
                    step += learning_rate * L1_reg * np.sign(W)
                W *= 1 - 2 * learning_rate * L2_reg
                W -= step
                b -= learning_rate * gradient.sum(axis=0)
        names = ("hiddenLayer.W", "hiddenLayer.b", "logRegressionLayer.W", "logRegressionLayer.b")
        parameters = dict(zip(names, (W0, b0, W1, b1), strict=True))
        return SimpleNamespace(
            costs=costs, parameters=parameters, scores=lambda x: np.tanh(x @ W0 + b0) @ W1 + b1
        )

    return numpy_mlp
