"""What the walkthrough quotes of its examples: the rows of its tables, and the numbers in its text."""

import inspect

import numpy as np

from deeplearning_tutorial import evaluate_lenet5, sgd_optimization_mnist, test_mlp
from deeplearning_tutorial.lenet5 import connections_1998
from docs.walkthrough import examples


def _row(*cells):
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def _lengths(shape):
    return " × ".join(map(str, shape))


def _count(n):
    return f"{n:,}" if n else ""


def tables():
    """Return the rows of all tables, in the page's order."""
    lenet = [
        _row(
            layer.name,
            _lengths(layer.shape),
            _lengths(layer.filters),
            _count(layer.parameters),
            _count(layer.multiplications),
            str(layer.sees),
        )
        for layer in examples.lenet()
    ]
    lenet5 = [
        _row(layer.name, _lengths(layer.shape), _count(layer.parameters), _count(layer.connections))
        for layer in examples.lenet5()
    ]
    batches = [_row(f"{size:,}", f"{n:,}", f"{error:.1f}") for size, n, error in examples.batch_sizes()]
    return lenet + lenet5 + batches


def _default(function, name):
    return inspect.signature(function).parameters[name].default


def numbers():
    """Return the numbers that the text of each section may quote, in the page's order."""
    layers = {layer.name: layer for layer in examples.lenet()}
    classic = {layer.name: layer for layer in examples.lenet5()}
    c1, s2, c3, s4, hidden = (layers[name] for name in ("C1", "S2", "C3", "S4", "hidden"))
    sides = [len(array) for array in examples.convolution().values()]
    shared, positions = int(np.prod(c1.filters[1:])), int(np.prod(c1.shape[1:]))
    pixels = int(np.prod(layers["input"].shape))

    pooling = examples.pooling()
    taken = [int(value) for array in pooling.values() for value in array.flat]

    parameters = sum(layer.parameters for layer in layers.values())
    products = sum(layer.multiplications for layer in layers.values())
    pairs, all_pairs = int(connections_1998().sum()), connections_1998().size
    each, maps = classic["C1"].parameters // classic["C1"].shape[0], classic["C1"].shape[0]
    lenet = [
        *c1.shape[:1], *c3.shape[:1], parameters, products,
        100 * hidden.parameters / parameters, 100 * c3.multiplications / products,
        *classic["input"].shape[1:], maps, each, each - 1, maps * each, maps * 2, 2, 2 * 2, *c3.filters[2:],
        sum(layer.parameters for layer in classic.values()),
        sum(layer.connections for layer in classic.values()),
        pairs, all_pairs, classic["C3"].shape[0], classic["C3"].parameters, all_pairs * 25 + 16,
    ]  # fmt: skip

    product = examples.matrix_product()
    W, X = product["W"], product["X"]
    halves = [W[0, :4] @ X[:4, 0], W[0, 4:] @ X[4:, 0]]
    matrices = [
        *W[0], *X[:, 0], *(W[0] * X[:, 0]), *halves, product["P"][0, 0], 0, 1,
        c3.shape[0], np.prod(c3.filters[1:]), np.prod(c3.shape[1:]), shared,
    ]  # fmt: skip

    fans = [(25, c1.shape[0] * 25 // 4), (s2.shape[0] * 25, c3.shape[0] * 25 // 4), hidden.filters]
    small, run = examples.small_run(), examples.lenet_run()
    [at, lowest] = small["best"][-1]
    assert small["training"][int(at) // 25 - 1] == 0 and small["training"][int(at) // 25 - 2] > 0
    training = [
        -np.log(0.1), *(np.sqrt(6 / sum(fan)) for fan in fans),
        20, 500, at, at - 1, 2, lowest, small["curve"][-1, 1], 0.995,
        small["patience"][-1, 1], small["epochs"],
        *run["best"][-4:].flat, run["patience"][0, 1], run["patience"][-4, 1], len(run["curve"]),
    ]  # fmt: skip

    rates = examples.rates()
    scripts = (evaluate_lenet5, sgd_optimization_mnist, test_mlp)
    choosing = [
        *examples.RATES, *rates["errors"], rates["costs"].max(), 5, 100, 0.05,
        *(_default(script, "batch_size") for script in scripts),
        positions, np.prod(c3.shape[1:]), np.prod(c1.shape), np.prod(c3.shape),
        *c3.filters[2:], 28, 2, run["best"][-1, 0] - run["best"][-2, 0],
    ]  # fmt: skip
    return [
        [],
        [*sides, c1.shape[0], shared, c1.parameters, pixels, pixels * np.prod(c1.shape)],
        taken,
        [s4.sees, c1.sees],
        lenet,
        matrices,
        training,
        choosing,
    ]
