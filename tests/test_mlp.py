import functools
import os
import re

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from calling import with_run
from pytensor.compile.mode import Mode
from pytensor.tensor.elemwise import Elemwise

from deeplearning_tutorial import mlp, nnet
from deeplearning_tutorial.datasets import sample_path
from deeplearning_tutorial.mlp import MLP, HiddenLayer

# Small graphs are evaluated Op by Op; the runs on the sample compile as a user's do.
PLAIN = Mode(linker="py", optimizer=None)
NAMES = ["hiddenLayer.W", "hiddenLayer.b", "logRegressionLayer.W", "logRegressionLayer.b"]


# Training goes through the module: pytest would take an imported ``test_mlp`` for a test.
@pytest.fixture(scope="module")
def run(record):
    """One epoch on the sample with the tutorial's defaults."""
    return record(mlp, mlp.test_mlp, n_epochs=1, dataset=sample_path())


@pytest.fixture(scope="module")
def reference(sample, numpy_mlp):
    """The same epoch in NumPy, in float64."""
    return numpy_mlp(*sample[0], batch_size=20, n_hidden=500, learning_rate=0.01, L1_reg=0.0, L2_reg=0.0001)


@pytest.fixture(scope="module")
def errors(reference, sample, error_of):
    return [error_of(reference.scores(x), y) for x, y in sample[1:]]


def expected_lines(errors):
    validation, test = (100 * error for error in errors)
    return [
        "... loading data",
        "... building the model",
        "... training",
        f"epoch 1, minibatch 150/150, validation error {validation:f} %",
        f"     epoch 1, minibatch 150/150, test error of best model {test:f} %",
        f"Optimization complete. Best validation score of {validation:f} % "
        f"obtained at iteration 150, with test performance {test:f} %",
    ]


@pytest.mark.parametrize("floatX", ["float32", "float64"])
def test_weights_are_the_first_draws_between_the_bounds_of_glorot_and_bengio(floatX):
    with pytensor.config.change_flags(floatX=floatX):
        layer = HiddenLayer(np.random.RandomState(5), pt.matrix("x"), 7, 4)
    bound = np.sqrt(6 / (7 + 4))
    drawn = np.random.RandomState(5).uniform(-bound, bound, (7, 4)).astype(floatX)
    assert layer.W.type.dtype == layer.b.type.dtype == floatX
    np.testing.assert_array_equal(layer.W.get_value(), drawn)
    np.testing.assert_array_equal(layer.b.get_value(), np.zeros(4))
    assert layer.params == [layer.W, layer.b]
    assert [param.name for param in layer.params] == ["W", "b"]
    assert [param.type.shape for param in layer.params] == [(7, 4), (4,)]


def sigmoid_by_its_formula(x):
    return 1 / (1 + pt.exp(-x))


SIGMOIDS = {
    "pt.sigmoid": pt.sigmoid,
    "nnet.sigmoid": nnet.sigmoid,
    "pt.expit": pt.expit,
    "elementwise": Elemwise(pytensor.scalar.sigmoid),
    "lambda": lambda x: pt.sigmoid(x),
    "partial": functools.partial(nnet.sigmoid),
    "formula": sigmoid_by_its_formula,
    "reciprocal": lambda x: pt.reciprocal(1.0 + pt.exp(-x)),
    "by tanh": lambda x: 0.5 * (1 + pt.tanh(0.5 * x)),
    "rounded": lambda x: pt.cast(pt.sigmoid(pt.cast(x, "float64")), "float32"),
}
OTHERS = {
    "none": None,
    "relu": nnet.relu,
    "softplus": nnet.softplus,
    "hard sigmoid": lambda x: pt.clip(0.2 * x + 0.5, 0, 1),
    "steeper": lambda x: pt.sigmoid(2 * x),
    "scaled": lambda x: 1.01 * pt.sigmoid(x),
    "softmax": nnet.softmax,
    "with a parameter": lambda x: pt.sigmoid(x * pytensor.shared(1.0)),
    "with an input": lambda x: pt.sigmoid(x) * pt.scalar("mask"),
    "constant": lambda x: pt.constant(np.ones((3, 4))),
    "one number": lambda x: pt.sigmoid(x).sum(),
}


def weights(activation, batch=None, n_out=4):
    x = pt.tensor("x", dtype="float32", shape=(batch, 7))
    return HiddenLayer(np.random.RandomState(5), x, 7, n_out, activation=activation).W.get_value()


@pytest.mark.parametrize("activation", SIGMOIDS.values(), ids=SIGMOIDS)
@pytest.mark.parametrize("floatX", ["float32", "float64"])
def test_weights_of_a_sigmoid_are_four_times_as_large_with_the_same_draws(activation, floatX):
    with pytensor.config.change_flags(floatX=floatX):
        np.testing.assert_array_equal(weights(activation), 4 * weights(pt.tanh))
        np.testing.assert_array_equal(weights(activation, batch=2, n_out=1), 4 * weights(pt.tanh, n_out=1))


