import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from nnet.modes import REWRITTEN_FOR_NUMBA
from pytensor.compile.mode import Mode
from pytensor.graph.rewriting.db import RewriteDatabaseQuery

from deeplearning_tutorial.nnet.fused.column_sums import ColumnSums, MapSums

RNG = np.random.default_rng(6)
PERFORM = Mode(linker="py", optimizer=RewriteDatabaseQuery(include=["fast_run", "column_sums"]))


def ops_of(function):
    return [type(node.op) for node in function.maker.fgraph.apply_nodes]


@pytest.mark.parametrize("mode", ["NUMBA", PERFORM], ids=["NUMBA", "perform"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_are_numpys_for_any_size_and_memory_order(mode, dtype):
    x = pt.matrix("x", dtype=dtype)
    f = pytensor.function([x], x.sum(axis=0), mode=mode)
    assert ops_of(f) == [ColumnSums]
    np.testing.assert_array_equal(f(np.array([[1, 2, 3], [10, 20, -30]], dtype)), [11, 22, -27])
    for shape in ((0, 3), (3, 0), (1, 1), (7, 5), (129, 127), (200, 501), (1000, 3)):
        value = RNG.normal(size=shape).astype(dtype)
        for view in (value, np.asfortranarray(value), value[::-2, ::3]):
            expected, size = view.astype("longdouble").sum(axis=0), abs(view).sum(axis=0)
            result = f(view)
            assert result.dtype == dtype and result.shape == expected.shape
            # Summed in float64: a float32 is rounded once.
            bound = {"float32": 1.2e-7 * abs(expected) + 1e-14 * size, "float64": 1e-14 * size}[dtype]
            assert (abs(result - expected) <= bound).all()


@pytest.mark.parametrize("mode", ["NUMBA", PERFORM], ids=["NUMBA", "perform"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_feature_maps_are_numpys_for_any_size_and_memory_order(mode, dtype):
    x = pt.tensor4("x", dtype=dtype)
    f = pytensor.function([x], x.sum(axis=(0, 2, 3)), mode=mode)
    assert ops_of(f) == [MapSums]
    np.testing.assert_array_equal(f(np.arange(24).reshape((2, 3, 2, 2)).astype(dtype)), [60, 92, 124])
    for shape in ((0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2), (1, 1, 1, 1), (3, 2, 5, 1), (20, 33, 7, 9)):
        value = RNG.normal(size=shape).astype(dtype)
        for view in (value, np.asfortranarray(value), value.transpose(1, 0, 3, 2), value[::-2, ::3, :, ::-1]):
            expected, size = view.astype("longdouble").sum(axis=(0, 2, 3)), abs(view).sum(axis=(0, 2, 3))
            result = f(view)
            assert result.dtype == dtype and result.shape == expected.shape
            # Summed in float64: a float32 is rounded once.
            bound = {"float32": 1.2e-7 * abs(expected) + 1e-14 * size, "float64": 1e-14 * size}[dtype]
            assert (abs(result - expected) <= bound).all()


def test_what_is_not_finite_stays_in_its_feature_map():
    x = pt.tensor4("x", dtype="float32")
    value = np.ones((2, 5, 3, 3), "float32")
    value[1, 3, 2, 0], value[0, 4, 2, 2] = np.nan, np.inf
    value[0, 1, 0, 0], value[1, 1, 0, 0] = np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = value.sum(axis=(0, 2, 3))
    f = pytensor.function([x], x.sum(axis=(0, 2, 3)), mode="NUMBA")
    np.testing.assert_array_equal(f(value), expected)


def test_a_bias_of_feature_maps_has_such_a_gradient():
    x, b = pt.tensor4("x", dtype="float32"), pt.vector("b", dtype="float32")
    cost = pt.sqr(x + b.dimshuffle("x", 0, "x", "x")).sum()
    f = pytensor.function([x, b], pytensor.grad(cost, b), mode="NUMBA")
    assert MapSums in ops_of(f)
    value, bias = RNG.normal(size=(4, 3, 5, 6)).astype("float32"), np.array([1, 2, -3], "float32")
    expected = 2 * (value + bias[:, np.newaxis, np.newaxis]).sum(axis=(0, 2, 3), dtype="float64")
    np.testing.assert_allclose(f(value, bias), expected, rtol=1e-5)


def test_what_is_not_finite_stays_in_its_column():
    x = pt.matrix("x", dtype="float32")
    value = np.ones((5, 40), "float32")
    value[1, 3], value[2, 7], value[3, 7], value[4, 9] = np.nan, np.inf, -np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = value.sum(axis=0)
    np.testing.assert_array_equal(pytensor.function([x], x.sum(axis=0), mode="NUMBA")(value), expected)


@pytest.mark.parametrize(
    "total",
    [
        lambda x: x.sum(axis=1),
        lambda x: x.sum(),
        lambda x: x.astype("int64").sum(axis=0),
        lambda x: x.sum(axis=0, dtype="float32"),
        lambda x: x.astype("float32").sum(axis=0, acc_dtype="float32"),
        lambda x: x.dimshuffle(0, 1, "x").repeat(2, axis=2).sum(axis=0),
        lambda x: x.dimshuffle(0, 1, "x", "x").repeat(2, axis=2).repeat(2, axis=3).sum(axis=(1, 2, 3)),
        lambda x: x.dimshuffle(0, 1, "x", "x").astype("int64").sum(axis=(0, 2, 3)),
    ],
    ids=[
        "rows", "all", "integers", "another dtype", "another precision", "three axes", "other maps",
        "maps of integers",
    ],
)
def test_other_sums_stay_with_pytensor(total):
    x = pt.matrix("x", dtype="float64")
    f = pytensor.function([x], total(x), mode=REWRITTEN_FOR_NUMBA)
    assert not {ColumnSums, MapSums} & set(ops_of(f))


def test_it_is_switched_off_by_its_name():
    x = pt.dmatrix()
    f = pytensor.function([x], x.sum(axis=0), mode=REWRITTEN_FOR_NUMBA.excluding("column_sums"))
    assert ColumnSums not in ops_of(f)
