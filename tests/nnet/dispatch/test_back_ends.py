"""What holds of each back end that has no kernels of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import grad

import deeplearning_tutorial
from deeplearning_tutorial.nnet import conv2d, pool_2d

back_ends = pytest.mark.parametrize("mode", ["JAX", "PYTORCH"], indirect=True)


@back_ends
def test_the_fused_ops_of_numba_stay_out(mode):
    x, w = pt.tensor(shape=(2, 1, 8, 7)), pt.tensor(shape=(3, 1, 3, 4))
    b, labels = pt.tensor(shape=(3,)), pt.tensor(dtype="int64", shape=(2,))
    y = pt.tanh(pool_2d(conv2d(x, w), (2, 2), ignore_border=True) + b.dimshuffle("x", 0, "x", "x"))
    p = pt.special.softmax(y.flatten(2), axis=1)
    cost = -pt.mean(pt.log(p)[pt.arange(labels.shape[0]), labels])
    f = pytensor.function([x, w, b, labels], [cost, *grad(cost, [w, b])], mode=mode)
    ours = {type(node.op) for node in f.maker.fgraph.apply_nodes}
    names = {op.__name__ for op in ours if op.__module__.startswith("deeplearning_tutorial")}
    assert names == {"Conv2d", "Conv2dGradFilters", "Pool", "MaxPoolGrad"}


@back_ends
@pytest.mark.parametrize("first", ["ours", "PyTensor's"])
def test_nothing_is_imported_until_a_function_is_compiled_and_nothing_need_be(mode, first):
    program = f"""
        import sys
        if {first == "ours"}:
            import deeplearning_tutorial.nnet
            assert not {{"jax", "torch"}} & set(sys.modules)
        else:
            import pytensor.link.{mode.lower()}.dispatch
        import numpy, pytensor
        from deeplearning_tutorial.nnet import pool_2d
        x = pytensor.tensor.matrix("x", dtype="float64")
        f = pytensor.function([x], pool_2d(x, (2, 2), ignore_border=True), mode={mode!r})
        assert f(numpy.eye(4)).tolist() == [[1, 0], [0, 1]]
        assert len({{"jax", "torch"}} & set(sys.modules)) == 1
    """
    # Without PyTorch's compiler, which takes seconds.
    path = Path(deeplearning_tutorial.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(path), "TORCHDYNAMO_DISABLE": "1"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, env=environment)