@pytest.mark.parametrize("activation", OTHERS.values(), ids=OTHERS)
def test_weights_of_what_is_no_sigmoid_are_not(activation):
    np.testing.assert_array_equal(weights(activation), weights(pt.tanh))


def test_the_activation_is_called_once():
    calls = []
    weights(lambda x: calls.append(x) or pt.sigmoid(x))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "activation, numpys",
    [(pt.tanh, np.tanh), (pt.sigmoid, lambda z: 1 / (1 + np.exp(-z))), (None, lambda z: z)],
)
def test_the_output_is_the_activation_of_a_weighted_sum(activation, numpys):
    x = pt.matrix("x", dtype="float64")
    layer = HiddenLayer(np.random.RandomState(5), x, 7, 4, activation=activation)
    assert layer.input is x
    rng = np.random.default_rng(6)
    value, b = rng.normal(size=(3, 7)), rng.normal(size=4).astype(layer.b.dtype)
    layer.b.set_value(b)
    output = pytensor.function([x], layer.output, mode=PLAIN)(value)
    np.testing.assert_allclose(output, numpys(value @ layer.W.get_value() + b), rtol=1e-6)


def test_given_weights_are_shared_and_nothing_is_drawn():
    x = pt.matrix("x")
    first = HiddenLayer(np.random.RandomState(5), x, 7, 4)
    second = HiddenLayer(None, x, 7, 4, W=first.W, b=first.b)
    assert second.params == [first.W, first.b]
    transposed = HiddenLayer(None, first.output, 4, 7, W=first.W.T)
    assert transposed.b.type.shape == (7,)


def test_a_given_bias_alone_leaves_the_draws_as_they_are():
    b = pytensor.shared(np.ones(4), name="b")
    layers = [HiddenLayer(np.random.RandomState(5), pt.matrix("x"), 7, 4, b=given) for given in (None, b)]
    np.testing.assert_array_equal(layers[0].W.get_value(), layers[1].W.get_value())
    assert layers[1].b is b


@pytest.mark.parametrize(
    "given, message",
    [
        ({"W": np.zeros((4, 7))}, r"W has shape \(4, 7\), this layer needs \(7, 4\); change W, or n_in"),
        ({"W": np.zeros(7)}, r"W has shape \(7,\), this layer needs \(7, 4\)"),
        ({"b": np.zeros(7)}, r"b has shape \(7,\), this layer needs \(4,\); change b"),
        ({"b": np.zeros((4, 1))}, r"b has shape \(4, 1\), this layer needs \(4,\)"),
    ],
)
def test_given_parameters_of_another_shape_are_refused(given, message):
    given = {name: pytensor.shared(value, shape=value.shape) for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        HiddenLayer(np.random.RandomState(5), pt.matrix("x"), 7, 4, **given)


@pytest.mark.parametrize("name", ["n_in", "n_hidden", "n_out"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True, None])
def test_sizes_that_are_no_positive_integers_are_refused_by_name(name, value):
    message = f"^{name}={value} is not a positive integer; use e.g. {name}="
    rng, x = np.random.RandomState(5), pt.matrix("x")
    with pytest.raises(ValueError, match=message):
        MLP(rng, x, **({"n_in": 7, "n_hidden": 4, "n_out": 3} | {name: value}))
    if name != "n_hidden":
        with pytest.raises(ValueError, match=message):
            HiddenLayer(rng, x, **({"n_in": 7, "n_out": 3} | {name: value}))


def test_the_mlp_joins_its_two_layers():
    x = pt.matrix("x")
    classifier = MLP(np.random.RandomState(5), x, 7, 4, 3)
    hidden, upper = classifier.hiddenLayer, classifier.logRegressionLayer
    assert classifier.input is hidden.input is x
    assert upper.input is hidden.output
    assert classifier.params == [hidden.W, hidden.b, upper.W, upper.b]
    assert classifier.negative_log_likelihood == upper.negative_log_likelihood
    assert classifier.errors == upper.errors
    assert [param.type.shape for param in classifier.params] == [(7, 4), (4,), (4, 3), (3,)]


def test_the_two_norms_are_those_of_both_weight_matrices_and_of_no_bias():
    classifier = MLP(np.random.RandomState(5), pt.matrix("x"), 2, 2, 2)
    weights = [np.array([[1, -2], [3, -4]]), np.array([[0.5, -0.5], [0, 1]])]
    for layer, W in zip((classifier.hiddenLayer, classifier.logRegressionLayer), weights, strict=True):
        layer.W.set_value(W.astype(layer.W.dtype))
        layer.b.set_value(np.full(2, 100, layer.b.dtype))
    L1, L2_sqr = pytensor.function([], [classifier.L1, classifier.L2_sqr], mode=PLAIN)()
    # By hand: 1 + 2 + 3 + 4 and 0.5 + 0.5 + 1; 1 + 4 + 9 + 16 and 0.25 + 0.25 + 1.
    assert (L1, L2_sqr) == (12, 31.5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0 is not a positive finite number; use"),
        ({"learning_rate": float("inf")}, "learning_rate=inf is not"),
        ({"L1_reg": -1e-3}, "L1_reg=-0.001 is not a non-negative finite number; use"),
        ({"L2_reg": -1}, "L2_reg=-1 is not a non-negative finite number; use"),
        ({"L2_reg": float("nan")}, "L2_reg=nan is not"),
        ({"n_epochs": -1}, "n_epochs=-1 is not a positive integer; use"),
        ({"seed": -1}, "seed=-1 is not an integer from 0 to 4294967295; use"),
        ({"checkpoint": "c"}, "checkpoint='c' does not end in .npz"),
        ({"resume": True}, "resume=True needs the file to continue from"),
        ({"batch_size": 0}, "batch_size=0 is not a positive integer; use"),
        ({"batch_size": 20.0}, "batch_size=20.0 is not"),
        ({"n_hidden": 0}, "n_hidden=0 is not a positive integer; use"),
        ({"n_hidden": (500,)}, r"n_hidden=\(500,\) is not"),
        ({"save": "model"}, "save='model' does not end in .npz, .*; add the ending"),
    ],
)
def test_bad_arguments_are_refused_by_name_before_any_work(no_work, capsys, arguments, message):
    with pytest.raises(ValueError, match=message):
        mlp.test_mlp(**with_run(arguments))
    assert capsys.readouterr() == ("", "")


