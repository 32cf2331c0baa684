import json
import logging
import os
import subprocess
import sys

import filelock
import numpy as np
import pytest

from deeplearning_tutorial.nnet.dispatch.numba import ahead, machine_code
from deeplearning_tutorial.nnet.dispatch.numba.fused.sum_of_squares import squares_block

# The sum of squares has one kernel, which takes a second to compile.
SUM = """
import numpy as np, pytensor, pytensor.tensor as pt
from numba.core import event
import deeplearning_tutorial.nnet
from deeplearning_tutorial.nnet.dispatch.numba import machine_code

compiled = event.RecordingListener()
event.register(machine_code.COMPILING, compiled)
x = pt.fvector()
f = pytensor.function([x], pt.sum(x ** 2), mode="NUMBA")
print(float(f(np.arange(4, dtype="float32"))))
names = [event.data["name"].rsplit(".", 1)[-1] for _, event in compiled.buffer if event.is_start]
print(*sorted(name.split("-")[0] for name in names))
"""
KERNELS = ["run_share", "squares_block"]


def start(folder, code=SUM, **environment):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTENSOR_FLAGS": f"base_compiledir={folder},cxx="} | environment,
    )


def finish(process):
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    total, *kernels = out.split()
    assert float(total) == 14
    return kernels, err


def run(folder, **environment):
    return finish(start(folder, **environment))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    assert run(folder) == (KERNELS, "")
    return folder


def objects(folder):
    return sorted((folder / "kernels").glob("*.o"))


def test_the_next_process_compiles_no_kernel(filled):
    assert [file.name.split("-")[0] for file in objects(filled)] == KERNELS
    assert run(filled) == ([], "")


@pytest.mark.parametrize(
    "damage",
    [
        lambda code: b"",
        lambda code: code[:-1],
        lambda code: code[:40],
        lambda code: code[:-1] + bytes([code[-1] ^ 1]),
        lambda code: b"\0" * len(code),
    ],
)
def test_a_damaged_kernel_is_compiled_again(filled, damage):
    file = objects(filled)[-1]
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    kernels, _ = run(filled)
    # The whole function may be cached with it; the kernel is what it calls.
    assert kernels == ["squares_block"]
    assert run(filled) == ([], "")


def test_processes_that_start_at_once_share_the_work(tmp_path):
    processes = [start(tmp_path) for _ in range(3)]
    compiled = [kernel for process in processes for kernel in finish(process)[0]]
    assert sorted(compiled) == KERNELS


