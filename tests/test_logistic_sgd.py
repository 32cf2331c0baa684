import os
import re

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from calling import with_run
from pytensor.compile.mode import Mode

from deeplearning_tutorial import logistic_sgd
from deeplearning_tutorial.datasets import sample_path
from deeplearning_tutorial.logistic_sgd import LogisticRegression, predict, sgd_optimization_mnist

# Small graphs are evaluated Op by Op; the runs on the sample compile as a user's do.
PLAIN = Mode(linker="py", optimizer=None)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tmp_path_factory.mktemp("logistic_sgd") / "model.npz"


@pytest.fixture(scope="module")
def run(record, model_path):
    """One epoch on the sample with the tutorial's defaults."""
    return record(
        logistic_sgd, sgd_optimization_mnist, n_epochs=1, dataset=str(sample_path()), save=model_path
    )


class Reference:
    """The same epoch in NumPy, in float64."""

    def __init__(self, sample, softmax_cost, error_of):
        (x, y), *others = sample
        self.W, self.b, self.costs = np.zeros((784, 10)), np.zeros(10), []
        for start in range(0, 3000, 600):
            batch = slice(start, start + 600)
            cost, dz = softmax_cost(x[batch] @ self.W + self.b, y[batch])
            self.costs.append(cost)
            self.W -= 0.13 * x[batch].T @ dz
            self.b -= 0.13 * dz.sum(axis=0)
        # A minibatch of 600 leaves 400 of the 1,000 digits of each split aside.
        self.validation_error, self.test_error = (error_of(self.scores(x[:600]), y[:600]) for x, y in others)

    def scores(self, x):
        return x @ self.W + self.b


@pytest.fixture(scope="module")
def reference(sample, softmax_cost, error_of):
    return Reference(sample, softmax_cost, error_of)


def expected_lines(reference):
    validation, test = 100 * reference.validation_error, 100 * reference.test_error
    return [
        "... loading data",
        "... building the model",
        "... training the model",
        f"epoch 1, minibatch 5/5, validation error {validation:f} %",
        f"     epoch 1, minibatch 5/5, test error of best model {test:f} %",
        f"Optimization complete with best validation score of {validation:f} %,"
        f"with test performance {test:f} %",
    ]


@pytest.mark.parametrize("floatX", ["float32", "float64"])
def test_parameters_start_at_zero_in_floatX(floatX):
    with pytensor.config.change_flags(floatX=floatX):
        x = pt.matrix("x")
        layer = LogisticRegression(input=x, n_in=7, n_out=3)
    assert layer.input is x
    assert layer.params == [layer.W, layer.b]
    for variable, name, shape in zip(layer.params, "Wb", [(7, 3), (3,)], strict=True):
        assert variable.name == name
        assert variable.type.shape == shape and variable.type.dtype == floatX
        np.testing.assert_array_equal(variable.get_value(), np.zeros(shape))


@pytest.mark.usefixtures("plain_inner_graphs")
@pytest.mark.parametrize("floatX, rtol", [("float32", 1e-5), ("float64", 1e-12)])
def test_probabilities_classes_likelihood_and_errors(floatX, rtol, softmax_cost):
    rng = np.random.default_rng(4)
    values = rng.normal(size=(5, 7)), rng.normal(size=(7, 3)), rng.normal(size=3)
    x_value, W, b = (value.astype(floatX) for value in values)
    labels = np.array([2, 0, 1, 1, 2], "int32")
    with pytensor.config.change_flags(floatX=floatX):
        x, y = pt.matrix("x"), pt.ivector("y")
        layer = LogisticRegression(x, 7, 3)
        layer.W.set_value(W)
        layer.b.set_value(b)
        outputs = [layer.p_y_given_x, layer.y_pred, layer.negative_log_likelihood(y), layer.errors(y)]
        p, predicted, likelihood, errors = pytensor.function([x, y], outputs, mode=PLAIN)(x_value, labels)
    z = x_value.astype("float64") @ W + b
    np.testing.assert_allclose(p, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), rtol=rtol)
    np.testing.assert_array_equal(predicted, z.argmax(axis=1))
    np.testing.assert_allclose(likelihood, softmax_cost(z, labels)[0], rtol=rtol)
    assert errors == (z.argmax(axis=1) != labels).mean()
    assert p.dtype == likelihood.dtype == floatX
    assert predicted.dtype == "int64" and errors.dtype == "float64"


