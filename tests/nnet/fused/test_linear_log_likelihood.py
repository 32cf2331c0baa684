import functools

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from nnet.modes import REWRITTEN_FOR_NUMBA
from pytensor.compile.mode import get_mode

from deeplearning_tutorial.nnet.fused.linear_log_likelihood import LinearLogLikelihood
from deeplearning_tutorial.nnet.fused.log_likelihood import LogLikelihood
from deeplearning_tutorial.nnet.fused.matrix_product import MatrixProduct

RNG = np.random.default_rng(17)
NAME = "linear_log_likelihood"
FUSING = {"py": REWRITTEN_FOR_NUMBA, "NUMBA": get_mode("NUMBA")}
PLAIN = REWRITTEN_FOR_NUMBA.excluding(NAME)


def ops_of(function):
    return [type(node.op) for node in function.maker.fgraph.apply_nodes]


def classifier(dtype="float64", classes=10, y_dtype="int32"):
    """Return x, y and the parameters, whose number of classes is known as a layer's is."""
    x, y = pt.matrix("x", dtype=dtype), pt.vector("y", dtype=y_dtype)
    W, b = pt.tensor("W", dtype=dtype, shape=(None, classes)), pt.vector("b", dtype=dtype)
    return x, y, W, b


def log_likelihoods(x, y, W, b):
    return pt.log(pt.special.softmax(pt.dot(x, W) + b, axis=1))[pt.arange(y.shape[0]), y]


def reference(x, y, W, b, weights):
    """Log-likelihoods and the gradients of their weighted sum, in double precision."""
    x, W, b = (array.astype("float64") for array in (x[: len(y)], W, b))
    scores = x @ W + b
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    gradient = weights[:, np.newaxis] * (np.eye(len(b))[y] - softmax)
    return np.log(softmax[np.arange(len(y)), y]), x.T @ gradient, gradient.sum(axis=0)


def arrays(rows, features, classes, dtype="float64", filled=1.0):
    x = RNG.normal(size=(rows, features)) * (RNG.uniform(size=(rows, features)) < filled)
    W, b = RNG.normal(size=(features, classes)) / features**0.5, RNG.normal(size=classes)
    return x.astype(dtype), RNG.integers(0, classes, rows), W.astype(dtype), b.astype(dtype)


@functools.cache
def step(fusing, dtype):
    """Compile (x, y, W, b) -> a training step's cost and gradients, once for each mode and dtype."""
    inputs = x, y, W, b = classifier(dtype)
    cost = -log_likelihoods(*inputs).mean()
    return pytensor.function(inputs, [cost, *pytensor.grad(cost, [W, b])], mode=FUSING[fusing])


@pytest.mark.parametrize("fusing", FUSING)
def test_a_case_worked_by_hand(fusing):
    # The scores of both examples are the logarithms of 1 to 10, which add up to 55.
    f, softmax = step(fusing, "float64"), np.arange(1, 11) / 55
    assert LinearLogLikelihood in ops_of(f) and MatrixProduct not in ops_of(f)
    labels = np.array([1, 0], "int32")
    value, W_gradient, b_gradient = f([[2.0], [2.0]], labels, np.zeros((1, 10)), np.log(np.arange(1, 11)))
    np.testing.assert_allclose(value, -(np.log(2 / 55) + np.log(1 / 55)) / 2)
    expected = softmax - [0.5, 0.5, 0, 0, 0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(W_gradient, 2 * expected[np.newaxis])
    np.testing.assert_allclose(b_gradient, expected)


def test_the_logarithm_may_be_taken_of_the_chosen_probabilities():
    x, y, W, b = inputs = classifier()
    chosen = pt.log(pt.special.softmax(pt.dot(x, W) + b, axis=1)[pt.arange(y.shape[0]), y])
    f = pytensor.function(inputs, [-chosen.sum(), *pytensor.grad(-chosen.sum(), [W, b])], mode=FUSING["py"])
    assert LinearLogLikelihood in ops_of(f)
    values = arrays(7, 5, 10)
    for result, expected in zip(
        f(values[0], values[1].astype("int32"), *values[2:]), reference(*values, np.ones(7)), strict=True
    ):
        np.testing.assert_allclose(result, -np.sum(expected) if result.ndim == 0 else -expected, rtol=1e-10)


@pytest.fixture(scope="module", params=["float32", "float64"])
def weighted(request):
    """Compile the Op itself: x, y, W, b and the examples' weights to all three outputs."""
    x, y, W, b = classifier(request.param, classes=None, y_dtype="int64")
    weights = pt.vector("weights", dtype=request.param)
    f = pytensor.function([x, y, W, b, weights], LinearLogLikelihood()(x, W, b, y, weights), mode="NUMBA")
    return f, request.param


@pytest.mark.every_width
@pytest.mark.parametrize("filled", [1.0, 0.1, 0.0])
@pytest.mark.parametrize(
    "rows, features, classes",
    [
        *((rows, 37, 10) for rows in (0, 1, 2, 31, 32, 33, 127, 255, 261)),
        *((67, features, 10) for features in (1, 3, 4, 7, 8, 15, 16, 17, 784)),
        *((67, 37, classes) for classes in (1, 2, 3, 6, 7, 12, 13, 25, 31)),
    ],
)
def test_every_size_around_vectors_chunks_and_blocks_with_any_share_of_zeros(
    weighted, rows, features, classes, filled
):
    f, dtype = weighted
    x, y, W, b = arrays(rows, features, classes, dtype, filled)
    weights = RNG.normal(size=rows).astype(dtype)
    tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype]
    results, expected = f(x, y, W, b, weights), reference(x, y, W, b, weights)
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == dtype
        np.testing.assert_allclose(result, wanted, rtol=tolerance, atol=4 * tolerance)


