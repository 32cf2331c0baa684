"""Kernels whose allocations fail raise MemoryError, and leave everything as it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import deeplearning_tutorial

SCRIPT = Path(__file__).with_name("failing_allocations.py")


CASES = [("convolution", 18), ("pooling", 15), ("fused", 9), ("matrix", 18), ("steps", 2)]


@pytest.mark.sweep
@pytest.mark.parametrize("kind, kernels", CASES)
def test_an_allocation_that_fails_gives_an_error_or_the_right_values_and_nothing_is_lost(kind, kernels):
    finished = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, kind, "float32"],
        capture_output=True,
        text=True,
        timeout=1200,
        env=os.environ
        | {"PYTHONPATH": str(Path(deeplearning_tutorial.__file__).parents[1]), "NUMBA_NUM_THREADS": "2"},
    )
    assert finished.returncode == 0, finished.stdout[-500:] + finished.stderr[-3000:]
    assert f"allocations of {kernels} kernels" in finished.stdout