@pytest.mark.usefixtures("plain_inner_graphs")
def test_the_likelihood_and_errors_of_a_case_worked_by_hand():
    # With b = log(1, 2, 5) and W = 0 every example has the probabilities 1/8, 2/8 and 5/8.
    y = pt.ivector("y")
    layer = LogisticRegression(pt.matrix("x", dtype="float64"), 2, 3)
    layer.b.set_value(np.log([1, 2, 5]).astype(layer.b.dtype))
    f = pytensor.function(
        [layer.input, y], [layer.negative_log_likelihood(y), layer.errors(y)], mode=PLAIN
    )
    likelihood, errors = f(np.ones((4, 2)), np.array([2, 2, 0, 1], "int32"))
    np.testing.assert_allclose(likelihood, -np.log(5 / 8 * 5 / 8 * 1 / 8 * 2 / 8) / 4, rtol=1e-6)
    assert errors == 0.5


def test_labels_that_are_no_vector_of_integers_are_refused():
    layer = LogisticRegression(pt.matrix("x"), 7, 3)
    with pytest.raises(TypeError, match="y has 2 dimensions, y_pred has 1; give a vector"):
        layer.errors(pt.imatrix("y"))
    with pytest.raises(NotImplementedError, match="y has dtype float32; cast the labels"):
        layer.errors(pt.fvector("y"))


@pytest.mark.parametrize("name, sizes", [("n_in", (0, 3)), ("n_in", (7.0, 3)), ("n_out", (7, -1))])
def test_sizes_that_are_no_positive_integers_are_refused_by_name(name, sizes):
    value = dict(zip(("n_in", "n_out"), sizes, strict=True))[name]
    with pytest.raises(ValueError, match=f"^{name}={value} is not a positive integer; use e.g. {name}="):
        LogisticRegression(pt.matrix("x"), *sizes)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"learning_rate": 0}, "learning_rate=0 is not a positive finite number; use"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1 is not"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is not"),
        ({"learning_rate": "0.1"}, "learning_rate='0.1' is not"),
        ({"n_epochs": 0}, "n_epochs=0 is not a positive integer; use"),
        ({"n_epochs": 1.5}, "n_epochs=1.5 is not"),
        ({"batch_size": -600}, "batch_size=-600 is not a positive integer; use"),
        ({"batch_size": None}, "batch_size=None is not"),
        ({"checkpoint": "c"}, "checkpoint='c' does not end in .npz"),
        ({"resume": True}, "resume=True needs the file to continue from"),
        ({"save": "model.pkl"}, "save='model.pkl' does not end in .npz, .*; add the ending"),
    ],
)
def test_bad_arguments_are_refused_by_name_before_any_work(no_work, capsys, arguments, message):
    with pytest.raises(ValueError, match=message):
        sgd_optimization_mnist(**with_run(arguments))
    assert capsys.readouterr() == ("", "")


def test_a_minibatch_larger_than_a_split_is_refused_before_compiling(no_compiling):
    with pytest.raises(ValueError, match="batch_size=1001 is larger than the validation set of 1000"):
        sgd_optimization_mnist(batch_size=1001, dataset=sample_path())


def test_every_step_of_an_epoch_is_that_of_plain_numpy(run, reference):
    np.testing.assert_allclose(run.costs, reference.costs, rtol=1e-6)
    best = run.result.best_parameters
    assert list(best) == ["classifier.W", "classifier.b"]
    np.testing.assert_allclose(best["classifier.W"], reference.W, atol=1e-7)
    np.testing.assert_allclose(best["classifier.b"], reference.b, atol=1e-7)


