import os
import subprocess
import sys
from pathlib import Path

import pytest

import deeplearning_tutorial

SCRIPT = Path(__file__).with_name("fenced.py")


@pytest.mark.sweep
@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's mprotect")
def test_no_kernel_reads_or_writes_beside_its_arrays():
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=1200,
        env=os.environ | {"PYTHONPATH": str(Path(deeplearning_tutorial.__file__).parents[1])},
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
