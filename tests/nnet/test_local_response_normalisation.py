import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import grad

from deeplearning_tutorial.nnet import local_response_normalisation

SHAPE = (2, 7, 3, 5)
# Even and odd, one map, more maps than there are; the root that is taken apart and a true power.
ARGUMENTS = [
    {},
    {"n": 4, "k": 1.0, "alpha": 0.5, "beta": 0.75},
    {"n": 1, "k": 0.5, "alpha": 2.0, "beta": 0.6},
    {"n": 19, "k": 1, "alpha": 0.3, "beta": 1.25},
]


def by_formula(x, n=5, k=2, alpha=1e-4, beta=0.75):
    """Compute section 3.3 of Krizhevsky et al. (2012) for one map after the other."""
    out = np.empty_like(x)
    last = x.shape[1] - 1
    for i in range(last + 1):
        neighbours = range(max(0, i - n // 2), min(last, i + n // 2) + 1)
        out[:, i] = x[:, i] / (k + alpha * sum(x[:, j] ** 2 for j in neighbours)) ** beta
    return out


def gradient_by_formula(x, g, **arguments):
    """Differentiate ``(by_formula(x) * g).sum()`` by central differences, one element after the other."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = 1e-5
        above, below = (by_formula(x + sign * step, **arguments) for sign in (1, -1))
        gradient[index] = ((above - below) * g).sum() / 2e-5
    return gradient


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_values_and_gradients_are_the_formulas(mode, arguments):
    rng = np.random.default_rng(3)
    x, g = 3 * rng.normal(size=SHAPE), rng.normal(size=SHAPE)
    expected = by_formula(x, **arguments), gradient_by_formula(x, g, **arguments)
    # JAX must know the lengths of what is reshaped, the others need not.
    shape = SHAPE if mode == "JAX" else (None,) * 4
    for dtype, tolerance in (("float64", 1e-7), ("float32", 1e-4)):
        symbols = [pt.tensor(dtype=dtype, shape=shape) for _ in range(2)]
        y = local_response_normalisation(symbols[0], **arguments)
        f = pytensor.function(symbols, [y, grad(None, symbols[0], known_grads={y: symbols[1]})], mode=mode)
        for result, wanted in zip(f(x.astype(dtype), g.astype(dtype)), expected, strict=True):
            assert (y.dtype, np.asarray(result).dtype) == (dtype, dtype)
            np.testing.assert_allclose(result, wanted, tolerance, tolerance)


def test_one_position_by_hand():
    x = np.array([3.0, 1, 2]).reshape(1, 3, 1, 1)
    out = local_response_normalisation(x, n=3, k=6, alpha=1, beta=0.5).eval(mode="NUMBA")
    # 6 + 9 + 1, 6 + 9 + 1 + 4, 6 + 1 + 4
    np.testing.assert_allclose(out.ravel(), [3 / 4, 1 / np.sqrt(20), 2 / np.sqrt(11)])


@pytest.mark.needs("torch")
@pytest.mark.parametrize("n", [3, 5])
def test_pytorchs_alpha_is_n_times_this_one(n):
    import torch

    x = np.random.default_rng(4).normal(size=SHAPE)
    expected = torch.nn.functional.local_response_norm(torch.tensor(x), n, alpha=0.2 * n, beta=0.75, k=2)
    out = local_response_normalisation(x, n=n, alpha=0.2).eval(mode="NUMBA")
    np.testing.assert_allclose(out, expected, 1e-12)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"input": pt.dmatrix()}, TypeError, "input is Matrix"),
        ({"input": pt.itensor4()}, TypeError, "input is Tensor4"),
        ({"n": 0}, ValueError, "n=0"),
        ({"n": 2.5}, ValueError, "n=2.5 .*Python 2's division"),
        ({"n": True}, ValueError, "n=True"),
        ({"k": 0}, ValueError, "k=0"),
        ({"k": float("nan")}, ValueError, "k=nan"),
        ({"alpha": -1e-4}, ValueError, "alpha=-0.0001"),
        ({"beta": "0.75"}, ValueError, "beta='0.75'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        local_response_normalisation(**{"input": pt.dtensor4()} | arguments)
