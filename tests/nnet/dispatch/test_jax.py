import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import grad
from pytensor.tensor.subtensor import Subtensor

import deeplearning_tutorial
from deeplearning_tutorial.nnet import conv2d, pool_2d

pytestmark = pytest.mark.parametrize("mode", ["JAX"], indirect=True)


def test_window_stride_and_padding_may_be_vectors_of_constants(mode):
    x = pt.tensor(dtype="float64", shape=(2, 9, 7))
    # Each becomes constant when PyTensor simplifies the graph.
    ws, stride, pad = pt.stack([3, 2]), pt.constant([2, 1]) * 1, x.shape[1:] // 8
    y = pool_2d(x, ws, True, stride, pad)
    x_value = np.random.default_rng(1).integers(-2, 3, (2, 9, 7)).astype("float64")
    f = pytensor.function([x], [y, grad(y.sum(), x)], mode=mode)
    y = pool_2d(x, (3, 2), True, (2, 1), (1, 0))
    expected = pytensor.function([x], [y, grad(y.sum(), x)], mode="FAST_COMPILE")(x_value)
    for result, of_tuples in zip(f(x_value), expected, strict=True):
        np.testing.assert_array_equal(result, of_tuples)


@pytest.mark.parametrize("name", ["ws", "stride", "pad"])
def test_a_symbolic_window_stride_or_padding_is_refused_by_name(mode, name):
    x, vector = pt.matrix(dtype="float64"), pt.lvector("v")
    y = pool_2d(x, **{"ws": (2, 2), "ignore_border": True, "stride": (1, 1), "pad": (0, 0)} | {name: vector})
    with pytest.raises(NotImplementedError, match=f"{name}=.*only when the function runs.*tuple of ints"):
        pytensor.function([x, vector], y, mode=mode)


def test_lengths_that_follow_from_lengths_are_known(mode):
    x, w = pt.tensor4(dtype="float64"), pt.tensor4(dtype="float64")
    y = conv2d(x, w, subsample=(2, 1))
    # The gradient of a sum is ones, of the shape of y; nothing else needs y.
    f = pytensor.function([x, w], grad(y.sum(), x), mode=mode)
    gradient = f(np.ones((1, 1, 7, 4)), np.ones((1, 1, 3, 2)))
    np.testing.assert_array_equal(gradient[0, 0], np.outer([1, 1, 2, 1, 2, 1, 1], [1, 2, 2, 1]))


@pytest.mark.parametrize(
    "start, stop",
    [
        (lambda i: i * 3, lambda i: (i + 1) * 3),
        (lambda i: 3 * i, lambda i: 3 * i + 3),
        (lambda i: i, lambda i: i + 3),
        (lambda i: 2 * (i + 1) - i - 2, lambda i: pt.cast(i, "int32") + 3),
    ],
)
def test_a_slice_whose_bounds_differ_by_a_constant_has_that_length(mode, start, stop):
    values = np.arange(60.0).reshape(12, 5)
    data, i = pytensor.shared(values), pt.lscalar("i")
    sliced = data[start(i) : stop(i)]
    rest = [data[start(i) : stop(i), 1], data[start(i) : stop(i), 1:4:2]]
    outputs = [sliced, *rest, pt.arange(sliced.shape[0])]
    f = pytensor.function([i], outputs, mode=mode)
    for index in range(4):
        rows = slice(start(index), start(index) + 3)
        expected_results = values[rows], values[rows, 1], values[rows, 1:4:2], np.arange(3)
        for result, expected in zip(f(index), expected_results, strict=True):
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("bounds", [lambda i, j: (i, j), lambda i, j: (i, 2 * i), lambda i, j: (i, i)])
def test_other_slices_stay_slices(mode, bounds):
    x, i, j = pt.vector(dtype="float64"), pt.lscalar(), pt.lscalar()
    start, stop = bounds(i, j)
    with pytest.raises(Exception, match="(?i)slice"):
        f = pytensor.function([x, i, j], x[start:stop], mode=mode, on_unused_input="ignore")
        assert any(isinstance(node.op, Subtensor) for node in f.maker.fgraph.apply_nodes)
        f(np.arange(9.0), 2, 4)


def test_float64_is_never_computed_in_float32_unasked(mode):
    program = """
        import jax, numpy, pytensor
        from deeplearning_tutorial.nnet import pool_2d
        def compiled(dtype):
            x = pytensor.tensor.matrix("x", dtype=dtype)
            return pytensor.function([x], pool_2d(x, (1, 2), True, mode="sum"), mode="JAX")
        assert compiled("float32")(numpy.float32([[1, 2]])).dtype == "float32"
        try:
            compiled("float64")
        except TypeError as error:
            assert "float64" in str(error) and 'jax.config.update("jax_enable_x64", True)' in str(error)
        else:
            raise AssertionError("float64 is taken")
        jax.config.update("jax_enable_x64", True)
        result = compiled("float64")(numpy.array([[1, 1e-12]]))
        assert result.dtype == "float64" and result[0, 0] == 1 + 1e-12
    """
    path = Path(deeplearning_tutorial.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(path), "PYTENSOR_FLAGS": "floatX=float32"}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)], check=True, env=environment
    )


def test_float32_stays_float32_where_pytensor_sums_in_float64(mode):
    x, w = pt.tensor4(dtype="float32"), pt.tensor4(dtype="float32")
    y = conv2d(pool_2d(x, (2, 2), True), w / w.sum())
    f = pytensor.function([x, w], [y, grad(y.mean(), x)], mode=mode)
    for result in f(np.ones((1, 1, 8, 6), "float32"), np.ones((1, 1, 2, 3), "float32")):
        assert result.dtype == "float32"
