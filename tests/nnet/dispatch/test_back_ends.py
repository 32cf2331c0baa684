"""What holds of each back end that has no kernels of its own: it computes what the Ops' perform does."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.gradient import grad

import deeplearning_tutorial
from deeplearning_tutorial.nnet import conv2d, pool_2d

PERFORM = Mode(linker="py", optimizer="fast_run")
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}

back_ends = pytest.mark.parametrize("mode", ["JAX", "PYTORCH"], indirect=True)


def draw_convolution(rng):
    """Return shapes of input and filters, and arguments, that fit."""
    groups = int(rng.choice([1, 1, 2, 3]))
    rows, cols = rng.integers(1, 4, 2)
    pads = tuple(tuple(int(n) for n in rng.integers(0, 4, 2)) for _ in range(2))
    options = {
        "border_mode": ("valid", "half", "full", pads[0], pads)[rng.integers(5)],
        "subsample": tuple(int(n) for n in rng.integers(1, 4, 2)),
        "filter_dilation": tuple(int(n) for n in rng.integers(1, 4, 2)),
        "filter_flip": bool(rng.integers(2)),
        "num_groups": groups,
    }
    per_group = int(rng.integers(1, 3))
    x_shape = (int(rng.integers(1, 4)), groups * per_group, *(int(n) for n in rng.integers(9, 13, 2)))
    return x_shape, (groups * int(rng.integers(1, 3)), per_group, int(rows), int(cols)), options


def draw_pooling(rng):
    """Return a shape and arguments that fit."""
    ws = tuple(int(n) for n in rng.integers(1, 5, 2))
    ignore_border = bool(rng.integers(2))
    options = {
        "ws": ws,
        "ignore_border": ignore_border,
        "stride": tuple(int(n) for n in rng.integers(1, 6, 2)),
        "pad": tuple(int(rng.integers(n)) for n in ws) if ignore_border else (0, 0),
        "mode": ("max", "max", "sum", "average_inc_pad", "average_exc_pad")[rng.integers(5)],
    }
    return tuple(int(n) for n in (*rng.integers(1, 3, rng.integers(5)), *rng.integers(1, 12, 2))), options


def derivatives(y, inputs):
    """Outputs, gradients, and gradients of the squares of gradients."""
    first = grad((y**2).sum(), inputs)
    return [y, *first, *grad(sum((g**2).sum() for g in first), inputs)]


def assert_as_perform(mode, inputs, outputs, arrays, names):
    """Compare all outputs of one function, and its dtypes."""
    results = pytensor.function(inputs, outputs, mode=mode)(*arrays)
    expected_results = pytensor.function(inputs, outputs, mode=PERFORM)(*arrays)
    for name, result, expected in zip(names, results, expected_results, strict=True):
        assert result.dtype == expected.dtype, name
        # Rounding grows with what is summed, and the sum may be small.
        scale = np.nanmax(np.abs(expected), initial=1, where=np.isfinite(expected))
        tolerance = TOLERANCE[expected.dtype.name]
        np.testing.assert_allclose(
            result, expected, rtol=tolerance, atol=tolerance * scale, err_msg=str(name)
        )


@back_ends
@pytest.mark.parametrize("dtype, known", [("float64", False), ("float32", True)])
def test_every_kind_of_convolution_and_its_derivatives_are_those_of_perform(mode, dtype, known):
    rng = np.random.default_rng(7)
    inputs, outputs, arrays, names = [], [], [], []
    for _ in range(12):
        x_shape, w_shape, options = draw_convolution(rng)
        pair = [pt.tensor(dtype=dtype, shape=s if known else (None,) * 4) for s in (x_shape, w_shape)]
        inputs += pair
        arrays += [rng.normal(size=s).astype(dtype) for s in (x_shape, w_shape)]
        of_case = derivatives(conv2d(*pair, **options), pair)
        outputs += of_case
        names += [(x_shape, w_shape, options, i) for i in range(len(of_case))]
    assert_as_perform(mode, inputs, outputs, arrays, names)


@back_ends
@pytest.mark.parametrize("dtype, known", [("float64", True), ("float32", False)])
def test_every_kind_of_pooling_and_its_derivatives_are_those_of_perform_with_ties_and_nan(mode, dtype, known):
    rng = np.random.default_rng(8)
    inputs, outputs, arrays, names = [], [], [], []
    for case in range(30):
        shape, options = draw_pooling(rng)
        x = pt.tensor(dtype=dtype, shape=shape if known else (None,) * len(shape))
        inputs.append(x)
        arrays.append(rng.integers(-2, 3, shape).astype(dtype))
        if case % 3 == 0:
            arrays[-1].flat[rng.integers(arrays[-1].size)] = np.nan
        of_case = derivatives(pool_2d(x, **options), [x])
        outputs += of_case
        names += [(shape, options, i) for i in range(len(of_case))]
    assert_as_perform(mode, inputs, outputs, arrays, names)


@back_ends
def test_shapes_are_those_of_each_call(mode):
    x, w = pt.tensor4(dtype="float64"), pt.tensor4(dtype="float64")
    y = pool_2d(conv2d(x, w, border_mode="half", subsample=(2, 1)), (3, 2), ignore_border=False)
    f = pytensor.function([x, w], [y, *grad(y.sum(), [x, w]), y.shape], mode=mode)
    reference = pytensor.function([x, w], [y, *grad(y.sum(), [x, w]), y.shape], mode=PERFORM)
    rng = np.random.default_rng(9)
    for x_shape, w_shape in (
        ((2, 3, 9, 7), (4, 3, 3, 2)),
        ((1, 2, 5, 11), (1, 2, 1, 5)),
        ((0, 1, 6, 6), (2, 1, 2, 2)),
    ):
        arrays = rng.normal(size=x_shape), rng.normal(size=w_shape)
        for result, expected in zip(f(*arrays), reference(*arrays), strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


@back_ends
@pytest.mark.parametrize("wrt", ["output", "input", "filters"])
@pytest.mark.parametrize(
    "x_shape, w_shape, message",
    [
        ((2, 3, 6, 5), (4, 2, 2, 2), "input has 3 channels, filters of shape .4, 2, 2, 2. take 2"),
        ((2, 3, 6, 5), (4, 3, 2, 6), "the output would have no cols"),
        ((2, 3, 6, 5), (4, 3, 0, 2), "filters of shape .4, 3, 0, 2. have no rows"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_as_in_perform(mode, wrt, x_shape, w_shape, message):
    x, w = pt.tensor4(dtype="float64"), pt.tensor4(dtype="float64")
    y = conv2d(x, w)
    output = y if wrt == "output" else grad((y**2).sum(), x if wrt == "input" else w)
    f = pytensor.function([x, w], output, mode=mode)
    for function in (f, pytensor.function([x, w], output, mode=PERFORM)):
        with pytest.raises(ValueError, match=message):
            function(np.ones(x_shape), np.ones(w_shape))


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
