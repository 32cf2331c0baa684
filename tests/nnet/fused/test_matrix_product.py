import functools
import itertools

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from nnet.modes import REWRITTEN_FOR_NUMBA

from deeplearning_tutorial.nnet.fused.matrix_product import BatchedMatrixProduct, MatrixProduct, WeightUpdate
from deeplearning_tutorial.nnet.fused.sum_of_squares import SumOfSquares

RNG = np.random.default_rng(8)


def ops_of(function):
    return [type(node.op) for node in function.maker.fgraph.apply_nodes]


@pytest.fixture(scope="module", params=["float32", "float64"])
def product(request):
    a, b = pt.matrix("a", dtype=request.param), pt.matrix("b", dtype=request.param)
    f = pytensor.function([a, b], pt.dot(a, b), mode="NUMBA")
    assert ops_of(f) == [MatrixProduct]
    return f, request.param


def check(f, a, b):
    """Compare with a product in higher precision, within the bound on the error of a sum."""
    exact = a.astype("longdouble") @ b.astype("longdouble")
    bound = np.abs(a).astype("float64") @ np.abs(b).astype("float64") * len(b) * np.finfo(a.dtype).eps
    result = f(a, b)
    assert result.shape == exact.shape and result.dtype == a.dtype
    assert np.all(np.abs(result - exact) <= bound)


def test_a_case_worked_by_hand(product):
    f, dtype = product
    a, b = np.array([[1, 2, 3], [4, 5, 6]], dtype), np.array([[1, 0], [0, 1], [10, 100]], dtype)
    np.testing.assert_array_equal(f(a, b), [[31, 302], [64, 605]])


@pytest.mark.every_width
def test_every_size_around_the_tiles_in_every_memory_order(product):
    f, dtype = product
    for rows, inner, cols in itertools.product(
        (0, 1, 3, 4, 5, 131, 258), (0, 1, 7, 50), (0, 1, 7, 8, 9, 17, 64, 65, 130)
    ):
        a, b = RNG.normal(size=(rows, inner)).astype(dtype), RNG.normal(size=(inner, cols)).astype(dtype)
        check(f, a, b)
        check(f, np.asfortranarray(a), b)
        check(f, a, np.asfortranarray(b))
        check(f, np.asfortranarray(a), np.asfortranarray(b))


@pytest.mark.parametrize("cols", [2, 10, 12])
def test_few_columns_pass_over_zeros_but_not_over_what_is_not_finite(product, cols):
    f, dtype = product
    a, b = RNG.normal(size=(9, 90)).astype(dtype), RNG.normal(size=(90, cols)).astype(dtype)
    a[:, :70] = 0
    a[3, 40], a[5, 2], a[6, 30] = 1, np.nan, np.inf
    finite = np.isfinite(a).all(axis=1)
    check(f, a[finite], b)
    assert np.isnan(f(a, b)[5]).all() and not np.isfinite(f(a, b)[6]).any()
    b[0, 1] = np.inf
    assert np.isnan(f(a, b)[finite, 1]).all()


def test_strided_views_are_taken(product):
    f, dtype = product
    a, b = RNG.normal(size=(40, 60)).astype(dtype), RNG.normal(size=(60, 45)).astype(dtype)
    check(f, a[::2, ::-3], b[::3, ::-2])
    check(f, a[:, 5:25], b[20:40, 3:40])


@pytest.mark.every_width
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slices_within_a_graph_by_few_columns(dtype):
    # As a minibatch by the weights of ten classes, and transposed by their gradient.
    a, b, g = (pt.matrix(name, dtype=dtype) for name in "abg")
    rows = a[3:-5]
    f = pytensor.function([a, b, g], [pt.dot(rows, b), pt.dot(rows.T, g)], mode="NUMBA")
    assert ops_of(f).count(MatrixProduct) == 2
    for n, inner, cols in itertools.product((8, 9, 10, 11, 200), (47, 64, 75, 784), (2, 3, 6, 7, 10, 12, 13)):
        a_value, b_value, g_value = (
            RNG.normal(size=shape).astype(dtype) for shape in ((n, inner), (inner, cols), (n - 8, cols))
        )
        output, gradient = f(a_value, b_value, g_value)
        check(lambda *_, result=output: result, a_value[3:-5], b_value)
        check(lambda *_, result=gradient: result, a_value[3:-5].T, g_value)


def test_nan_and_infinity_stay_in_their_row_and_column(product):
    f, dtype = product
    a, b = np.ones((6, 5), dtype), np.ones((5, 11), dtype)
    a[2, 3], b[1, 7] = np.nan, np.inf
    expected = np.full((6, 11), 5, dtype)
    expected[:, 7], expected[2] = np.inf, np.nan
    np.testing.assert_array_equal(f(a, b), expected)


def test_lengths_that_do_not_fit_are_refused(product):
    f, dtype = product
    with pytest.raises(ValueError, match="columns of one matrix are not the rows of the other"):
        f(np.ones((2, 3), dtype), np.ones((4, 2), dtype))


