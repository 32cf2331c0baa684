import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from nnet.modes import REWRITTEN_FOR_NUMBA
from pytensor.compile.mode import Mode
from pytensor.gradient import grad
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.scalar.basic import Add, Tanh
from pytensor.tensor.elemwise import Elemwise

import deeplearning_tutorial
from deeplearning_tutorial.nnet import conv, conv2d, downsample, pool, pool_2d
from deeplearning_tutorial.nnet.conv import Conv2d, Conv2dGradFilters, Conv2dGradInput
from deeplearning_tutorial.nnet.fused.conv_pool import (
    ConvMaxPool,
    ConvMaxPoolGradFilters,
    ConvMaxPoolGradInput,
)
from deeplearning_tutorial.nnet.pool import MaxPoolGrad, Pool

RNG = np.random.default_rng(11)

# Through the Ops' perform, so that nothing need be compiled.
FUSING = Mode(linker="py", optimizer=RewriteDatabaseQuery(include=["fast_run", "conv_pool_fusion"]))
PLAIN = Mode(linker="py", optimizer="fast_run")

OURS = (
    *(Conv2d, Conv2dGradFilters, Conv2dGradInput, Pool, MaxPoolGrad),
    *(ConvMaxPool, ConvMaxPoolGradFilters, ConvMaxPoolGradInput),
)


def ops_of(function):
    return [node.op for node in function.maker.fgraph.toposort()]


def ours(function):
    """Names of the convolution and pooling Ops that are left, sorted."""
    return sorted(type(op).__name__ for op in ops_of(function) if isinstance(op, OURS))


def elementwise(function, scalar_op_class):
    found = [op for op in ops_of(function) if isinstance(op, Elemwise)]
    return [op for op in found if isinstance(op.scalar_op, scalar_op_class)]


def symbols(dtype="float64"):
    x, w = pt.tensor4("x", dtype=dtype), pt.tensor4("w", dtype=dtype)
    return x, w, pt.vector("b", dtype=dtype)


def values(*inputs):
    shapes = {"x": (3, 4, 11, 9), "w": (5, 4, 3, 2), "b": (5,)}
    return [RNG.normal(size=shapes[v.name]).astype(v.dtype) for v in inputs]


def as_bias(b):
    return b.dimshuffle("x", 0, "x", "x")


def check_equal_to_unfused(inputs, outputs):
    """Return the function with fusion, after comparing its results with those of the one without."""
    fused = pytensor.function(inputs, outputs, mode=FUSING)
    unfused = pytensor.function(inputs, outputs, mode=PLAIN)
    assert not any(name.startswith("ConvMaxPool") for name in ours(unfused))
    arrays = values(*inputs)
    for result, expected in zip(fused(*arrays), unfused(*arrays), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)
    return fused


def test_a_layers_forward_pass_becomes_one_op_with_bias_and_tanh():
    x, w, b = symbols()
    y = pt.tanh(pool_2d(conv2d(x, w), (3, 2), ignore_border=True) + as_bias(b))
    f = check_equal_to_unfused([x, w, b], [y])
    assert ours(f) == ["ConvMaxPool"]
    assert ops_of(f) == [ConvMaxPool(True, (3, 2), bias=True, tanh=True)]


def test_a_layers_gradients_become_one_op_each():
    x, w, b = symbols()
    y = pt.tanh(pool_2d(conv2d(x, w), (3, 2), ignore_border=True) + as_bias(b))
    f = check_equal_to_unfused([x, w, b], [y, *grad((y**2).sum(), [x, w, b])])
    assert ours(f) == ["ConvMaxPool", "ConvMaxPoolGradFilters", "ConvMaxPoolGradInput"]
    assert {
        ConvMaxPool(True, (3, 2), bias=True, tanh=True),
        ConvMaxPoolGradFilters(True, (3, 2), tanh=True),
        ConvMaxPoolGradInput(True, (3, 2), tanh=True),
    } <= set(ops_of(f))
    assert not elementwise(f, Tanh)


