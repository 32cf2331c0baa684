import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from scipy import special

from deeplearning_tutorial import nnet
from deeplearning_tutorial.nnet.fused.log_likelihood import LogLikelihood

RNG = np.random.default_rng(23)


def compiled(function, x, mode="NUMBA"):
    symbol = pt.tensor(dtype=x.dtype, shape=(None,) * x.ndim)
    return np.asarray(pytensor.function([symbol], function(symbol), mode=mode)(x))


def test_elementwise_functions_are_scipys(mode):
    x = np.array([[-700.0, -3, -0.0, 0.5], [1e-9, 2, 30, 700]])
    np.testing.assert_allclose(compiled(nnet.sigmoid, x, mode), special.expit(x), rtol=1e-12)
    np.testing.assert_allclose(compiled(nnet.softplus, x, mode), np.logaddexp(0, x), rtol=1e-12)
    np.testing.assert_array_equal(compiled(nnet.relu, x, mode), np.maximum(x, 0))


def test_softmax_of_each_row(mode):
    x = 100 * RNG.normal(size=(3, 5))
    np.testing.assert_allclose(compiled(nnet.softmax, x, mode), special.softmax(x, axis=1), rtol=1e-12)


def test_softmax_of_a_vector_is_a_row_and_of_more_dimensions_an_error():
    x = RNG.normal(size=4)
    np.testing.assert_allclose(compiled(nnet.softmax, x), [special.softmax(x)], rtol=1e-12)
    with pytest.raises(ValueError, match="c has 3 dimensions"):
        nnet.softmax(pt.dtensor3())


@pytest.mark.parametrize("alpha", [0, 0.25, 1, np.array([0.5, -1.0, 2.0])], ids=str)
def test_relu_has_alpha_for_a_slope_and_at_zero_the_mean_of_both(alpha):
    x = np.array([[-2.0, 0, 3], [1, -1, 0]])
    np.testing.assert_allclose(compiled(lambda x: nnet.relu(x, alpha), x), np.where(x > 0, x, alpha * x))
    slope = compiled(lambda x: pytensor.grad(nnet.relu(x, alpha).sum(), x), x)
    expected = np.where(x > 0, 1, np.where(x < 0, alpha, (1 + np.asarray(alpha)) / 2))
    np.testing.assert_allclose(slope, expected)


def test_relu_keeps_float32_and_learns_a_shared_slope():
    x, alpha = pt.fmatrix("x"), pytensor.shared(np.float32(0.1))
    assert nnet.relu(x).dtype == nnet.relu(x, 0.1).dtype == nnet.relu(x, alpha).dtype == "float32"
    f = pytensor.function([x], pytensor.grad(nnet.relu(x, alpha).sum(), alpha), mode="NUMBA")
    np.testing.assert_allclose(f(np.array([[-2, 3, -0.5]], "float32")), -2.5)


def test_crossentropy_of_distributions_and_of_labels(mode):
    coding, true = RNG.dirichlet(np.ones(4), size=(2, 5))
    labels = np.array([3, 0, 0, 2, 1])
    p, t, y = pt.dmatrix("p"), pt.dmatrix("t"), pt.lvector("y")
    outputs = [nnet.categorical_crossentropy(p, t), nnet.categorical_crossentropy(p, y)]
    if mode == "JAX":
        # JAX must know how many labels there are.
        outputs[1] = nnet.categorical_crossentropy(p, labels)
    f = pytensor.function([p, t, y], outputs, mode=mode, on_unused_input="ignore")
    of_distributions, of_labels = map(np.asarray, f(coding, true, labels))
    np.testing.assert_allclose(of_distributions, -(true * np.log(coding)).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(of_labels, -np.log([coding[i, k] for i, k in enumerate(labels)]), rtol=1e-12)


def test_crossentropy_of_a_softmax_at_labels_is_one_op_and_finite():
    x, y = pt.fmatrix("x"), pt.ivector("y")
    f = pytensor.function([x, y], nnet.categorical_crossentropy(nnet.softmax(x), y), mode="NUMBA")
    assert LogLikelihood in [type(node.op) for node in f.maker.fgraph.apply_nodes]
    np.testing.assert_allclose(f(np.array([[0, 1000]], "float32"), np.array([0], "int32")), [1000])


@pytest.mark.parametrize("true", [pt.dvector(), pt.dtensor3(), pt.dscalar()], ids=["floats", "3", "0"])
def test_crossentropy_of_anything_else_is_refused(true):
    with pytest.raises(TypeError, match=f"true_dist has {true.ndim} dimensions"):
        nnet.categorical_crossentropy(pt.dmatrix(), true)


def test_binary_crossentropy_is_the_formula(mode):
    output, target = RNG.uniform(0.05, 0.95, (2, 3, 4))
    o, t = pt.dmatrices("ot")
    f = pytensor.function([o, t], nnet.binary_crossentropy(o, t), mode=mode)
    expected = special.entr(target) + special.rel_entr(target, output)
    expected += special.entr(1 - target) + special.rel_entr(1 - target, 1 - output)
    np.testing.assert_allclose(f(output, target), expected, rtol=1e-12)
