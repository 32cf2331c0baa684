import os
import shutil
import subprocess
import sys
from pathlib import Path

import deeplearning_tutorial

TANH_OF_2 = """
import numpy as np, pytensor, pytensor.tensor as pt
import deeplearning_tutorial.nnet
x = pt.dvector()
print(pytensor.function([x], pt.tanh(x), mode="NUMBA")(np.array([2.0]))[0])
"""


def test_nothing_is_loaded_that_was_compiled_before_an_edit(tmp_path):
    copy = tmp_path / "deeplearning_tutorial"
    shutil.copytree(Path(deeplearning_tutorial.__file__).parent, copy)

    def run():
        finished = subprocess.run(
            [sys.executable, "-W", "error", "-c", TANH_OF_2],
            capture_output=True,
            text=True,
            timeout=180,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTENSOR_FLAGS": f"base_compiledir={tmp_path}"},
        )
        assert finished.returncode == 0, finished.stderr
        return float(finished.stdout)

    assert 0.96 < run() < 0.97
    # In another file than the kernel's own.
    vectors = copy / "nnet" / "dispatch" / "numba" / "vectors.py"
    code = vectors.read_text(encoding="utf-8")
    edited = code.replace("_elementwise(Emitter.tanh)", "_elementwise(lambda emitter, x: x)")
    assert edited != code
    vectors.write_text(edited, encoding="utf-8")
    assert run() == 2
