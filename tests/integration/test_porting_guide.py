import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytensor
import pytest

# The pages are not part of the package.
sys.path.append(str(Path(__file__).parents[2]))

from docs.pages import place, read_page, run

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "porting-from-theano.md"


BLOCKS, ROWS, SPANS, _ = read_page(GUIDE)
PREAMBLE = BLOCKS[0]


def imported_names(code):
    """The names that ``code`` imports, each with what it stands for."""
    names = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted_name(node):
    """``a.b.c`` where the expression spells that; None where it is something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted_name(node.value)):
        return f"{owner}.{node.attr}"
    return None


def resolve(dotted):
    """What a dotted name stands for; an ImportError where it is nothing."""
    path, *names = dotted.split(".")
    found = importlib.import_module(path)
    for name in names:
        path = f"{path}.{name}"
        try:
            found = getattr(found, name)
        except AttributeError:
            found = importlib.import_module(path)
    return found


def check_names(code):
    """Resolve what ``code`` imports, and the attributes that it takes of modules; return the dotted names."""
    known = {"deeplearning_tutorial": "deeplearning_tutorial"}
    known |= imported_names(PREAMBLE.code) | imported_names(code)
    for name in imported_names(code).values():
        resolve(name)
    checked = []
    for node in ast.walk(ast.parse(code)):
        first, dot, rest = (dotted_name(node) or "").partition(".")
        if dot and first in known and isinstance(resolve(known[first]), ModuleType):
            checked.append(f"{known[first]}.{rest}")
            resolve(checked[-1])
    return checked


def is_python(code):
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


# The blocks with what this package adds for Numba. In the others it compiles PyTensor's Ops, by the dozen.
ADDED = {"Convolution and pooling", "A network, before and after", "`nnet` alone"}
OURS = [block for block in BLOCKS[1:] if block.section in ADDED or "pt.log(nnet.softmax" in block.code]
THEIRS = [block for block in BLOCKS[1:] if block not in OURS]


# PyTensor's products of strided views make Numba warn, unless it loads them from its cache.
@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaPerformanceWarning")
@pytest.mark.parametrize(
    "block, mode",
    [
        *(pytest.param(block, "NUMBA", id=place(block)) for block in OURS),
        *(pytest.param(block, "FAST_COMPILE", id=f"{place(block)}, plain") for block in THEIRS),
        *(pytest.param(block, "NUMBA", id=place(block), marks=pytest.mark.sweep) for block in THEIRS),
    ],
)
def test_every_python_block_runs_after_the_first(block, mode):
    namespace = {}
    with pytensor.config.change_flags(mode=mode):
        run(PREAMBLE, namespace)
        run(block, namespace)


@pytest.mark.parametrize("block", BLOCKS[1:], ids=place)
def test_every_python_block_asserts_something(block):
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(block.code)))


@pytest.mark.parametrize("block", BLOCKS, ids=place)
def test_every_name_in_a_python_block_exists(block):
    check_names(block.code)


def test_every_name_in_tables_and_text_exists():
    ours = [span for span in SPANS if "theano" not in span.code and is_python(span.code)]
    checked = [name for span in ours for name in check_names(span.code)]
    assert "pytensor.tensor.random.shared_rng" in checked and "deeplearning_tutorial.nnet.pool_2d" in checked


def test_a_name_that_does_not_exist_is_noticed():
    with pytest.raises(ImportError):
        check_names("pt.nnet.softmax(x)")
    with pytest.raises(ImportError):
        check_names("from pytensor.tensor.nnet import conv2d")


def shown_names(code):
    """The functions, attributes and keywords in ``code``, a replacement in a table."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    names |= {called.id for called in calls if isinstance(called, ast.Name)}
    names |= {node.arg for node in nodes if isinstance(node, ast.keyword)}
    return names | {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.parametrize("row", ROWS, ids=place)
def test_every_replacement_in_a_table_is_used_in_its_section(row):
    used = set(re.findall(r"\w+", " ".join(b.code for b in BLOCKS if b.section == row.section)))
    replacements = [code for code in re.findall(r"`([^`]+)`", row.cells[1]) if is_python(code)]
    for code in replacements:
        assert shown_names(code) <= used


# What Theano 1.0.5 offers: all of the two packages, and what its documentation names of nnet's modules.
THEANO_NAMES = {
    "theano.tensor.nnet": """
        CrossentropyCategorical1Hot CrossentropyCategorical1HotGrad CrossentropySoftmax1HotWithBiasDx
        CrossentropySoftmaxArgmax1HotWithBias LogSoftmax Prepend_scalar_constant_to_each_row
        Prepend_scalar_to_each_row Softmax SoftmaxGrad SoftmaxWithBias binary_crossentropy
        sigmoid_binary_crossentropy categorical_crossentropy crossentropy_categorical_1hot
        crossentropy_categorical_1hot_grad crossentropy_softmax_1hot crossentropy_softmax_1hot_with_bias
        crossentropy_softmax_1hot_with_bias_dx crossentropy_softmax_argmax_1hot_with_bias
        crossentropy_softmax_max_and_argmax_1hot crossentropy_softmax_max_and_argmax_1hot_with_bias
        crossentropy_to_crossentropy_with_softmax crossentropy_to_crossentropy_with_softmax_with_bias
        graph_merge_softmax_with_crossentropy_softmax h_softmax logsoftmax logsoftmax_op prepend_0_to_each_row
        prepend_1_to_each_row prepend_scalar_to_each_row relu softmax softmax_grad softmax_graph softmax_op
        softmax_simplifier softmax_with_bias elu selu confusion_matrix softsign opt ConvOp softplus sigmoid
        sigmoid_inplace scalar_sigmoid ultra_fast_sigmoid hard_sigmoid batch_normalization abstract_conv2d
        conv2d_grad_wrt_inputs conv3d separable_conv2d conv2d conv2d_transpose
        abstract_conv.conv2d abstract_conv.conv2d_grad_wrt_weights abstract_conv.causal_conv1d
        abstract_conv.bilinear_upsampling abstract_conv.bilinear_kernel_1D abstract_conv.bilinear_kernel_2D
        abstract_conv.frac_bilinear_upsampling abstract_conv.separable_conv3d
        abstract_conv.conv3d_grad_wrt_inputs abstract_conv.conv3d_grad_wrt_weights
        bn.batch_normalization_train bn.batch_normalization_test conv.conv2d conv3d2d.conv3d ctc.ctc
        neighbours.images2neibs neighbours.neibs2images blocksparse.sparse_block_dot
        blocksparse.sparse_block_gemv blocksparse.sparse_block_outer
    """,
    "theano.tensor.signal": """
        pool.max_pool_2d_same_size pool.pool_2d pool.pool_3d pool.PoolingMode_t pool.Pool pool.PoolGrad
        pool.MaxPoolGrad pool.AveragePoolGrad pool.DownsampleFactorMaxGradGrad pool.MaxPoolRop conv.conv2d
        downsample.max_pool_2d
    """,
}


@pytest.mark.parametrize("package", THEANO_NAMES)
def test_every_name_of_theano_is_listed_once_with_its_answer(package):
    rows = [row.cells for row in ROWS if row.section == f"Every name of {package}"]
    listed = [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(listed) == sorted(THEANO_NAMES[package].split())
    assert all(row[1].strip() for row in rows)


def test_the_original_is_not_run_but_is_python():
    original = GUIDE.read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    assert "import theano\n" in original and is_python(original)
    assert not any("theano" in name for block in BLOCKS for name in imported_names(block.code).values())


def test_importing_nnet_loads_nothing_of_the_rest():
    code = "import sys, deeplearning_tutorial.nnet; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    loaded = {name for name in ended.stdout.split() if name.startswith("deeplearning_tutorial")}
    assert "deeplearning_tutorial.nnet.conv" in loaded
    assert {n for n in loaded if not n.startswith("deeplearning_tutorial.nnet")} == {"deeplearning_tutorial"}
