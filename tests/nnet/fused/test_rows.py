import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
import scipy.special
from nnet.modes import REWRITTEN_FOR_NUMBA
from pytensor.compile.mode import Mode
from pytensor.graph.rewriting.db import RewriteDatabaseQuery

from deeplearning_tutorial.nnet.fused.rows import RowArgmax, RowSoftmax

RNG = np.random.default_rng(8)
PERFORM = Mode(linker="py", optimizer=RewriteDatabaseQuery(include=["fast_run", "row_softmax", "row_argmax"]))
SHAPES = [(0, 3), (1, 1), (7, 10), (1000, 17), (3, 2100)]

modes = pytest.mark.parametrize("mode", ["NUMBA", PERFORM], ids=["NUMBA", "perform"])
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def ops_of(function):
    return [type(node.op) for node in function.maker.fgraph.apply_nodes]


def views(value):
    return value, np.asfortranarray(value), value[::-2, ::3]


@modes
@dtypes
def test_softmax_is_scipys(mode, dtype):
    x = pt.matrix("x", dtype=dtype)
    f = pytensor.function([x], pt.special.softmax(x, axis=1), mode=mode)
    assert ops_of(f) == [RowSoftmax]
    for shape in [*SHAPES, (3, 0)]:
        for view in views((10 * RNG.normal(size=shape)).astype(dtype)):
            result = f(view)
            assert result.dtype == dtype and result.shape == view.shape
            if view.size:
                expected = scipy.special.softmax(view.astype("longdouble"), axis=1)
                # Rounded are the differences to the maximum, and each addition to a row's total.
                roundings = 8 + view.shape[1] + abs(view - view.max(axis=1, keepdims=True))
                assert (abs(result - expected) <= np.finfo(dtype).eps * roundings * expected).all()


@modes
def test_softmax_of_what_is_not_finite_stays_in_its_row(mode):
    x = pt.matrix("x", dtype="float32")
    inf, nan = np.inf, np.nan
    value = [[1, 1], [inf, 1], [1, -inf], [1, nan], [nan, 1], [-inf, -inf], [1e38, -1e38]]
    expected = [[0.5, 0.5], [nan, nan], [1, 0], [nan, nan], [nan, nan], [nan, nan], [1, 0]]
    f = pytensor.function([x], pt.special.softmax(x, axis=1), mode=mode)
    with np.errstate(invalid="ignore", over="ignore"):
        np.testing.assert_array_equal(f(np.array(value, "float32")), expected)


@modes
@dtypes
def test_argmax_is_numpys_with_ties_too(mode, dtype):
    x = pt.matrix("x", dtype=dtype)
    f = pytensor.function([x], pt.argmax(x, axis=1), mode=mode)
    assert ops_of(f) == [RowArgmax]
    for shape in SHAPES:
        for value in (RNG.normal(size=shape).astype(dtype), RNG.integers(0, 3, shape).astype(dtype)):
            for view in views(value):
                result = f(view)
                assert result.dtype == "int64"
                np.testing.assert_array_equal(result, view.argmax(axis=1))


@modes
def test_argmax_is_the_first_nan_or_the_first_maximum(mode):
    x = pt.matrix("x", dtype="float32")
    inf, nan = np.inf, np.nan
    value = [[1, nan, 5, nan], [nan, 9, 9, 9], [-inf] * 4, [1, inf, inf, 0], [0.0, -0.0, 0, 0]]
    f = pytensor.function([x], pt.argmax(x, axis=1), mode=mode)
    np.testing.assert_array_equal(f(np.array(value, "float32")), [1, 0, 0, 1, 0])


@modes
def test_argmax_of_no_columns_is_an_error(mode):
    x = pt.matrix("x", dtype="float32")
    f = pytensor.function([x], pt.argmax(x, axis=1), mode=mode)
    with pytest.raises(ValueError, match="empty sequence"):
        f(np.zeros((3, 0), "float32"))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: pt.special.softmax(x, axis=0),
        lambda x: pt.special.softmax(x, axis=None),
        lambda x: pt.special.softmax(x[0], axis=0),
        lambda x: pt.argmax(x, axis=0),
        lambda x: pt.argmax(x),
        lambda x: pt.argmax(x.dimshuffle(0, 1, "x"), axis=1),
        lambda x: pt.argmax(x.astype("int64"), axis=1),
    ],
)
def test_other_axes_and_types_stay_with_pytensor(function):
    x = pt.matrix("x", dtype="float64")
    f = pytensor.function([x], function(x), mode=REWRITTEN_FOR_NUMBA)
    assert not {RowSoftmax, RowArgmax} & set(ops_of(f))


def test_each_is_switched_off_by_its_name():
    x = pt.dmatrix()
    outputs = [pt.special.softmax(x, axis=1), pt.argmax(x, axis=1)]
    for name, left in (("row_softmax", RowArgmax), ("row_argmax", RowSoftmax)):
        f = pytensor.function([x], outputs, mode=REWRITTEN_FOR_NUMBA.excluding(name))
        assert {RowSoftmax, RowArgmax} & set(ops_of(f)) == {left}
