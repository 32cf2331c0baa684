import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from nnet.modes import REWRITTEN_FOR_NUMBA
from pytensor.compile.mode import Mode
from pytensor.graph.rewriting.db import RewriteDatabaseQuery

from deeplearning_tutorial.nnet.fused.sum_of_squares import SumOfSquares

RNG = np.random.default_rng(5)
PERFORM = Mode(linker="py", optimizer=RewriteDatabaseQuery(include=["fast_run", "sum_of_squares"]))


def ops_of(function):
    return [type(node.op) for node in function.maker.fgraph.apply_nodes]


@pytest.mark.parametrize("mode", ["NUMBA", PERFORM], ids=["NUMBA", "perform"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_is_numpys_for_any_size_and_memory_order(mode, dtype):
    x = pt.matrix("x", dtype=dtype)
    f = pytensor.function([x], (x**2).sum(), mode=mode)
    assert ops_of(f) == [SumOfSquares]
    assert f(np.array([[3, -4]], dtype)) == 25
    for shape in ((0, 3), (1, 1), (7, 5), (129, 127), (200, 501)):
        value = RNG.normal(size=shape).astype(dtype)
        for view in (value, np.asfortranarray(value), value[::-2, ::3]):
            expected = np.square(view.astype("longdouble")).sum()
            result = f(view)
            assert result.dtype == dtype and result.shape == ()
            # Summed in float64: a float32 is rounded once.
            np.testing.assert_allclose(result, expected, rtol={"float32": 2e-7, "float64": 1e-14}[dtype])


def test_gradient_is_twice_the_array():
    x = pt.tensor3("x", dtype="float64")
    cost = pt.sqr(x).sum()
    f = pytensor.function([x], [cost, pytensor.grad(cost, x)], mode="NUMBA")
    assert SumOfSquares in ops_of(f)
    value = RNG.normal(size=(2, 3, 4))
    np.testing.assert_allclose(f(value)[1], 2 * value)


@pytest.mark.parametrize(
    "total",
    [
        lambda x: (x**2).sum(axis=0),
        lambda x: [(x**2).sum(), x**2],
        lambda x: (x**3).sum(),
        lambda x: (x.astype("int64") ** 2).sum(),
        lambda x: (x**2).sum(dtype="float32"),
    ],
    ids=["one axis", "squares used", "cubes", "integers", "another dtype"],
)
def test_other_sums_stay_with_pytensor(total):
    x = pt.matrix("x", dtype="float64")
    assert SumOfSquares not in ops_of(pytensor.function([x], total(x), mode=REWRITTEN_FOR_NUMBA))


def test_it_is_switched_off_by_its_name():
    x = pt.dvector()
    f = pytensor.function([x], (x**2).sum(), mode=REWRITTEN_FOR_NUMBA.excluding("sum_of_squares"))
    assert SumOfSquares not in ops_of(f)