def test_gradients_are_products_too():
    a, b, g = pt.matrices("a", "b", "g")
    f = pytensor.function(
        [a, b, g],
        pytensor.grad((pt.dot(a, b) * g).sum(), [a, b]),
        mode=REWRITTEN_FOR_NUMBA,
        allow_input_downcast=True,
    )
    assert ops_of(f).count(MatrixProduct) == 2
    values = [RNG.normal(size=shape).astype(a.dtype) for shape in ((5, 7), (7, 3), (5, 3))]
    for result, expected in zip(f(*values), (values[2] @ values[1].T, values[0].T @ values[2]), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_other_products_and_an_excluded_rewrite_stay_with_pytensor():
    matrix, vector, integers = pt.dmatrix(), pt.dvector(), pt.lmatrix()
    for a, b in ((matrix, vector), (vector, matrix), (vector, vector), (integers, integers)):
        f = pytensor.function([*{a, b}], pt.dot(a, b), mode=REWRITTEN_FOR_NUMBA)
        assert MatrixProduct not in ops_of(f)
    mode = REWRITTEN_FOR_NUMBA.excluding("matrix_product")
    assert MatrixProduct not in ops_of(pytensor.function([matrix], pt.dot(matrix, matrix), mode=mode))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stacks_of_matrices_in_any_memory_order(dtype):
    a, b = pt.tensor3("a", dtype=dtype), pt.tensor3("b", dtype=dtype)
    f = pytensor.function([a, b], [pt.matmul(a, b), pt.matmul(b.mT, a.mT)], mode="NUMBA")
    assert ops_of(f).count(BatchedMatrixProduct) == 2
    for n, rows, inner, cols in ((3, 5, 7, 4), (1, 1, 1, 1), (2, 130, 60, 9), (0, 2, 3, 4), (4, 6, 0, 3)):
        x, y = (RNG.normal(size=shape).astype(dtype) for shape in ((n, rows, inner), (n, inner, cols)))
        for left, right in ((x, y), (np.asfortranarray(x), y[::-1]), (x[:, ::-1], np.asfortranarray(y))):
            product, transposed = f(left, right)
            exact = np.einsum("nij,njk->nik", left.astype("float64"), right.astype("float64"))
            rtol = {"float32": 1e-5, "float64": 1e-13}[dtype]
            np.testing.assert_allclose(product, exact, rtol=rtol, atol=100 * rtol)
            np.testing.assert_allclose(transposed, exact.transpose(0, 2, 1), rtol=rtol, atol=100 * rtol)
    with pytest.raises(ValueError):
        f(np.ones((2, 3, 4), dtype), np.ones((3, 4, 5), dtype))


def test_perform_of_stacks_is_numpys():
    output = [[None]]
    a, b = RNG.normal(size=(3, 4, 2)), RNG.normal(size=(3, 2, 5))
    BatchedMatrixProduct().perform(None, [a, b], output)
    np.testing.assert_allclose(output[0][0], np.einsum("nij,njk->nik", a, b))


def update_function(dtype, decay, cols=None, mode="NUMBA"):
    """Compile a step of gradient descent; return it with the weights' shared variable."""
    weights = pytensor.shared(RNG.normal(size=(23, cols or 45)).astype(dtype), shape=(23, cols or 45))
    x, g, rate = pt.matrix("x", dtype=dtype), pt.matrix("g", dtype=dtype), pt.scalar("rate", dtype=dtype)
    gradient = pt.dot(x.T, g)
    if decay:
        gradient = decay * weights + gradient
    outputs = [(weights**2).sum(), pt.dot(x, weights)]
    f = pytensor.function([x, g, rate], outputs, updates=[(weights, weights - rate * gradient)], mode=mode)
    return f, weights


@pytest.mark.every_width
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("decay", [0, 0.25])
def test_a_step_of_gradient_descent_is_one_op_that_overwrites_the_weights(dtype, decay):
    f, weights = update_function(dtype, decay)
    updates = [node.op for node in f.maker.fgraph.apply_nodes if isinstance(node.op, WeightUpdate)]
    assert updates == [WeightUpdate(inplace=True)] and SumOfSquares not in ops_of(f)
    # PyTensor's own Ops in double precision.
    rtol = {"float32": 1e-5, "float64": 1e-13}[dtype]
    for batch in (0, 1, 2, 5, 130):
        old = weights.get_value().astype("float64")
        x, g = RNG.normal(size=(batch, 23)).astype(dtype), RNG.normal(size=(batch, 45)).astype(dtype)
        penalty, product = f(x, g, 0.5)
        np.testing.assert_allclose(penalty, (old**2).sum(), rtol=rtol)
        np.testing.assert_allclose(product, x @ old, rtol=rtol, atol=10 * rtol)
        expected = old - 0.5 * (x.T.astype("float64") @ g + decay * old)
        np.testing.assert_allclose(weights.get_value(), expected, rtol=rtol, atol=10 * rtol)
    weights.set_value(np.asfortranarray(weights.get_value()))
    old = weights.get_value()
    f(x, g, 0.0)
    np.testing.assert_array_equal(weights.get_value(), old)
    with pytest.raises(ValueError):
        f(x[:, 1:], g, 0.5)


@functools.cache
def updates_of_any_rows(cols):
    """Compile an update as a value and in place, once for all numbers of rows."""
    weights = pytensor.shared(np.ones((1, cols)), shape=(None, cols))
    a, b = pt.dmatrices("ab")
    update = weights - 2.0 * (pt.dot(a, b) + 3.0 * weights)
    f = pytensor.function([a, b], update, mode="NUMBA")
    g = pytensor.function([a, b], (weights**2).sum(), updates=[(weights, update)], mode="NUMBA")
    assert WeightUpdate in ops_of(f) and SumOfSquares not in ops_of(g)
    return weights, f, g


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 129, 131])
@pytest.mark.parametrize("cols", [32, 45, 64, 71])
def test_each_weight_is_updated_once_whatever_the_tiles(rows, cols):
    weights, f, g = updates_of_any_rows(cols)
    weights.set_value(np.ones((rows, cols)))
    a_value, b_value = (RNG.integers(-3, 4, shape).astype(float) for shape in ((rows, 6), (6, cols)))
    expected = 1 - 2 * (a_value @ b_value + 3)
    np.testing.assert_array_equal(f(a_value, b_value), expected)
    np.testing.assert_array_equal(weights.get_value(), 1)
    assert g(a_value, b_value) == rows * cols
    np.testing.assert_array_equal(weights.get_value(), expected)
    assert g(a_value, b_value) == (expected**2).sum()