def test_the_result_of_an_epoch(run, reference):
    result = run.result
    assert result.best_validation_error == pytest.approx(reference.validation_error, abs=1e-12)
    assert result.test_error == pytest.approx(reference.test_error, abs=1e-12)
    assert (result.best_iteration, result.epochs, result.minibatches) == (5, 1, (5, 1, 1))
    [look] = result.history
    assert (look.epoch, look.minibatch, look.iteration) == (1, 5, 5)
    assert look.cost == run.costs[-1] and result.seconds > 0
    assert (look.validation_error, look.test_error) == (result.best_validation_error, result.test_error)


def test_the_lines_of_an_epoch(run, reference):
    *lines, speed = run.stdout.splitlines()
    assert lines == expected_lines(reference)
    assert speed == f"The code run for 1 epochs, with {1 / run.result.seconds:f} epochs/sec"
    assert run.stderr == f"The code for file logistic_sgd.py ran for {run.result.seconds:.1f}s\n"


def test_a_learning_rate_of_numpy_trains_in_the_models_precision(record, run):
    again = record(
        logistic_sgd,
        sgd_optimization_mnist,
        learning_rate=np.float64(0.13),
        n_epochs=1,
        dataset=sample_path(),
        save=None,
    )
    assert again.result.best_parameters["classifier.W"].dtype == "float32"
    np.testing.assert_allclose(again.costs, run.costs, rtol=1e-6)


def test_predict_prints_the_classes_of_the_first_ten_test_digits(run, reference, sample, model_path, capsys):
    with pytensor.config.change_flags(floatX="float32"):
        predicted = predict(model=model_path, dataset=sample_path())
    np.testing.assert_array_equal(predicted, reference.scores(sample[2][0][:10]).argmax(axis=1))
    assert capsys.readouterr().out == (
        f"... loading data\nPredicted values for the first 10 examples in test set:\n{predicted}\n"
    )


def test_predict_looks_where_training_saves_by_default(tmp_path, monkeypatch, no_work):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="best_model.npz"):
        predict()


def test_predict_refuses_another_models_file_before_any_work(tmp_path, no_work):
    np.savez(tmp_path / "m.npz", **{"hiddenLayer.W": np.zeros((784, 500)), "hiddenLayer.b": np.zeros(500)})
    with pytest.raises(ValueError, match="holds hiddenLayer.W, .* the model has classifier.W, classifier.b"):
        predict(model=tmp_path / "m.npz")


@pytest.mark.parametrize("as_module", [False, True])
def test_run_directly_it_trains_saves_and_prints_the_same(run_script, tmp_path, reference, as_module):
    ended = run_script(
        "logistic_sgd", "--n-epochs", 1, "--dataset", "mnist_5k.npz", cwd=tmp_path, as_module=as_module
    )
    assert ended.returncode == 0, ended.stderr
    *lines, speed = ended.stdout.splitlines()
    assert lines == expected_lines(reference)
    assert re.fullmatch(r"The code run for 1 epochs, with \d+\.\d{6} epochs/sec", speed)
    assert "training: 100%" in ended.stderr
    assert re.search(r"^The code for file logistic_sgd.py ran for \d+\.\ds\n\Z", ended.stderr, re.MULTILINE)
    assert os.listdir(tmp_path) == ["best_model.npz"]
    with np.load(tmp_path / "best_model.npz") as file:
        assert file["classifier.W"].dtype == "float32"
        np.testing.assert_allclose(file["classifier.W"], reference.W, atol=1e-7)


def test_in_float64_an_epoch_agrees_with_numpy_to_the_last_digits(run_script, tmp_path, reference):
    # FAST_COMPILE takes NumPy for every Op, which starts sooner, and shows that the user's flags are kept.
    arguments = ("--n-epochs", 1, "--dataset", "mnist_5k.npz", "--floatX", "float64", "--save", "m.npz")
    ended = run_script("logistic_sgd", *arguments, cwd=tmp_path, flags="mode=FAST_COMPILE")
    assert ended.stdout.splitlines()[:-1] == expected_lines(reference)
    with np.load(tmp_path / "m.npz") as file:
        assert file["classifier.W"].dtype == "float64"
        np.testing.assert_allclose(file["classifier.W"], reference.W, atol=1e-15)
        np.testing.assert_allclose(file["classifier.b"], reference.b, atol=1e-15)
