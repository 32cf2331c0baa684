import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deeplearning_tutorial
from deeplearning_tutorial.nnet.dispatch.numba.jit import VERSION, digest_of_sources

NNET = Path(deeplearning_tutorial.__file__).parent / "nnet"
# Kernels, and the Ops whose functions they compile; neither rewrites nor other back ends change a kernel.
SOURCES = [
    path.relative_to(NNET)
    for path in sorted(NNET.rglob("*.py"))
    if path.relative_to(NNET).parts[0] != "rewrites" and (path.parent != NNET / "dispatch")
]

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
    vectors = copy / "nnet" / "dispatch" / "numba" / "llvm" / "vectors.py"
    code = vectors.read_text(encoding="utf-8")
    edited = code.replace("_elementwise(Emitter.tanh)", "_elementwise(lambda emitter, x: x)")
    assert edited != code
    vectors.write_text(edited, encoding="utf-8")
    assert run() == 2


@pytest.fixture(scope="module")
def nnet(tmp_path_factory):
    return shutil.copytree(NNET, tmp_path_factory.mktemp("sources") / "nnet")


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_an_edit_of_any_source_of_a_kernel_changes_the_version(nnet, source):
    assert digest_of_sources(nnet) == VERSION
    file = nnet / source
    before = file.read_bytes()
    file.write_bytes(before + b"#")
    assert digest_of_sources(nnet) != VERSION
    file.write_bytes(before)


def test_a_source_that_is_moved_changes_the_version(nnet):
    file = nnet / "fused" / "tanh.py"
    file.rename(nnet / "tanh.py")
    assert digest_of_sources(nnet) != VERSION
    (nnet / "tanh.py").rename(file)
    assert digest_of_sources(nnet) == VERSION
