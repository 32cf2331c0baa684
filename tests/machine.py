"""What tests marked with ``needs`` need, and not every machine has."""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from deeplearning_tutorial.datasets import download

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
INITDB = next(
    filter(None, [shutil.which("initdb"), *sorted(glob("/usr/lib/postgresql/*/bin/initdb"))[::-1]]), None
)
MNIST = Path(os.environ.get("DEEPLEARNING_TUTORIAL_DATA", "nowhere"))


@functools.cache
def starts_threads_by(layer):
    """Tell whether Numba has a threading layer here, which takes a process to find out."""
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-c", "import numba; numba.get_num_threads()"]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


HAS = {
    "jax": lambda: importlib.util.find_spec("jax") is not None,
    "torch": lambda: importlib.util.find_spec("torch") is not None,
    "browser": lambda: BROWSER is not None,
    "postgresql": lambda: INITDB is not None,
    "mnist": lambda: all((MNIST / name).is_file() for name in download.EXPECTED),
    "omp": lambda: starts_threads_by("omp"),
    "tbb": lambda: starts_threads_by("tbb"),
}
