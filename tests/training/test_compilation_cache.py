import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deeplearning_tutorial
from deeplearning_tutorial.training import compilation_cache
from deeplearning_tutorial.training.checkpoint import read_checkpoint

SOURCE = """
import numba

@numba.njit(cache=True)
def add(x, y):
    return x + 2 * y
"""


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Compile a function as another start would; return it, and the folder that Numba keeps it in."""
    monkeypatch.setattr(compilation_cache, "_warned", set())
    path = tmp_path / "compiled.py"
    path.write_text(SOURCE)

    def add():
        spec = importlib.util.spec_from_file_location("compiled", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.add(3, 4) == 11
        return module.add

    assert not add().stats.cache_hits
    assert add().stats.cache_hits
    return add


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def text(path):
    path.write_text("not a pickle\n")


@pytest.mark.parametrize("damage", [empty, cut, zeroed, text])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_what_is_damaged_is_compiled_anew_and_replaced_after_one_warning(
    add, tmp_path, capsys, ending, damage
):
    [path] = (tmp_path / "__pycache__").glob(f"*.{ending}")
    damage(path)
    assert not add().stats.cache_hits
    told = capsys.readouterr().err
    assert told.startswith(f"WARNING: the compilation cache {path.parent} could not be read (")
    assert told.endswith("): compiling the damaged part again\n") and told.count("\n") == 1
    assert add().stats.cache_hits
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_what_cannot_be_replaced_is_compiled_anew_each_time(add, tmp_path, capsys, ending):
    [path] = (tmp_path / "__pycache__").glob(f"*.{ending}")
    path.unlink()
    path.mkdir()
    for told in (True, False):
        assert not add().stats.cache_hits
        err = capsys.readouterr().err
        assert (f"the compilation cache {path.parent} could not be written (Is a directory)" in err) == told
        assert ("PYTENSOR_FLAGS=base_compiledir=" in err) == told


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")]
)
def test_a_disk_that_takes_nothing_does_not_keep_a_function_from_being_compiled(
    add, tmp_path, capsys, monkeypatch, error
):
    def refuse(*args):
        raise error

    for path in (tmp_path / "__pycache__").iterdir():
        path.unlink()
    monkeypatch.setattr(compilation_cache.caching.IndexDataCacheFile, "save", refuse)
    add()
    assert f"could not be written ({error.strerror}): the next start" in capsys.readouterr().err


PROGRAM = """
import numpy as np
import {module}
import pytensor, pytensor.tensor as pt
x = pt.dvector("x")
assert pytensor.function([x], 2 * x, mode="NUMBA")(np.ones(3)).tolist() == [2.0] * 3
print(pytensor.config.base_compiledir)
"""


def environment(cache):
    root = str(Path(deeplearning_tutorial.__file__).parents[1])
    return os.environ | {"PYTHONPATH": root, "PYTENSOR_FLAGS": f"base_compiledir={cache},cxx="}


def compile_in(folder, module="deeplearning_tutorial.mlp", command=(), **more):
    return subprocess.run(
        [*command, sys.executable, "-W", "error", "-c", PROGRAM.format(module=module)],
        env=environment(folder) | more,
        capture_output=True,
        text=True,
        timeout=300,
    )


MODULES = ["mlp", "logistic_sgd", "predict", "report.training_report", "tune.study", "alexnet"]


@pytest.mark.parametrize("module", MODULES)
def test_where_its_folder_cannot_be_made_compiling_uses_a_temporary_one(tmp_path, module):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    ended = compile_in(folder, f"deeplearning_tutorial.{module}")
    assert ended.returncode == 0, ended.stderr
    used = Path(ended.stdout.strip())
    assert used != folder and not used.exists()
    [told] = ended.stderr.splitlines()
    assert told.startswith(f"WARNING: the compilation cache {folder} could not be created (Not a directory)")
    assert told.endswith("PYTENSOR_FLAGS=base_compiledir=/another/folder chooses another one")


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_where_the_cache_cannot_grow_the_message_names_the_folder_and_the_remedy(tmp_path):
    # In blocks of 1024 bytes: enough for the source that PyTensor writes to a temporary file.
    limit = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash"]
    ended = compile_in(tmp_path / "cache", command=limit)
    assert ended.returncode == 0, ended.stderr
    [told] = ended.stderr.splitlines()
    assert f"the compilation cache {tmp_path / 'cache' / 'numba'} could not be written (File too" in told
    assert "PYTENSOR_FLAGS=base_compiledir=" in told


TRAINING = """
import deeplearning_tutorial.mlp
import numpy as np, pytensor, pytensor.tensor as pt
from deeplearning_tutorial.training.early_stopping import train_with_patience
from deeplearning_tutorial.training.run import Run

W, index = pytensor.shared(np.zeros(2), name="W"), pt.lscalar()
train_model = pytensor.function([index], W.sum(), updates={W: W + 1}, mode="NUMBA", on_unused_input="ignore")
run = Run("m.npz", "c.npz", log="log.csv").start("train")
sizes = 2, 1, 1, 2, 100
train_with_patience(train_model, lambda index: 0.5, lambda index: 0.25, *sizes, {"W": W}, run=run)
"""


def train_in(cache, folder, command=()):
    """Train with a compiled function in a process of its own; check that it ends with its files."""
    folder.mkdir()
    ended = subprocess.run(
        [*command, sys.executable, "-W", "error", "-c", TRAINING],
        cwd=folder,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    checkpoint = read_checkpoint(folder / "c.npz")
    assert checkpoint.iteration == 4 and checkpoint.parameters["W"].tolist() == [4, 4]
    assert (folder / "m.npz").exists() and len((folder / "log.csv").read_text().splitlines()) == 3
    return ended.stderr


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A compilation cache that holds all that a training needs."""
    cache = tmp_path_factory.mktemp("compiled") / "cache"
    train_in(cache, cache.with_name("training"))
    assert any(cache.rglob("*.nbi")) and any(cache.rglob("*.nbc"))
    return cache


@pytest.mark.parametrize("damage", [empty, cut, zeroed, text, Path.unlink])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_training_with_a_damaged_cache_ends_with_its_files(compiled, tmp_path, ending, damage):
    cache = shutil.copytree(compiled, tmp_path / "cache")
    for path in cache.rglob(f"*.{ending}"):
        damage(path)
    warned = train_in(cache, tmp_path / "first")
    assert warned.count("WARNING") == (damage is not Path.unlink)
    assert train_in(cache, tmp_path / "second") == ""


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_training_with_a_full_or_missing_cache_ends_with_its_files(compiled, tmp_path):
    # The training's own files take less.
    limit = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash"]
    assert "could not be written (File too large)" in train_in(tmp_path / "new", tmp_path / "full", limit)
    (tmp_path / "file").touch()
    warned = train_in(tmp_path / "file" / "cache", tmp_path / "missing")
    assert "could not be created (Not a directory)" in warned


def test_where_there_is_no_temporary_folder_either_the_error_says_what_to_do(tmp_path, monkeypatch):
    def refuse(**options):
        raise FileNotFoundError("No usable temporary directory found")

    (tmp_path / "file").touch()
    monkeypatch.setattr(compilation_cache.tempfile, "mkdtemp", refuse)
    setting = compilation_cache.pytensor.config._config_var_dict["base_compiledir"]
    monkeypatch.setattr(setting, "val", tmp_path / "file")
    told = r"could not be created \(Not a directory\).* PYTENSOR_FLAGS=base_compiledir="
    with pytest.raises(OSError, match=told):
        compilation_cache._find_folder()