def test_squares_that_nothing_needs_are_not_given():
    weights = pytensor.shared(np.ones((20, 40)), shape=(20, 40))
    a, b = pt.dmatrices("ab")
    f = pytensor.function([a, b], [], updates=[(weights, weights - 0.5 * pt.dot(a, b))], mode="NUMBA")
    assert [node.op for node in f.maker.fgraph.apply_nodes] == [WeightUpdate(inplace=True, squares=False)]
    f(np.ones((20, 3)), np.ones((3, 40)))
    np.testing.assert_array_equal(weights.get_value(), 1 - 0.5 * 3)


def test_perform_of_an_update_is_the_formula_in_place_or_not():
    arrays = [RNG.normal(size=shape) for shape in ((4, 3), (4, 2), (2, 3), (1, 1), (1, 1))]
    weights, a, b, rate, decay = (array.copy() for array in arrays)
    expected = weights - rate * (a @ b + decay * weights)
    for inplace, squares in ((False, True), (False, False), (True, True)):
        outputs = [[None], [None]][: 1 + squares]
        WeightUpdate(inplace, squares).perform(None, [weights, a, b, rate, decay], outputs)
        np.testing.assert_allclose(outputs[0][0], expected, rtol=1e-15)
        if squares:
            np.testing.assert_allclose(outputs[1][0], (arrays[0] ** 2).sum(), rtol=1e-15)
        assert (outputs[0][0] is weights) == inplace


@pytest.mark.parametrize(
    "update",
    [
        lambda w, p: w - p,
        lambda w, p: w + 0.5 * p,
        lambda w, p: w - 0.5 * (p + 0.1 * w**2),
        lambda w, p: w - 0.5 * (p + 0.1 * w + 0.2 * abs(w)),
        lambda w, p: [w - 0.5 * p, p],
    ],
    ids=["no rate", "sum", "another penalty", "two penalties", "gradient used"],
)
def test_other_updates_keep_the_product(update):
    w, a, b = pt.tensor("w", dtype="float64", shape=(20, 40)), pt.dmatrix("a"), pt.dmatrix("b")
    f = pytensor.function([w, a, b], update(w, pt.dot(a, b)), mode=REWRITTEN_FOR_NUMBA)
    assert MatrixProduct in ops_of(f) and WeightUpdate not in ops_of(f)


def test_a_rate_that_depends_on_the_squares_has_them_computed_before():
    weights = pytensor.shared(np.full((20, 40), 0.5), shape=(20, 40))
    a, b = pt.dmatrices("ab")
    squares = (weights**2).sum()
    updates = [(weights, weights - squares * pt.dot(a, b))]
    f = pytensor.function([a, b], squares, updates=updates, mode=REWRITTEN_FOR_NUMBA)
    assert WeightUpdate in ops_of(f) and SumOfSquares in ops_of(f)
    assert f(np.ones((20, 3)), np.ones((3, 40))) == 200
    np.testing.assert_array_equal(weights.get_value(), 0.5 - 200 * 3)


def test_few_columns_keep_the_product():
    f, _ = update_function("float32", 0.25, cols=10, mode=REWRITTEN_FOR_NUMBA)
    assert WeightUpdate not in ops_of(f)
