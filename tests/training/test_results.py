import copy
import math
import multiprocessing
import pickle
import pkgutil
from importlib import import_module

import numpy as np
import pytest
import scripted

import deeplearning_tutorial
from deeplearning_tutorial.training.results import (
    DivergenceError,
    TrainingInterrupted,
    TrainingResult,
    Validation,
)


def test_the_summary_is_the_tutorials_closing_line():
    result = TrainingResult(best_validation_error=0.0618, best_iteration=200, test_error=0.065)
    assert result.closing_line() == (
        "Best validation score of 6.180000 % obtained at iteration 200, with test performance 6.500000 %"
    )


def test_a_result_before_any_validation_has_no_best_error():
    result = TrainingResult()
    assert result.best_validation_error == math.inf and result.history == []
    assert result.closing_line() == "There was no validation yet"


def test_validations_are_equal_whatever_time_they_took():
    assert Validation(1, 5, 5, 0.5, 0.25, None, 3.0) == Validation(1, 5, 5, 0.5, 0.25, None, 4.0)
    assert Validation(1, 5, 5, 0.5, 0.25, None) != Validation(1, 5, 5, 0.5, 0.25, 0.25)


def test_an_early_end_carries_what_was_reached_and_is_caught_under_its_common_name():
    result = TrainingResult()
    for error, common in ((TrainingInterrupted, KeyboardInterrupt), (DivergenceError, FloatingPointError)):
        assert issubclass(error, common)
        assert str(error("why", result)) == "why" and error("why", result).result is result


VALIDATION = Validation(1, 4, 4, cost=0.3, validation_error=0.4, test_error=0.41, seconds=0.5)
RESULT = TrainingResult(0.4, 4, 0.41, 1, 0.5, [VALIDATION], minibatches=(4, 2, 1), write_errors=["the log"])
COPIES = {
    "copied": copy.copy,
    "copied deeply": copy.deepcopy,
    **{
        f"pickled by protocol {protocol}": lambda each, protocol=protocol: pickle.loads(
            pickle.dumps(each, protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


def exceptions():
    """Every exception class of the package, by name."""
    found = pkgutil.walk_packages(deeplearning_tutorial.__path__, "deeplearning_tutorial.")
    # Once imported, the command of this name hides the function; the back ends need the extras.
    names = {module.name for module in found} - {"deeplearning_tutorial.predict"}
    for name in sorted(name for name in names if not name.endswith(("__main__", ".jax", ".pytorch"))):
        for kind in vars(import_module(name)).values():
            if isinstance(kind, type) and issubclass(kind, BaseException):
                if kind.__module__.startswith("deeplearning_tutorial") and not kind.__name__.startswith("_"):
                    yield kind.__name__, kind


EXCEPTIONS = dict(exceptions())


def test_all_exceptions_are_found():
    assert EXCEPTIONS.keys() >= {"DatasetNotFoundError", "DivergenceError", "TrainingInterrupted"}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_is_the_same_in_another_process(name, copied):
    kind = EXCEPTIONS[name]
    error = kind("told", RESULT) if hasattr(kind("", RESULT), "result") else kind("told")
    error.add_note("seen on Monday")
    again = copied(error)
    assert type(again) is kind and str(again) == "told" and again.args == error.args
    assert again.__notes__ == ["seen on Monday"]
    assert vars(again) == vars(error)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
def test_a_result_is_the_same_in_another_process(copied):
    assert copied(RESULT) == RESULT and copied(RESULT).history[0].seconds == 0.5
    weights = np.arange(3, dtype="float32")
    again = copied(TrainingResult(best_parameters={"layer.b": weights}))
    np.testing.assert_array_equal(again.best_parameters["layer.b"], weights)


def test_a_pool_of_processes_hears_of_a_rate_that_diverges():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(scripted.train, (0.25,)).get(timeout=60).best_validation_error == 0.22
        ended = pool.apply_async(scripted.train, (0.5, 3, (5, 7), "diverged"))
        with pytest.raises(DivergenceError, match="the cost is nan at iteration 1") as caught:
            ended.get(timeout=60)
    assert caught.value.result == TrainingResult()
