import math

from deeplearning_tutorial.results import DivergenceError, TrainingInterrupted, TrainingResult, Validation


def test_the_summary_is_the_tutorials_closing_line():
    result = TrainingResult(best_validation_error=0.0618, best_iteration=200, test_error=0.065)
    assert result.summary() == (
        "Best validation score of 6.180000 % obtained at iteration 200, with test performance 6.500000 %"
    )


def test_a_result_before_any_validation_has_no_best_error():
    result = TrainingResult()
    assert result.best_validation_error == math.inf and result.history == []
    assert result.summary() == "There was no validation yet"


def test_validations_are_equal_whatever_time_they_took():
    assert Validation(1, 5, 5, 0.5, 0.25, None, 3.0) == Validation(1, 5, 5, 0.5, 0.25, None, 4.0)
    assert Validation(1, 5, 5, 0.5, 0.25, None) != Validation(1, 5, 5, 0.5, 0.25, 0.25)


def test_an_early_end_carries_what_was_reached_and_is_caught_under_its_common_name():
    result = TrainingResult()
    for error, common in ((TrainingInterrupted, KeyboardInterrupt), (DivergenceError, FloatingPointError)):
        assert issubclass(error, common)
        assert str(error("why", result)) == "why" and error("why", result).result is result
