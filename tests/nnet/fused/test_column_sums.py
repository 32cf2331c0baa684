import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from nnet.modes import REWRITTEN_FOR_NUMBA
from pytensor.compile.mode import Mode
from pytensor.graph.rewriting.db import RewriteDatabaseQuery

from deeplearning_tutorial.nnet.fused.column_sums import ColumnSums

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
    ],
    ids=["rows", "all", "integers", "another dtype", "another precision", "three axes"],
)
def test_other_sums_stay_with_pytensor(total):
    x = pt.matrix("x", dtype="float64")
    f = pytensor.function([x], total(x), mode=REWRITTEN_FOR_NUMBA)
    assert ColumnSums not in ops_of(f)


def test_it_is_switched_off_by_its_name():
    x = pt.dmatrix()
    f = pytensor.function([x], x.sum(axis=0), mode=REWRITTEN_FOR_NUMBA.excluding("column_sums"))
    assert ColumnSums not in ops_of(f)
