import importlib
import os
import warnings
from pathlib import Path

import pytensor
import pytest
from hypothesis import given, settings
from pytensor.compile.mode import Mode
from pytensor.graph.rewriting.db import RewriteDatabaseQuery

# JAX compiles for each shape. What it compiles need not be fast; it reads this when it is loaded.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Python's linker does not run the fused operations of more than 32 operands that PyTensor makes.
PERFORM = Mode(linker="py", optimizer=RewriteDatabaseQuery(include=["fast_run"], exclude=["fusion"]))
# Warnings are errors in the tests, and PyTensor warns of an Op that Numba would run in object mode: a
# function that compiles for Numba has a native kernel for each of its Ops.
MODES = {"py": PERFORM, "NUMBA": "NUMBA", "JAX": "JAX", "PYTORCH": "PYTORCH"}
# The Ops' perform among PyTensor's C code.
C_MODE = {"cvm": Mode(linker="cvm", optimizer="fast_run")}
C_COMPILER = pytensor.config.cxx
NEEDED_MODULES = {"JAX": "jax", "PYTORCH": "torch"}
IMPOSSIBLE = {
    ("PYTORCH", "test_conv.py", "test_arrays_in_any_memory_order_are_taken"): (
        "PyTensor takes no slice with a negative step to PyTorch"
    ),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests in this folder whose ``mode`` is of a back end that not every machine has."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and hasattr(item, "callspec"):
            mode = item.callspec.params.get("mode")
            if isinstance(mode, str) and mode in NEEDED_MODULES:
                item.add_marker(pytest.mark.needs(NEEDED_MODULES[mode]))


@pytest.fixture(autouse=True)
def named_modes(plain_inner_graphs):
    """The tests in this folder name the mode of each of their functions."""


@pytest.fixture(params=MODES)
def mode(request):
    name = request.param
    reason = IMPOSSIBLE.get((name, request.path.name, request.node.originalname))
    if reason is not None:
        request.applymarker(pytest.mark.xfail(strict=True, raises=NotImplementedError, reason=reason))
    if name != "PYTORCH":
        with pytensor.config.change_flags(cxx=C_COMPILER if name in C_MODE else ""):
            yield (MODES | C_MODE)[name]
        return
    with warnings.catch_warnings():
        # PyTorch's compiler uses what PyTorch deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._inductor.compile_fx")
    import torch

    # It takes seconds for each function, and leaves our Ops alone. In test_pytorch.py it does compile.
    with torch.compiler.set_stance("force_eager"):
        yield MODES[name]


@pytest.fixture
def for_all_drawn(mode):
    """Call a function with what Hypothesis draws, as often as the back end's compilations allow."""
    n_examples = {"NUMBA": 2, "JAX": 15, "PYTORCH": 30}.get(mode if isinstance(mode, str) else "py", 200)

    def check(strategy, function):
        # The same draws in each run of CI, others on a developer's machine.
        in_ci = "CI" in os.environ
        settled = settings(max_examples=n_examples, deadline=None, derandomize=in_ci, database=None)
        settled(given(strategy)(function))()

    return check
