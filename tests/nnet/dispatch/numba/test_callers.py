"""The kernels under what one process of tests cannot have: other settings of Numba, forks, other threads."""

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

# Output and gradients with respect to x, w and b, as NumPy names them in the file.
LAYER = ["arr_0", "arr_1", "arr_2", "arr_3"]


def run_script(*arguments, **settings):
    """Run the script in a process of its own, under settings of Numba."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"PYTHONPATH": str(Path(deeplearning_tutorial.__file__).parents[1])} | settings,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


def saved(file, fusion="fused", **settings):
    run_script("save", file, fusion, **settings)
    with np.load(file) as results:
        return {name: results[name] for name in results.files}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of the layer with and without fusion, with one and two threads."""
    folder = tmp_path_factory.mktemp("results")
    return {
        (fusion, threads): saved(folder / f"{fusion}{threads}.npz", fusion, NUMBA_NUM_THREADS=str(threads))
        for fusion in ("fused", "unfused")
        for threads in (1, 2)
    }


@pytest.mark.parametrize("fusion", ["fused", "unfused"])
def test_one_and_two_threads_give_bitwise_the_same(results, fusion):
    one, two = results[fusion, 1], results[fusion, 2]
    assert (one["threads"], two["threads"]) == (1, 2)
    for name in LAYER:
        assert one[name].tobytes() == two[name].tobytes()


def test_kernels_give_the_same_numbers_without_fusion(results):
    for name in LAYER:
        fused, unfused = results["fused", 2][name], results["unfused", 2][name]
        np.testing.assert_allclose(fused, unfused, rtol=1e-5, atol=1e-5 * abs(unfused).max())


def test_any_processor_gets_the_numbers_of_the_reference(tmp_path):
    results = saved(tmp_path / "generic.npz", NUMBA_CPU_NAME="generic")
    assert results["processor"] == "generic"
    script = runpy.run_path(str(SCRIPT))
    expected_results = script["layer"](Mode(linker="py", optimizer="fast_run"))(*script["arrays"](0))
    for name, expected in zip(LAYER, expected_results, strict=True):
        np.testing.assert_allclose(results[name], expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(
    "layer", ["workqueue", *(pytest.param(layer, marks=pytest.mark.needs(layer)) for layer in ("omp", "tbb"))]
)
@pytest.mark.parametrize("callers", ["threads", "fork", "spawn", "function"])
def test_callers_at_once_get_the_right_results(layer, callers):
    run_script(callers, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")