def test_another_processor_has_its_own_kernels(filled):
    kernels, _ = run(filled, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert kernels == KERNELS
    assert run(filled) == ([], "")


def test_a_folder_that_cannot_be_written_is_told_once_and_survived(tmp_path):
    # A file where the folder should be: not even root can write there.
    (tmp_path / "kernels").write_text("")
    kernels, err = run(tmp_path)
    assert kernels == KERNELS
    assert err.count("could not be written") == 1 and "base_compiledir" in err


def test_nothing_is_kept_where_pytensors_cache_is_switched_off(tmp_path):
    for _ in range(2):
        flags = f"base_compiledir={tmp_path},cxx=,numba__cache=False"
        kernels, err = finish(start(tmp_path, PYTENSOR_FLAGS=flags))
        assert (kernels, err) == (KERNELS, "")
    assert not (tmp_path / "kernels").exists()


class TestLoad:
    """`load` itself, with a kernel that would be compiled by `compile_kernel`."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(machine_code, "folder", lambda: tmp_path / "kernels")
        monkeypatch.setattr(machine_code, "_loaded", {})
        monkeypatch.setattr(machine_code.llvmlite.binding, "add_symbol", lambda name, address: None)

    @pytest.fixture
    def source(self):
        return next(iter(squares_block.sources("float32").items()))

    def test_a_kernel_that_another_process_compiles_is_left_to_it(self, source):
        name, compile_it = source
        file = machine_code.file_of(name)
        file.parent.mkdir()
        with filelock.FileLock(f"{file}.lock"):
            machine_code.load(name, compile_it, unless_busy=True)
        assert not machine_code.is_available(name)
        machine_code.load(name, compile_it, unless_busy=True)
        assert machine_code.is_available(name) and file.exists()

    def test_who_holds_the_lock_too_long_is_not_waited_for(self, source, monkeypatch):
        monkeypatch.setattr(machine_code, "_LOCK_SECONDS", 0.1)
        name, compile_it = source
        file = machine_code.file_of(name)
        file.parent.mkdir()
        with filelock.FileLock(f"{file}.lock"):
            machine_code.load(name, compile_it)
        assert machine_code.is_available(name)

    def test_a_full_disk_is_a_warning(self, source, monkeypatch, caplog):
        def full(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(machine_code, "_write", full)
        with caplog.at_level(logging.WARNING):
            machine_code.load(*source)
        assert "No space left on device" in caplog.text and machine_code.is_available(source[0])

    def test_a_failed_write_leaves_no_part_behind(self, source, monkeypatch):
        def fail(*arguments):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(machine_code.os, "replace", fail)
        machine_code.load(*source)
        assert not list(machine_code.folder().glob("*.part"))


SEVERAL = """
import numpy as np, pytensor, pytensor.tensor as pt
import deeplearning_tutorial.nnet
from deeplearning_tutorial.nnet.dispatch.numba import machine_code

a, b = pt.fmatrices(2)
f = pytensor.function([a, b], [pt.sum(a ** 2), pt.dot(a, b), pt.tanh(a), a.sum(axis=0)], mode="NUMBA")
ones = np.ones((3, 3), "float32")
print(*(float(each.sum()) for each in f(ones, ones)))
"""


def test_a_second_process_compiles_what_a_graph_lacks(tmp_path):
    process = start(tmp_path, SEVERAL)
    out, err = process.communicate(timeout=180)
    assert (process.returncode, err) == (0, "")
    assert [float(each) for each in out.split()] == pytest.approx([9, 27, 9 * np.tanh(1), 9])
    kept = {file.name.split("-")[0] for file in objects(tmp_path)}
    assert kept >= {"squares_block", "product_block", "tanh_block", "sums_block"}


def test_the_other_process_compiles_from_the_last_to_the_first(tmp_path):
    code = f"import {ahead.__name__} as ahead; ahead.compile_ops_on_stdin()"
    asked = [["deeplearning_tutorial.nnet.fused.tanh", "VectorTanh", "{}", "float32"]]
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"PYTENSOR_FLAGS": f"base_compiledir={tmp_path},cxx="},
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert [file.name.split("-")[0] for file in objects(tmp_path)] == ["tanh_block"]


# The kernel of the input's gradient has a check in it whose error has the same kinds of arguments.
MISMATCH = """
import numpy as np, pytensor, pytensor.tensor as pt
from deeplearning_tutorial.nnet import conv2d

x, w = pt.ftensor4s(2)
f = pytensor.function([x, w], pytensor.grad(conv2d(x, w).sum(), [x, w]), mode="NUMBA")
print(f(np.ones((1, 2, 4, 4), "float32"), np.ones((1, 2, 3, 3), "float32"))[0].sum())
try:
    f(np.ones((1, 3, 4, 4), "float32"), np.ones((1, 2, 3, 3), "float32"))
except ValueError as error:
    print(error)
"""


def test_errors_of_a_graph_are_its_own_with_kernels_from_a_compiler_and_from_disk(tmp_path):
    for _ in range(2):
        out, err = start(tmp_path, MISMATCH).communicate(timeout=180)
        total, message = out.split("\n", 1)
        assert float(total) == 72 and "(1, 3, 4, 4)" in message and "(1, 2, 3, 3)" in message, err


def test_no_process_is_started_where_nothing_is_kept(monkeypatch):
    started = []
    monkeypatch.setattr(ahead.subprocess, "Popen", lambda *arguments, **options: started.append(arguments))
    monkeypatch.setattr(machine_code, "folder", lambda: None)
    ahead.start_process({})
    monkeypatch.undo()
    monkeypatch.setattr(ahead.sys, "executable", "")
    ahead.start_process({})
    assert started == []


def test_that_no_process_can_be_started_is_no_error(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(ahead.subprocess, "Popen", refuse)
    ahead.start_process({})


def test_each_data_type_has_its_own_kernel():
    float32, float64 = (next(iter(squares_block.sources(dtype))) for dtype in ("float32", "float64"))
    assert float32 != float64
    assert machine_code.file_of(float32) != machine_code.file_of(float64)
