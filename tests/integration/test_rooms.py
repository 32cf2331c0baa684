"""The house: imports go down only, and each test lies where what it tests lies."""

import ast
from pathlib import Path

import pytest

import deeplearning_tutorial

PACKAGE = Path(deeplearning_tutorial.__file__).parent
TESTS = Path(__file__).parents[1]
# From the top down. The pages, and the command that reads saved models, lie between rooms.
FLOORS = ("tune", "report", "predict", "classify", "pages", "layers", "training", "datasets", "files", "nnet")
# The pages import each other as the tutorial's did.
PAGES = ("utils", "logistic_sgd", "mlp", "convolutional_mlp", "lenet_poolings", "lenet5", "alexnet")


def floor_of(module):
    """The index in FLOORS of a module's name within the package; None for the package itself."""
    room = module.split(".")[0]
    return None if not room else FLOORS.index("pages" if room in PAGES else room)


def imports_of(path):
    """The package's modules that a file imports, wherever in it, by their names within the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deeplearning_tutorial"):
            inside = node.module.removeprefix("deeplearning_tutorial").removeprefix(".")
            # ``from deeplearning_tutorial import datasets`` imports a room.
            yield from [inside] if inside else [name.name for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names if name.name.startswith("deeplearning_tutorial.")]
            yield from (name.removeprefix("deeplearning_tutorial.") for name in names)


def climbs(path, root):
    """List what a file of the package below ``root`` imports from a higher floor."""
    own = ".".join(path.relative_to(root).with_suffix("").parts)
    return [
        f"{own} imports {module}"
        for module in imports_of(path)
        if floor_of(module) is not None and floor_of(module) < floor_of(own)
    ]


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_imports_only_go_down():
    assert len(FILES) > 80
    assert [climb for path in FILES for climb in climbs(path, PACKAGE)] == []


@pytest.mark.parametrize(
    "line",
    [
        "from deeplearning_tutorial.training.run import Run",
        "import deeplearning_tutorial.training.run",
        "def load():\n    from deeplearning_tutorial import training",
    ],
)
def test_an_import_that_goes_up_is_found(tmp_path, line):
    (tmp_path / "datasets").mkdir()
    path = tmp_path / "datasets" / "formats.py"
    path.write_text(f"{line}\nfrom deeplearning_tutorial.files import npz\n")
    [climb] = climbs(path, tmp_path)
    assert climb.startswith("datasets.formats imports training")


def test_nnet_imports_no_other_room():
    outside = {
        module
        for path in (PACKAGE / "nnet").rglob("*.py")
        for module in imports_of(path)
        if module.split(".")[0] != "nnet"
    }
    assert outside == set()


def test_each_file_of_tests_lies_where_what_it_tests_lies():
    for path in TESTS.rglob("test_*.py"):
        folder = path.parent.relative_to(TESTS)
        if folder.parts[:1] != ("integration",):
            assert (PACKAGE / folder).is_dir(), path
