import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from nnet.modes import REWRITTEN_FOR_NUMBA
from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.tensor.special import Softmax

from deeplearning_tutorial.nnet.fused.log_likelihood import LogLikelihood, LogLikelihoodGrad

RNG = np.random.default_rng(3)
NAME = "log_likelihood_fusion"
FUSING = {
    "py": Mode(linker="py", optimizer=RewriteDatabaseQuery(include=["fast_run", NAME])),
    "NUMBA": get_mode("NUMBA"),
}
REWRITING = {"py": FUSING["py"], "rewritten for Numba": REWRITTEN_FOR_NUMBA}


@pytest.fixture(params=FUSING)
def fusing(request):
    return FUSING[request.param]


@pytest.fixture(params=REWRITING)
def rewriting(request):
    """Run a test of what becomes of a graph; its Ops' kernels are tested with `fusing`."""
    return REWRITING[request.param]


def ops_of(function):
    return [type(node.op) for node in function.maker.fgraph.apply_nodes]


def mean_log_likelihood(x, y):
    return pt.mean(pt.log(pt.special.softmax(x, axis=1))[pt.arange(y.shape[0]), y])


def reference(x, y):
    """Log-likelihoods and softmax in double precision."""
    x = x.astype("float64")
    exponentials = np.exp(x - x.max(axis=1, keepdims=True))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    return np.log(softmax[np.arange(len(y)), y]), softmax


def test_a_case_worked_by_hand(fusing):
    # Softmax of (0, log 3) is (1/4, 3/4).
    x, y = pt.matrix("x", dtype="float64"), pt.ivector("y")
    cost = mean_log_likelihood(x, y)
    f = pytensor.function([x, y], [cost, pytensor.grad(cost, x)], mode=fusing)
    value, gradient = f([[0.0, np.log(3)], [0.0, np.log(3)]], np.array([1, 0], "int32"))
    np.testing.assert_allclose(value, (np.log(3 / 4) + np.log(1 / 4)) / 2)
    np.testing.assert_allclose(gradient, [[-1 / 8, 1 / 8], [3 / 8, -3 / 8]])


