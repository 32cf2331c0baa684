import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "deeplearning_tutorial"
MODULES = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
SAMPLE = {"deeplearning_tutorial/data/mnist_5k.npz", "deeplearning_tutorial/data/README.md"}

# By setuptools, which PyTensor brings along, without the isolation that would fetch it anew.
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def build(kind, source, target):
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(target)]
    ended = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return target / ended.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, built from a copy because building writes into the tree."""
    source = tmp_path_factory.mktemp("source") / "copy"
    ignored = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", "shared")
    shutil.copytree(ROOT, source, ignore=ignored)
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built as pip builds it where it is given the source distribution."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [source] = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_the_source_distribution_holds_every_module_and_the_sample_but_no_tests(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert MODULES <= names
    assert not [name for name in names if name.startswith("tests")]
    assert {
        "data/mnist_5k.npz",
        "data/README.md",
        "setup.cfg",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    } <= names


def test_the_wheel_holds_every_module_the_sample_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("LICENSE")]
    assert names == MODULES | SAMPLE
    assert len(licences) == 1


def test_an_installed_package_finds_its_sample_and_keeps_mnist_in_the_users_cache(wheel, tmp_path):
    site, here, home = tmp_path / "site", tmp_path / "here", tmp_path / "home"
    here.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    script = """
import deeplearning_tutorial
from deeplearning_tutorial import datasets
from deeplearning_tutorial.datasets import formats
print(deeplearning_tutorial.__file__)
print(datasets.sample_path())
print(datasets._own_folder())
print([len(x) for x, y in formats.read_splits(datasets.locate("mnist_5k.npz"))])
"""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "DEEPLEARNING"))
    }
    flags = f"base_compiledir={tmp_path / 'compiled'}"
    env = kept | {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "PYTHONPATH": str(site),
        "PYTENSOR_FLAGS": flags,
    }
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    package, sample, own, sizes = ended.stdout.splitlines()
    assert Path(package).parent == site / "deeplearning_tutorial"
    assert Path(sample) == site / "deeplearning_tutorial" / "data" / "mnist_5k.npz"
    assert Path(own).name == "deeplearning_tutorial"
    if os.name == "posix":
        assert home in Path(own).parents
    assert sizes == "[3000, 1000, 1000]"
    # Looking for data makes no folders.
    assert list(here.iterdir()) == [] and not Path(own).exists()