def test_fewer_labels_than_examples_negative_labels_and_one_weight_for_all(weighted):
    f, dtype = weighted
    x, y, W, b = arrays(70, 20, 4, dtype)
    y = y[:45]
    expected = reference(x, y, W, b, np.full(45, 0.5))
    for labels in (y, y - 4):
        for result, wanted in zip(f(x, labels, W, b, np.full(1, 0.5, dtype)), expected, strict=True):
            np.testing.assert_allclose(result, wanted, rtol=2e-5, atol=2e-5)


def test_arrays_may_lie_in_memory_in_any_order(weighted):
    f, dtype = weighted
    x, y, W, b = arrays(40, 30, 5, dtype)
    weights = RNG.normal(size=40).astype(dtype)
    expected = f(x, y, W, b, weights)
    wide = np.repeat(x, 2, axis=1)
    for other in (np.asfortranarray(x), wide[:, ::2], np.concatenate([x, x])[:40], x[::-1].copy()[::-1]):
        for order in "CF":
            results = f(other, y, np.array(W, order=order), b, weights)
            for result, wanted in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result, wanted)


def test_results_are_bitwise_the_same_for_any_number_of_threads(weighted):
    f, dtype = weighted
    x, y, W, b = arrays(517, 100, 10, dtype, 0.3)
    weights = RNG.normal(size=517).astype(dtype)
    threads, found = numba.get_num_threads(), []
    try:
        for n in {1, threads}:
            numba.set_num_threads(n)
            found.append([result.tobytes() for result in f(x, y, W, b, weights)])
    finally:
        numba.set_num_threads(threads)
    assert all(results == found[0] for results in found)


def test_zeros_do_not_hide_what_is_not_finite(weighted):
    f, dtype = weighted
    x, y, W, b = arrays(9, 64, 3, dtype)
    x[:, :32] = 0
    weights = np.ones(9, dtype)
    W[0, 1] = np.inf
    # Zero times infinity: no score of class 1 is a number, so no probability is.
    likelihoods, W_gradient, b_gradient = f(x, y, W, b, weights)
    assert np.isnan(likelihoods).all() and np.isnan(W_gradient).all() and np.isnan(b_gradient).all()


def test_what_does_not_fit_is_refused(weighted):
    f, dtype = weighted
    x, y, W, b = arrays(6, 5, 3, dtype)
    one = np.ones(1, dtype)
    for wrong in (y + 3, y - 6, np.append(y, 0)):
        with pytest.raises(IndexError):
            f(x, wrong, W, b, one)
    for wrong in ((x[:, 1:], y, W, b, one), (x, y, W, b[1:], one), (x, y, W, b, np.ones(2, dtype))):
        with pytest.raises(ValueError):
            f(*wrong)


@pytest.mark.parametrize("fusing", FUSING)
@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-12)])
def test_a_training_step_gives_what_it_gives_without_the_fusion(fusing, dtype, rtol):
    x, y, W, b = classifier(dtype)
    cost = -log_likelihoods(x, y, W, b).mean()
    plain = pytensor.function([x, y, W, b], [cost, *pytensor.grad(cost, [W, b])], mode=PLAIN)
    fused = step(fusing, dtype)
    assert LinearLogLikelihood in ops_of(fused) and LogLikelihood in ops_of(plain)
    x_value, y_value, W_value, b_value = arrays(260, 50, 10, dtype, 0.4)
    values = x_value, y_value.astype("int32"), W_value, b_value
    for result, wanted in zip(fused(*values), plain(*values), strict=True):
        np.testing.assert_allclose(result, wanted, rtol=rtol, atol=rtol / 10)


def cost_of(change, x, y, W, b):
    """Return what is to be compiled and the variable whose gradient is taken besides those of W and b."""
    if change == "a layer below":
        return [-log_likelihoods(x, y, W, b).mean()], [x]
    likelihoods = log_likelihoods(x, y, W, b)
    if change == "scores used":
        return [likelihoods.sum(), pt.dot(x, W) + b], []
    if change == "weights that depend on the likelihoods":
        return [(likelihoods**2).sum()], []
    return [likelihoods.sum()], []


@pytest.mark.parametrize(
    "change",
    [
        *("a layer below", "scores used", "weights that depend on the likelihoods", "many classes"),
        *("no gradient", "one bias for all classes"),
    ],
)
def test_what_only_looks_alike_is_left_alone(change):
    classes = 32 if change == "many classes" else 4
    inputs = x, y, W, b = classifier(classes=classes)
    one_bias = change == "one bias for all classes"
    if one_bias:
        inputs = x, y, W, b = x, y, W, pt.tensor("b", dtype="float64", shape=(1,))
    outputs, others = cost_of(change, *inputs)
    wrt = [W, *others] if one_bias else [W, b, *others]
    gradients = [] if change == "no gradient" else pytensor.grad(outputs[0], wrt)
    f, plain = (
        pytensor.function(inputs, [*outputs, *gradients], mode=mode)
        for mode in (REWRITTEN_FOR_NUMBA, PLAIN)
    )
    assert LinearLogLikelihood not in ops_of(f)
    x_value, y_value, W_value, b_value = arrays(7, 5, classes)
    values = x_value, y_value.astype("int32"), W_value, b_value[:1] if one_bias else b_value
    for result, wanted in zip(f(*values), plain(*values), strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-11, atol=1e-13)
