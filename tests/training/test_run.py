import inspect

import numpy as np
import pytensor
import pytest
from machine import MNIST

from deeplearning_tutorial.datasets import load_data, sample_path
from deeplearning_tutorial.training.results import Validation
from deeplearning_tutorial.training.run import OPTIONS, Run


def trained(run, n_iterations=4):
    """Train nothing under a run, with a validation every second iteration that is better than the last."""
    W = pytensor.shared(np.zeros(2), name="W")
    with run.training({"W": W}, None, (2, 1, 1), n_iterations, 100) as result:
        for iteration in range(run.iteration + 1, n_iterations + 1):
            W.set_value(W.get_value() + 1)
            if iteration % 2 == 0:
                error = 1 / iteration
                run.record_validation(Validation(iteration // 2, 2, iteration, 0.5, error, error), 100)
            run.record_minibatch(iteration, 0.5)
    return result


def test_the_options_are_those_that_are_documented_once():
    parameters = inspect.signature(Run).parameters
    assert OPTIONS == set(parameters)
    assert all(f"\n{name} : " in inspect.getdoc(Run) for name in parameters)


def test_a_run_without_options_and_without_a_start_keeps_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = trained(Run())
    assert (result.best_iteration, result.best_validation_error) == (4, 0.25)
    assert result.best_parameters["W"].tolist() == [4, 4]
    assert list(tmp_path.iterdir()) == []


def test_the_arguments_that_identify_a_run_are_as_json_has_them():
    with pytensor.config.change_flags(floatX="float32"):
        run = Run().start("page", nkerns=(2, np.int64(3)), rate=np.float64(0.5), kind=None)
    given = {"nkerns": [2, 3], "rate": 0.5, "kind": None}
    assert run.arguments == given | {"floatX": "float32", "mode": "NUMBA"}
    assert type(run.arguments["nkerns"][1]) is int and type(run.arguments["rate"]) is float


def test_one_object_may_serve_several_runs(tmp_path):
    run = Run(save=tmp_path / "m.npz")
    first = trained(run.start("page"), 2)
    second = trained(run.start("page"), 4)
    assert (first.best_iteration, second.best_iteration) == (2, 4)
    assert len(first.history) == 1 and run.iteration == 4


def test_a_started_run_knows_the_iteration_that_it_resumes_from(tmp_path):
    run = Run(checkpoint=tmp_path / "c.npz", resume=True)
    assert run.start("page").iteration == 0
    trained(run, 2)
    again = Run(checkpoint=tmp_path / "c.npz", resume=True).start("page")
    assert again.iteration == 2
    assert [validation.iteration for validation in trained(again, 4).history] == [2, 4]


def test_an_exception_of_the_channel_ends_training():
    def channel(validation):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trained(Run(channel=channel))


def test_the_sample_is_not_mnist():
    run = Run().start("page")
    assert not run.is_on_mnist()
    run.check_data(load_data(sample_path()))
    assert not run.is_on_mnist()


@pytest.mark.needs("mnist")
def test_mnist_is():
    run = Run().start("page")
    run.check_data(load_data(MNIST))
    assert run.is_on_mnist()