def test_the_old_spellings_with_shape_hints_fuse_in_two_layers_and_the_first_has_no_input_gradient():
    x, w, b = symbols()
    v, c = pt.tensor4("v", dtype="float64"), pt.vector("c", dtype="float64")
    h = conv.conv2d(input=x, filters=w, image_shape=(3, 4, 11, 9), filter_shape=(5, 4, 3, 2))
    h = pt.tanh(downsample.max_pool_2d(input=h, ds=(1, 2), ignore_border=True) + as_bias(b))
    y = conv.conv2d(input=h, filters=v, image_shape=(3, 5, 9, 4), filter_shape=(2, 5, 2, 1))
    y = pt.tanh(pool.pool_2d(input=y, ds=(2, 3), ignore_border=True) + as_bias(c))
    outputs = [y, *grad((y**2).sum(), [w, b, v, c])]
    arrays = [*values(x, w, b), RNG.normal(size=(2, 5, 2, 1)), RNG.normal(size=2)]
    fused, unfused = (pytensor.function([x, w, b, v, c], outputs, mode=m) for m in (FUSING, PLAIN))
    assert ours(fused) == [
        *["ConvMaxPool"] * 2,
        *["ConvMaxPoolGradFilters"] * 2,
        "ConvMaxPoolGradInput",
    ]
    for result, expected in zip(fused(*arrays), unfused(*arrays), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("flip", [True, False])
def test_pooling_alone_fuses_with_the_filters_either_way(flip):
    x, w, _ = symbols()
    y = pool_2d(conv2d(x, w, filter_flip=flip), (3, 2), ignore_border=True)
    f = check_equal_to_unfused([x, w], [y, *grad((y**2).sum(), [x, w])])
    assert ours(f) == ["ConvMaxPool", "ConvMaxPoolGradFilters", "ConvMaxPoolGradInput"]
    assert ConvMaxPool(flip, (3, 2)) in ops_of(f)


@pytest.mark.parametrize("wrt, name", [("x", "ConvMaxPoolGradInput"), ("w", "ConvMaxPoolGradFilters")])
def test_either_gradient_alone_fuses(wrt, name):
    x, w, _ = symbols()
    y = pool_2d(conv2d(x, w), (3, 2), ignore_border=True)
    f = check_equal_to_unfused([x, w], [grad((y**2).sum(), {"x": x, "w": w}[wrt])])
    assert ours(f) == ["ConvMaxPool", name]


@pytest.mark.parametrize(
    "after, bias, tanh",
    [
        (lambda p, b: as_bias(b) + p, True, False),
        (lambda p, b: pt.tanh(p), False, True),
        (lambda p, b: pt.maximum(p + as_bias(b), 0), True, False),
        (lambda p, b: p - as_bias(b), False, False),
        # Along another axis, or itself as its own "bias".
        (lambda p, b: p + b[: p.shape[3]], False, False),
        (lambda p, b: p + p, False, False),
        (lambda p, b: p * as_bias(b), False, False),
    ],
    ids=["bias first", "tanh", "rectifier", "difference", "columns", "itself", "product"],
)
def test_what_joins_is_bias_and_tanh_alone(after, bias, tanh):
    x, w, b = symbols()
    y = after(pool_2d(conv2d(x, w), (3, 2), ignore_border=True), b)
    f = pytensor.function([x, w, b], [y, *grad((y**2).sum(), [x, w])], mode=FUSING, on_unused_input="ignore")
    g = pytensor.function([x, w, b], [y, *grad((y**2).sum(), [x, w])], mode=PLAIN, on_unused_input="ignore")
    assert ConvMaxPool(True, (3, 2), bias, tanh) in ops_of(f)
    arrays = values(x, w, b)
    for result, expected in zip(f(*arrays), g(*arrays), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


def test_a_bias_of_another_dtype_stays_outside():
    x, w, _ = symbols("float32")
    b = pt.vector("b", dtype="float64")
    y = pt.tanh(pool_2d(conv2d(x, w), (3, 2), ignore_border=True) + as_bias(b))
    f = check_equal_to_unfused([x, w, b], [y])
    assert y.dtype == "float64"
    assert ConvMaxPool(True, (3, 2)) in ops_of(f)


@pytest.mark.parametrize(
    "others, joined",
    [
        (lambda pooled, biased: [pooled], (False, False)),
        (lambda pooled, biased: [pooled.sum()], (False, False)),
        (lambda pooled, biased: [biased], (True, False)),
        (lambda pooled, biased: [pt.exp(biased)], (True, False)),
    ],
    ids=["pooled, an output", "pooled, used", "biased, an output", "biased, used"],
)
def test_what_else_is_looked_at_stays_outside(others, joined):
    x, w, b = symbols()
    pooled = pool_2d(conv2d(x, w), (3, 2), ignore_border=True)
    biased = pooled + as_bias(b)
    y = pt.tanh(biased)
    f = check_equal_to_unfused([x, w, b], [y, *others(pooled, biased), *grad((y**2).sum(), [x, w, b])])
    assert ConvMaxPool(True, (3, 2), *joined) in ops_of(f)
    assert ours(f) == ["ConvMaxPool", "ConvMaxPoolGradFilters", "ConvMaxPoolGradInput"]


@pytest.mark.parametrize(
    "other",
    [
        lambda y: y,
        lambda y: y.sum(),
        lambda y: pool_2d(y, (2, 2), ignore_border=True),
        lambda y: pool_2d(y, (3, 2), ignore_border=False),
        lambda y: pool_2d(y, (3, 2), ignore_border=True, mode="sum"),
    ],
    ids=["output", "sum", "another window", "another border", "another mode"],
)
def test_a_convolution_that_is_used_elsewhere_stays(other):
    x, w, b = symbols()
    maps = conv2d(x, w)
    y = pt.tanh(pool_2d(maps, (3, 2), ignore_border=True) + as_bias(b))
    cost = (y**2).sum() + (other(maps) ** 3).sum()
    f = check_equal_to_unfused([x, w, b], [y, other(maps), *grad(cost, [x, w, b])])
    assert not any(name.startswith("ConvMaxPool") for name in ours(f))
    assert ours(f).count("Conv2d") == 1


def test_a_convolution_whose_output_has_another_gradient_stays():
    x, w, _ = symbols()
    maps = conv2d(x, w)
    y = pool_2d(maps, (3, 2), ignore_border=True)
    f = check_equal_to_unfused([x, w], [y, grad((y**2).sum(), maps)])
    assert ours(f) == ["Conv2d", "MaxPoolGrad", "Pool"]


@pytest.mark.parametrize(
    "conv_options, pool_options",
    [
        ({"border_mode": "half"}, {}),
        ({"border_mode": 1}, {}),
        ({"subsample": (1, 2)}, {}),
        ({"filter_dilation": (2, 1)}, {}),
        ({"num_groups": 2}, {}),
        ({}, {"stride": (2, 1)}),
        ({}, {"pad": (1, 0)}),
        ({}, {"ignore_border": False}),
        ({}, {"mode": "sum"}),
        ({}, {"mode": "average_inc_pad"}),
        # More positions than the kernels hold.
        ({}, {"ws": (9, 2)}),
    ],
    ids=str,
)
def test_other_arguments_stay_unfused(conv_options, pool_options):
    x, w = pt.tensor4("x", dtype="float64"), pt.tensor4("w", dtype="float64")
    y = pool_2d(conv2d(x, w, **conv_options), **{"ws": (3, 2), "ignore_border": True} | pool_options)
    f = pytensor.function([x, w], [y, *grad((y**2).sum(), [x, w])], mode=FUSING)
    assert not any(name.startswith("ConvMaxPool") for name in ours(f))


def test_strides_equal_to_the_window_and_full_convolution_of_no_padding_do_fuse():
    x, w, _ = symbols()
    y = pool_2d(conv2d(x, w, border_mode=(0, 0)), (3, 2), ignore_border=True, stride=(3, 2), pad=(0, 0))
    assert ours(pytensor.function([x, w], y, mode=FUSING)) == ["ConvMaxPool"]


def test_second_derivatives_are_those_of_the_unfused_graph():
    x, w, b = symbols()
    y = pt.tanh(pool_2d(conv2d(x, w), (3, 2), ignore_border=True) + as_bias(b))
    gx, gw = grad((y**2).sum(), [x, w])
    check_equal_to_unfused([x, w, b], [y, gx, gw, *grad((gx**2).sum() + (gw**2).sum(), [x, w, b])])


def test_numba_fuses_and_the_tag_switches_it_off():
    x, w, b = symbols("float32")
    y = pt.tanh(pool_2d(conv2d(x, w), (3, 2), ignore_border=True) + as_bias(b))
    outputs = [y, *grad((y**2).sum(), [x, w, b])]
    fused = ["ConvMaxPool", "ConvMaxPoolGradFilters", "ConvMaxPoolGradInput"]
    unfused = ["Conv2d", "Conv2dGradFilters", "Conv2dGradInput", "MaxPoolGrad", "Pool"]
    assert ours(pytensor.function([x, w, b], outputs, mode=REWRITTEN_FOR_NUMBA)) == fused
    excluding = REWRITTEN_FOR_NUMBA.excluding("conv_pool_fusion")
    assert ours(pytensor.function([x, w, b], outputs, mode=excluding)) == unfused
    # PyTensor's other back ends have no use for the fused Ops.
    assert ours(pytensor.function([x, w, b], outputs, mode=PLAIN)) == unfused


def test_the_tag_in_pytensors_flags_switches_it_off_too():
    program = textwrap.dedent(
        """
        import pytensor.tensor as pt
        from pytensor.compile.mode import get_default_mode
        from pytensor.graph.fg import FunctionGraph
        from deeplearning_tutorial.nnet import conv2d, pool_2d

        x, w = pt.tensor4(), pt.tensor4()
        graph = FunctionGraph([x, w], [pool_2d(conv2d(x, w), (3, 2), ignore_border=True)])
        get_default_mode().optimizer.rewrite(graph)
        print(*(type(node.op).__name__ for node in graph.toposort()))
        """
    )
    package = Path(deeplearning_tutorial.__file__).parents[1]
    flags = os.environ.get("PYTENSOR_FLAGS", "")
    for more, expected in (("", "ConvMaxPool"), (",optimizer_excluding=conv_pool_fusion", "Conv2d Pool")):
        environment = {"PYTHONPATH": str(package), "PYTENSOR_FLAGS": (flags + more).strip(",")}
        finished = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            capture_output=True,
            text=True,
            timeout=100,
            env=os.environ | environment,
        )
        assert finished.stdout.strip() == expected, finished.stderr[-3000:]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_gives_the_same_numbers_without_fusion(dtype):
    # MNIST's constant background makes most windows ties.
    x_value = np.zeros((6, 1, 28, 27), dtype)
    x_value[:, :, 5:22, 7:20] = RNG.uniform(size=(6, 1, 17, 13))
    arrays = [
        x_value,
        *((RNG.normal(size=s) / 5).astype(dtype) for s in ((7, 1, 5, 4), (7,), (9, 7, 3, 5), (9,))),
    ]
    x, w, b, v, c = (pt.tensor(dtype=dtype, shape=(None,) * a.ndim) for a in arrays)
    h = pt.tanh(pool_2d(conv2d(x, w), (2, 2), ignore_border=True) + as_bias(b))
    y = pt.tanh(pool_2d(conv2d(h, v), (2, 2), ignore_border=True) + as_bias(c))
    outputs = [y, *grad((y**2).mean(), [w, b, v, c])]
    fused, unfused = (
        pytensor.function([x, w, b, v, c], outputs, mode=mode)
        for mode in (FUSING, FUSING.excluding("conv_pool_fusion"))
    )
    assert ours(fused).count("ConvMaxPool") == 2
    assert not any(name.startswith("ConvMaxPool") for name in ours(unfused))
    assert not elementwise(fused, Add)
    for result, expected in zip(fused(*arrays), unfused(*arrays), strict=True):
        tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance * abs(expected).max())


def test_maps_that_are_an_output_themselves_stay_unfused_without_a_word(capfd):
    x, w, _ = symbols()
    maps = conv2d(x, w)
    f = pytensor.function([x, w], [maps, pool_2d(maps, (3, 2), ignore_border=True)], mode=FUSING)
    assert not any(name.startswith("ConvMaxPool") for name in ours(f))
    assert capfd.readouterr().err == ""
