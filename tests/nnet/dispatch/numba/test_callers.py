"""The kernels under what one process of tests cannot have: other settings of Numba, forks, other threads."""

import functools
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pytensor.compile.mode import Mode

import deeplearning_tutorial

SCRIPT = Path(__file__).with_name("callers.py")
script = runpy.run_path(str(SCRIPT))
NAMES, GOT_RIGHT = script["RESULTS"], script["GOT_RIGHT"]

FUSIONS = ["fused", "unfused"]
CALLERS = ["fork", "spawn", "threads"]


def run_script(*arguments, **settings):
    """Run the script in a process of its own, under settings of Numba."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=360,
        env=os.environ | {"PYTHONPATH": str(Path(deeplearning_tutorial.__file__).parents[1])} | settings,
    )


def saved(file, *fusions, **settings):
    finished = run_script("save", file, *fusions, **settings)
    assert finished.returncode == 0, finished.stderr[-3000:]
    with np.load(file) as results:
        return {name: results[name] for name in results.files}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of the layer with and without fusion, with one and two threads."""
    folder = tmp_path_factory.mktemp("results")
    return {
        threads: saved(folder / f"{threads}.npz", *FUSIONS, NUMBA_NUM_THREADS=str(threads))
        for threads in (1, 2)
    }


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_and_two_threads_give_bitwise_the_same(results, fusion):
    one, two = results[1], results[2]
    assert (one["threads"], two["threads"]) == (1, 2)
    for name in NAMES:
        assert one[f"{fusion} {name}"].tobytes() == two[f"{fusion} {name}"].tobytes()


def test_kernels_give_the_same_numbers_without_fusion(results):
    for name in NAMES:
        fused, unfused = (results[2][f"{fusion} {name}"] for fusion in FUSIONS)
        np.testing.assert_allclose(fused, unfused, rtol=1e-5, atol=1e-5 * abs(unfused).max())


@pytest.mark.sweep
def test_any_processor_gets_the_numbers_of_the_reference(tmp_path):
    results = saved(tmp_path / "generic.npz", "fused", NUMBA_CPU_NAME="generic")
    assert results["processor"] == "generic"
    expected_results = script["layer"](Mode(linker="py", optimizer="fast_run"))(*script["arrays"](0))
    for name, expected in zip(NAMES, expected_results, strict=True):
        result = results[f"fused {name}"]
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@functools.cache
def called(layer, *arguments):
    return run_script(*arguments, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")


@pytest.mark.parametrize(
    "layer", ["workqueue", *(pytest.param(layer, marks=pytest.mark.needs(layer)) for layer in ("omp", "tbb"))]
)
@pytest.mark.parametrize("callers", [*CALLERS, "function"])
def test_callers_at_once_get_the_right_results(layer, callers):
    # One process, which need start but once, for all but those that end it.
    finished = called(layer, "function") if callers == "function" else called(layer, "call", *CALLERS)
    assert f"{callers} {GOT_RIGHT}" in finished.stdout.splitlines(), finished.stderr[-3000:]
    assert finished.returncode == 0, finished.stderr[-3000:]
