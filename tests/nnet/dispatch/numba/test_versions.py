import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deeplearning_tutorial
from deeplearning_tutorial.nnet.dispatch.numba.versions import NNET, Sources, version_of

PREFIX = "deeplearning_tutorial.nnet."
KERNELS = f"{PREFIX}dispatch.numba."
CONV_POOL, TANH, VECTORS, POOL = (
    f"{KERNELS}{name}" for name in ("fused.conv_pool", "fused.tanh", "llvm.vectors", "pool")
)

TANH_OF_2 = """
import numpy as np, pytensor, pytensor.tensor as pt
import deeplearning_tutorial.nnet
x = pt.dvector()
print(pytensor.function([x], pt.tanh(x), mode="NUMBA")(np.array([2.0]))[0])
"""


def name_of(file):
    return PREFIX + ".".join(file.relative_to(NNET).with_suffix("").parts)


# All that have kernels, or what kernels call.
MODULES = [name_of(file) for file in NNET.glob("dispatch/numba/**/*.py") if file.name != "__init__.py"]


def run(code, folder, **environment):
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=folder,
        env=os.environ | environment,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_nothing_is_loaded_that_was_compiled_before_an_edit(tmp_path):
    copy = tmp_path / "deeplearning_tutorial"
    shutil.copytree(Path(deeplearning_tutorial.__file__).parent, copy)
    environment = {"PYTHONPATH": str(tmp_path), "PYTENSOR_FLAGS": f"base_compiledir={tmp_path}"}
    assert 0.96 < float(run(TANH_OF_2, tmp_path, **environment)) < 0.97
    # In another file than the kernel's own.
    vectors = copy / "nnet" / "dispatch" / "numba" / "llvm" / "vectors.py"
    code = vectors.read_text(encoding="utf-8")
    edited = code.replace("_elementwise(Emitter.tanh)", "_elementwise(lambda emitter, x: x)")
    assert edited != code
    vectors.write_text(edited, encoding="utf-8")
    assert float(run(TANH_OF_2, tmp_path, **environment)) == 2


@pytest.fixture
def edited(tmp_path):
    """Return the sources with an edit of one module: a function of its text."""
    copy = shutil.copytree(NNET, tmp_path / "nnet")

    def edit(module, change):
        file = copy.joinpath(*module.removeprefix(PREFIX).split(".")).with_suffix(".py")
        file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
        return Sources(copy)

    return edit


def test_a_copy_has_the_same_versions(edited):
    sources = edited(TANH, lambda text: text)
    assert {module: sources.version_of(module) for module in MODULES} == {
        module: version_of(module) for module in MODULES
    }


@pytest.mark.parametrize("module", MODULES)
def test_an_edit_changes_the_versions_of_the_module_and_of_all_that_import_it(edited, module):
    sources = edited(module, lambda text: f"{text}\nADDED = 1\n")
    changed = {each for each in MODULES if sources.version_of(each) != version_of(each)}
    # As Python itself reads imports, on a line of their own or several.
    importing = {module}
    texts = {each: (NNET.joinpath(*each.split(".")[2:]).with_suffix(".py")).read_text() for each in MODULES}
    while True:
        package_and_name = [each.rsplit(".", 1) for each in importing]
        more = {
            each
            for each, text in texts.items()
            for package, name in package_and_name
            if f"from {package}.{name} import" in text or f"from {package} import {name}" in text
        }
        if more <= importing:
            break
        importing |= more
    assert module in changed and changed == importing


def test_an_op_is_part_of_the_version_of_its_kernel(edited):
    sources = edited(
        f"{PREFIX}fused.conv_pool", lambda text: text.replace("WORD_BITS = 64", "WORD_BITS = 32")
    )
    assert sources.version_of(CONV_POOL) != version_of(CONV_POOL)
    assert sources.version_of(TANH) == version_of(TANH)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "# A comment.\n\n\n" + text,
        lambda text: text.replace('"""', '"""Another docstring. ', 1),
        lambda text: text.replace("\n\n\n", "\n\n\n# Another.\n\n\n"),
    ],
)
def test_comments_docstrings_and_blank_lines_change_no_version(edited, change):
    sources = edited(VECTORS, change)
    assert all(sources.version_of(module) == version_of(module) for module in MODULES)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("BLOCK_SIDE = ", "BLOCK_SIDE = 1 * "),
        ("range(BLOCK_SIDE)", "range(BLOCK_SIDE + 0)"),
        ("def transpose_block(", "@(lambda function: function)\ndef transpose_block("),
    ],
)
def test_a_constant_an_expression_and_a_decorator_change_the_version(edited, before, after):
    def change(text):
        assert before in text
        return text.replace(before, after)

    sources = edited(VECTORS, change)
    # A product of constants is folded: not what is written counts, but what it does.
    expected = before == "BLOCK_SIDE = "
    assert (sources.version_of(VECTORS) == version_of(VECTORS)) is expected
    assert (sources.version_of(CONV_POOL) == version_of(CONV_POOL)) is expected
    assert (sources.version_of(POOL) == version_of(POOL)) is expected


def test_versions_do_not_depend_on_the_process(tmp_path):
    code = f"from {KERNELS}versions import version_of; print(version_of({CONV_POOL!r}))"
    versions = {run(code, tmp_path, PYTHONHASHSEED=seed) for seed in ("1", "2")}
    assert versions == {f"{version_of(CONV_POOL)}\n"}


def test_an_import_within_a_function_counts(edited):
    sources = edited(
        f"{KERNELS}llvm.emitter",
        lambda text: f"{text}\n\ndef later():\n    from {PREFIX[:-1]} import downsample\n",
    )
    assert f"{PREFIX}downsample" in sources.modules_of(f"{KERNELS}llvm.emitter")
    assert f"{PREFIX}downsample" not in Sources().modules_of(f"{KERNELS}llvm.emitter")