@pytest.mark.parametrize("dtype, rtol", [("float32", 2e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("y_dtype", ["int32", "int64", "uint8"])
def test_value_and_gradient_are_numpys_and_one_op_each(fusing, dtype, rtol, y_dtype):
    x, y = pt.matrix("x", dtype=dtype), pt.vector("y", dtype=y_dtype)
    cost = mean_log_likelihood(x, y)
    f = pytensor.function([x, y], [cost, pytensor.grad(cost, x)], mode=fusing)
    ops = ops_of(f)
    assert ops.count(LogLikelihood) == ops.count(LogLikelihoodGrad) == 1
    assert Softmax not in ops
    x_value = (5 * RNG.normal(size=(7, 5))).astype(dtype)
    y_value = RNG.integers(0, 5, size=7).astype(y_dtype)
    chosen, softmax = reference(x_value, y_value)
    value, gradient = f(x_value, y_value)
    assert (value.dtype, gradient.dtype) == (dtype, dtype)
    np.testing.assert_allclose(value, chosen.mean(), rtol=rtol)
    expected = (np.eye(5)[y_value] - softmax) / 7
    np.testing.assert_allclose(gradient, expected, rtol=rtol, atol=rtol)


def test_each_label_may_weigh_differently(fusing):
    x, y, weights = pt.matrix("x", dtype="float64"), pt.lvector("y"), pt.vector("w", dtype="float64")
    chosen = pt.log(pt.special.softmax(x, axis=1))[pt.arange(y.shape[0]), y]
    gradient = pytensor.grad((weights * chosen).sum(), x)
    f = pytensor.function([x, y, weights], gradient, mode=fusing)
    assert LogLikelihoodGrad in ops_of(f)
    x_value, y_value, w_value = RNG.normal(size=(4, 3)), np.array([2, 0, 1, 2]), RNG.normal(size=4)
    _, softmax = reference(x_value, y_value)
    expected = w_value[:, np.newaxis] * (np.eye(3)[y_value] - softmax)
    np.testing.assert_allclose(f(x_value, y_value, w_value), expected, rtol=1e-12, atol=1e-15)


def test_a_probability_of_zero_leaves_log_and_gradient_finite(fusing):
    x, y = pt.matrix("x", dtype="float32"), pt.ivector("y")
    cost = mean_log_likelihood(x, y)
    f = pytensor.function([x, y], [cost, pytensor.grad(cost, x)], mode=fusing)
    value, gradient = f(np.array([[0, 500]], "float32"), np.array([0], "int32"))
    assert value == -500
    np.testing.assert_array_equal(gradient, [[1, -1]])


def test_the_softmax_may_be_used_elsewhere(rewriting):
    x, y = pt.matrix("x", dtype="float64"), pt.ivector("y")
    p = pt.special.softmax(x, axis=1)
    cost = pt.mean(pt.log(p)[pt.arange(y.shape[0]), y])
    f = pytensor.function([x, y], [cost, pt.argmax(p, axis=1), p, pytensor.grad(cost, x)], mode=rewriting)
    x_value, y_value = RNG.normal(size=(6, 4)), np.array([3, 0, 1, 2, 2, 0], "int32")
    chosen, softmax = reference(x_value, y_value)
    value, likeliest, p_value, gradient = f(x_value, y_value)
    np.testing.assert_allclose(value, chosen.mean(), rtol=1e-12)
    np.testing.assert_array_equal(likeliest, softmax.argmax(axis=1))
    np.testing.assert_allclose(p_value, softmax, rtol=1e-12)
    np.testing.assert_allclose(gradient, (np.eye(4)[y_value] - softmax) / 6, rtol=1e-12, atol=1e-15)


def spellings(x, y):
    """The log-likelihoods of ``y`` in all the ways that become one Op."""
    p, rows = pt.special.softmax(x, axis=1), pt.arange(y.shape[0])
    y_as_floats = y.astype("float32")
    return {
        "index of log": pt.log(p)[rows, y],
        "log of index": pt.log(p[rows, y]),
        "index of log_softmax": pt.special.log_softmax(x, axis=-1)[rows, y],
        "last axis": pt.log(pt.special.softmax(x, axis=-1)[rows, y]),
        "size": pt.log(p[pt.arange(y.size), y]),
        "zero first": pt.log(p[pt.arange(0, y.shape[0]), y]),
        "rows of int32": pt.log(p[pt.arange(y.shape[0], dtype="int32"), y]),
        "labels cast": pt.log(p[pt.arange(y_as_floats.shape[0]), pt.cast(y_as_floats, "int32")]),
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("spelling", spellings(pt.dmatrix(), pt.ivector()))
def test_every_spelling_becomes_one_op_with_one_for_its_gradient(rewriting, spelling, bias):
    x, y = pt.matrix("x", dtype="float32"), pt.ivector("y")
    b = pytensor.shared(np.zeros(2, "float32"))
    chosen = spellings(x + b if bias else x, y)[spelling]
    for cost, factor in ((-pt.mean(chosen), 1 / 3), (pt.mean(-chosen), 1 / 3), (-chosen.sum(), 1)):
        f = pytensor.function([x, y], [cost, pytensor.grad(cost, x)], mode=rewriting)
        ops = ops_of(f)
        assert ops.count(LogLikelihood) == ops.count(LogLikelihoodGrad) == 1
        value, gradient = f(np.array([[0, 200], [200, 0], [0, 0]], "float32"), np.array([0, 0, 1], "int32"))
        # By hand: of the first row -(0 - 200), of the second 0, of the third log 2.
        np.testing.assert_allclose(value, (200 + np.log(2)) * factor, rtol=1e-6)
        np.testing.assert_allclose(gradient, np.multiply([[-1, 1], [0, 0], [0.5, -0.5]], factor), rtol=1e-6)


@pytest.mark.parametrize(
    "rows, labels",
    [(np.arange(3), np.array([2, 0, 1])), (pt.arange(3), pt.constant([2, 0, 1])), (pt.arange(3), "y")],
    ids=["arrays", "constants", "known length"],
)
def test_rows_and_labels_may_be_constant(rewriting, rows, labels):
    x, y = pt.matrix("x", dtype="float64"), pt.vector("y", dtype="int64", shape=(3,))
    chosen = pt.log(pt.special.softmax(x, axis=1)[rows, y if isinstance(labels, str) else labels])
    f = pytensor.function([x, y], pytensor.grad(chosen.sum(), x), mode=rewriting, on_unused_input="ignore")
    assert LogLikelihoodGrad in ops_of(f)
    x_value, y_value = RNG.normal(size=(3, 4)), np.array([2, 0, 1])
    _, softmax = reference(x_value, y_value)
    np.testing.assert_allclose(f(x_value, y_value), np.eye(4)[y_value] - softmax, rtol=1e-12, atol=1e-15)


def test_a_single_label_for_all_rows_is_left_alone(rewriting):
    x, y = pt.matrix("x", dtype="float64"), pt.lvector("y")
    chosen = pt.log(pt.special.softmax(x, axis=1))[pt.arange(x.shape[0]), y]
    f = pytensor.function([x, y], chosen, mode=rewriting)
    assert LogLikelihood not in ops_of(f)
    x_value = RNG.normal(size=(4, 3))
    np.testing.assert_allclose(f(x_value, [1]), reference(x_value, np.array([1] * 4))[0], rtol=1e-12)


@pytest.mark.parametrize("change", ["another axis", "another start", "a constant row", "not a logarithm"])
def test_what_only_looks_alike_is_left_alone(rewriting, change):
    x, y = pt.matrix("x", dtype="float64"), pt.ivector("y")
    softmax = pt.special.softmax(x, axis=0 if change == "another axis" else 1)
    rows = {"another start": pt.arange(1, y.shape[0] + 1), "a constant row": pt.zeros_like(y)}
    values = pt.sqrt(softmax) if change == "not a logarithm" else pt.log(softmax)
    f = pytensor.function([x, y], values[rows.get(change, pt.arange(y.shape[0])), y], mode=rewriting)
    assert LogLikelihood not in ops_of(f)
    x_value, y_value = RNG.normal(size=(4, 3)), np.array([2, 0, 1], "int32")
    exponentials = np.exp(x_value)
    expected = exponentials / exponentials.sum(axis=0 if change == "another axis" else 1, keepdims=True)
    expected = np.sqrt(expected) if change == "not a logarithm" else np.log(expected)
    rows = {"another start": [1, 2, 3], "a constant row": [0, 0, 0]}.get(change, [0, 1, 2])
    np.testing.assert_allclose(f(x_value, y_value), expected[rows, y_value], rtol=1e-12)


def test_negative_labels_count_from_the_end_and_others_are_refused(fusing):
    x, y = pt.matrix("x", dtype="float64"), pt.ivector("y")
    cost = mean_log_likelihood(x, y)
    f = pytensor.function([x, y], [cost, pytensor.grad(cost, x)], mode=fusing)
    x_value = RNG.normal(size=(2, 3))
    results = [f(x_value, np.array(labels, "int32")) for labels in ([-1, -3], [2, 0])]
    for negative, positive in zip(*results, strict=True):
        np.testing.assert_array_equal(negative, positive)
    for wrong in ([0, 3], [-4, 0], [0, 1, 2]):
        with pytest.raises(IndexError):
            f(x_value, np.array(wrong, "int32"))


@pytest.mark.parametrize("mode", ["py", "NUMBA"], indirect=True)
def test_the_gradient_by_itself_refuses_labels_that_are_no_classes_too(mode):
    softmax, y, g = pt.dmatrix(), pt.lvector(), pt.dvector()
    f = pytensor.function([softmax, y, g], LogLikelihoodGrad()(softmax, y, g), mode=mode)
    # By hand: g * ([y is the class] - softmax).
    np.testing.assert_array_equal(f([[0.25, 0.75]], [-1], [4.0]), [[-1, 1]])
    for wrong in ([0, 2], [10**9, 0], [-3, 0], [0, 1, 0]):
        with pytest.raises(IndexError):
            f(np.full((2, 2), 0.5), wrong, [1.0])


def test_fusion_is_switched_off_by_its_name():
    x, y = pt.matrix("x", dtype="float64"), pt.ivector("y")
    f = pytensor.function([x, y], mean_log_likelihood(x, y), mode=REWRITTEN_FOR_NUMBA.excluding(NAME))
    assert LogLikelihood not in ops_of(f)
