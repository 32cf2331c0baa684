import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from nnet.modes import REWRITTEN_FOR_NUMBA

from deeplearning_tutorial.nnet.fused.tanh import VectorTanh


def ops_of(function):
    return [type(node.op) for node in function.maker.fgraph.apply_nodes]


@pytest.fixture(scope="module", params=["float32", "float64"])
def tanh(request):
    x = pt.matrix("x", dtype=request.param)
    f = pytensor.function([x], pt.tanh(x), mode="NUMBA")
    assert ops_of(f) == [VectorTanh]
    return lambda value: f(np.asarray(value, request.param)), request.param


@pytest.mark.every_width
def test_error_is_a_few_units_in_the_last_place_over_the_whole_range(tanh):
    f, dtype = tanh
    tiny = np.finfo(dtype).tiny
    x = np.concatenate([np.linspace(-25, 25, 100_003), np.geomspace(tiny, 30, 50_001)]).astype(dtype)
    expected = np.tanh(x.astype("longdouble"))
    error = np.abs(f(x[np.newaxis])[0] - expected)
    assert error.max() > 0  # the reference has more digits
    assert np.all(error <= 4 * np.spacing(np.abs(expected).astype(dtype)))


@pytest.mark.every_width
@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, 7, 8, 9, 15, 17, 33, 8191, 8193, 70_001])
def test_a_rest_of_any_length_is_exact_to_the_last_place(tanh, length):
    f, dtype = tanh
    x = np.random.default_rng(length).normal(size=(1, length)).astype(dtype)
    expected = np.tanh(x.astype("longdouble")).astype(dtype)
    np.testing.assert_allclose(f(x), expected, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.every_width
def test_special_values_are_numpys(tanh):
    f, dtype = tanh
    x = [[np.nan, np.inf, -np.inf, 0.0, -0.0, np.finfo(dtype).smallest_subnormal]]
    result = f(x)
    np.testing.assert_array_equal(result, np.asarray([[np.nan, 1, -1, 0, -0.0, x[0][-1]]], dtype))
    assert list(np.signbit(result[0, 3:5])) == [False, True]


def test_arrays_in_any_memory_order_are_taken(tanh):
    f, dtype = tanh
    x = np.random.default_rng(1).normal(size=(9, 14)).astype(dtype)
    for view in (np.asfortranarray(x), x[::2, ::-3], x.T):
        np.testing.assert_allclose(f(view), np.tanh(view), rtol=1e-6)


def test_gradient_is_one_minus_the_square():
    x = pt.vector("x", dtype="float64")
    f = pytensor.function([x], pytensor.grad(pt.tanh(x).sum(), x), mode="NUMBA")
    value = np.linspace(-3, 3, 11)
    np.testing.assert_allclose(f(value), 1 - np.tanh(value) ** 2, rtol=1e-12)


def test_scalars_integers_and_an_excluded_rewrite_stay_with_pytensor():
    f = pytensor.function([x := pt.dscalar()], pt.tanh(x), mode=REWRITTEN_FOR_NUMBA)
    assert VectorTanh not in ops_of(f)
    x = pt.dvector()
    f = pytensor.function([x], pt.tanh(x), mode=REWRITTEN_FOR_NUMBA.excluding("vector_tanh"))
    assert VectorTanh not in ops_of(f)