def test_a_minibatch_larger_than_a_split_is_refused_before_compiling(no_compiling):
    with pytest.raises(ValueError, match="batch_size=3001 is larger than the training set of 3000"):
        mlp.test_mlp(batch_size=3001, dataset=sample_path())


def test_training_starts_from_the_draws_of_seed_1234(run):
    bound = np.sqrt(6 / (784 + 500))
    drawn = np.random.RandomState(1234).uniform(-bound, bound, (784, 500)).astype("float32")
    assert list(run.initial) == NAMES
    np.testing.assert_array_equal(run.initial["hiddenLayer.W"], drawn)
    for name, shape in zip(NAMES[1:], [(500,), (500, 10), (10,)], strict=True):
        np.testing.assert_array_equal(run.initial[name], np.zeros(shape))


def test_every_step_of_an_epoch_is_that_of_plain_numpy(run, reference):
    np.testing.assert_allclose(run.costs, reference.costs, rtol=1e-6)
    assert list(run.result.best_parameters) == NAMES
    for name, value in run.result.best_parameters.items():
        np.testing.assert_allclose(value, reference.parameters[name], atol=2e-6)


def test_the_result_of_an_epoch(run, errors):
    result = run.result
    assert [result.best_validation_error, result.test_error] == pytest.approx(errors, abs=1e-12)
    assert (result.best_iteration, result.epochs, result.minibatches) == (150, 1, (150, 50, 50))
    [look] = result.history
    assert (look.epoch, look.minibatch, look.iteration) == (1, 150, 150)
    assert look.cost == run.costs[-1] and result.seconds > 0
    assert (look.validation_error, look.test_error) == (result.best_validation_error, result.test_error)


def test_the_lines_of_an_epoch(run, errors):
    assert run.stdout.splitlines() == expected_lines(errors)
    assert run.stderr == f"The code for file mlp.py ran for {run.result.seconds / 60:.2f}m\n"


@pytest.mark.parametrize("as_module", [False, True])
def test_run_directly_it_trains_saves_and_prints_the_same(run_script, tmp_path, reference, errors, as_module):
    arguments = ("--n-epochs", 1, "--dataset", "mnist_5k.npz", "--save", "m.npz")
    ended = run_script("mlp", *arguments, cwd=tmp_path, as_module=as_module)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == expected_lines(errors)
    assert "training: 100%" in ended.stderr
    assert re.search(r"^The code for file mlp.py ran for \d+\.\d\dm\n\Z", ended.stderr, re.MULTILINE)
    assert os.listdir(tmp_path) == ["m.npz"]
    with np.load(tmp_path / "m.npz") as file:
        assert file.files == [*NAMES, "about"]
        for name in NAMES:
            assert file[name].dtype == "float32"
            np.testing.assert_allclose(file[name], reference.parameters[name], atol=2e-6)


def test_every_argument_reaches_the_training_in_float64(run_script, tmp_path, sample, numpy_mlp):
    # FAST_COMPILE takes NumPy for every Op, which starts sooner.
    arguments = (
        "--learning-rate 0.05 --L1-reg 0.002 --L2-reg 0.003 --n-epochs 1 --batch-size 70 --n-hidden 13 "
        "--dataset mnist_5k.npz --floatX float64 --seed 77 --save m.npz"
    )
    ended = run_script("mlp", *arguments.split(), cwd=tmp_path, flags="mode=FAST_COMPILE")
    assert ended.returncode == 0, ended.stderr
    reference = numpy_mlp(
        *sample[0],
        batch_size=70,
        n_hidden=13,
        learning_rate=0.05,
        L1_reg=0.002,
        L2_reg=0.003,
        seed=77,
        drawn_as="float64",
    )
    with np.load(tmp_path / "m.npz") as file:
        for name in NAMES:
            assert file[name].dtype == "float64"
            np.testing.assert_allclose(file[name], reference.parameters[name], atol=1e-13)
