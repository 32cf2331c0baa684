import math

import numpy as np
import pytensor
import pytest

from deeplearning_tutorial import early_stopping
from deeplearning_tutorial.early_stopping import train_with_patience
from deeplearning_tutorial.results import TrainingResult, Validation
from deeplearning_tutorial.training_files import TrainingFiles


class Script:
    """A model whose validation and test errors are written down beforehand.

    ``errors`` holds one validation error per validation. The test error measured at iteration i is i / 1000.
    Each training step adds one to ``W``, and the cost of iteration i is i / 8.
    """

    def __init__(self, errors, n_valid_batches=1, n_test_batches=1):
        self.errors = iter(errors)
        self.n_batches = (n_valid_batches, n_test_batches)
        self.W = pytensor.shared(np.zeros(2), name="W")
        self.calls = []

    def iteration(self):
        return int(self.W.get_value()[0])

    def train(self, index):
        self.calls.append(("train", index))
        self.W.set_value(self.W.get_value() + 1)
        return np.asarray(self.iteration() / 8)

    def validate(self, index):
        self.calls.append(("validate", index))
        return np.asarray(next(self.errors))

    def test(self, index):
        self.calls.append(("test", index))
        return np.asarray(self.iteration() / 1000)

    def run(self, *, n_train_batches, n_epochs, patience, **options):
        return train_with_patience(
            self.train,
            self.validate,
            self.test,
            n_train_batches,
            *self.n_batches,
            n_epochs,
            patience,
            {"layer.W": self.W},
            **options,
        )


def test_the_lines_are_the_tutorials_to_the_letter(capsys):
    Script([0.5, 0.25, 0.375]).run(n_train_batches=2, n_epochs=3, patience=100)
    assert capsys.readouterr() == (
        "epoch 1, minibatch 2/2, validation error 50.000000 %\n"
        "     epoch 1, minibatch 2/2, test error of best model 0.200000 %\n"
        "epoch 2, minibatch 2/2, validation error 25.000000 %\n"
        "     epoch 2, minibatch 2/2, test error of best model 0.400000 %\n"
        "epoch 3, minibatch 2/2, validation error 37.500000 %\n",
        "",
    )


def test_the_iteration_is_announced_with_lenets_two_spaces_before_it_is_trained(capsys):
    script = Script([0.5, 0.5])
    script.run(n_train_batches=3, n_epochs=2, patience=100, announce_every=4)
    assert capsys.readouterr().out.splitlines() == [
        "training @ iter =  0",
        "epoch 1, minibatch 3/3, validation error 50.000000 %",
        "     epoch 1, minibatch 3/3, test error of best model 0.300000 %",
        "training @ iter =  4",
        "epoch 2, minibatch 3/3, validation error 50.000000 %",
    ]


def test_each_epoch_goes_through_the_minibatches_in_order_and_each_look_through_its_split():
    script = Script([0.5, 0.25, 0.25, 0.375], n_valid_batches=2, n_test_batches=3)
    result = script.run(n_train_batches=2, n_epochs=2, patience=100)
    epoch = [("train", 0), ("train", 1), ("validate", 0), ("validate", 1)]
    test = [("test", 0), ("test", 1), ("test", 2)]
    assert script.calls == [*epoch, *test, *epoch, *test]
    # By hand: (0.5 + 0.25) / 2, then (0.25 + 0.375) / 2.
    assert [look.validation_error for look in result.history] == [0.375, 0.3125]
    assert result.minibatches == (2, 2, 3)


def test_the_result_holds_the_best_validation_and_the_parameters_it_had():
    script = Script([0.5, 0.25, 0.375])
    result = script.run(n_train_batches=2, n_epochs=3, patience=100)
    assert (result.best_validation_error, result.best_iteration, result.test_error) == (0.25, 4, 0.004)
    assert result.epochs == 3
    assert script.iteration() == 6
    assert {name: value.tolist() for name, value in result.best_parameters.items()} == {"layer.W": [4, 4]}
    assert result.history == [
        Validation(1, 2, 2, cost=0.25, validation_error=0.5, test_error=0.002),
        Validation(2, 2, 4, cost=0.5, validation_error=0.25, test_error=0.004),
        Validation(3, 2, 6, cost=0.75, validation_error=0.375, test_error=None),
    ]
    assert all(type(look.cost) is type(look.validation_error) is float for look in result.history)


def test_an_equal_error_is_no_improvement():
    result = Script([0.5, 0.5]).run(n_train_batches=2, n_epochs=2, patience=100)
    assert result.best_iteration == 2
    assert result.history[1].test_error is None


def test_seconds_are_those_of_the_loop(monkeypatch):
    clock = iter([10.0, 11.0, 12.0, 12.5])
    monkeypatch.setattr(early_stopping, "default_timer", lambda: next(clock))
    result = Script([0.5]).run(n_train_batches=1, n_epochs=1, patience=100)
    assert result.seconds == 2.5
    assert [look.seconds for look in result.history] == [1.0]


@pytest.mark.parametrize(
    "n_train_batches, patience, looks",
    [
        (4, 10, [4, 8]),  # once an epoch, for 4 < 10 // 2
        (12, 10, [5, 10]),  # every 10 // 2 minibatches, in the midst of an epoch
        (7, 15, [7, 14]),  # 7 = 15 // 2
        (12, 9, [4, 8]),  # 9 // 2 = 4
    ],
)
def test_validation_comes_after_an_epoch_or_half_the_patience_whichever_is_shorter(
    n_train_batches, patience, looks
):
    script = Script([0.5] * 9)
    result = script.run(n_train_batches=n_train_batches, n_epochs=100, patience=patience)
    assert [look.iteration for look in result.history] == looks
    # The first error stays the best, so patience is never extended.
    assert script.iteration() == patience + 1


def test_in_the_midst_of_an_epoch_the_lines_name_the_minibatch(capsys):
    result = Script([0.5, 0.25, 0.5]).run(n_train_batches=8, n_epochs=2, patience=10)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1, minibatch 5/8, validation error 50.000000 %",
        "     epoch 1, minibatch 5/8, test error of best model 0.500000 %",
        "epoch 2, minibatch 2/8, validation error 25.000000 %",
        "     epoch 2, minibatch 2/8, test error of best model 1.000000 %",
        "epoch 2, minibatch 7/8, validation error 50.000000 %",
    ]
    assert [(look.epoch, look.minibatch, look.iteration) for look in result.history] == [
        (1, 5, 5),
        (2, 2, 10),
        (2, 7, 15),
    ]


def trained(errors, **options):
    """Iterations trained, and epochs begun, with four minibatches an epoch and patience 10."""
    script = Script(errors)
    result = script.run(n_train_batches=4, n_epochs=100, patience=10, **options)
    return script.iteration(), result.epochs


# Worked by hand. Counted from 0, as patience counts, validations come at iterations 3, 7, 11, 15, ..., and
# training ends after the first iteration that is not below the patience, iteration 10 at first.
@pytest.mark.parametrize(
    "errors, iterations, epochs",
    [
        # The first improvement gives max(10, 2 * 3) = 10: iterations 0 to 10, in the third epoch.
        ([0.5, 0.5], 11, 3),
        # One at iteration 7 gives 14.
        ([0.5, 0.4, 0.4], 15, 4),
        # Then one at iteration 11 gives 22.
        ([0.5, 0.4, 0.3, 0.3, 0.3], 23, 6),
        # And one at 19 gives 38, though 15 brought none.
        ([0.5, 0.4, 0.3, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2], 39, 10),
        # 0.398 = 0.4 * 0.995 and above are not enough: 14 it stays.
        ([0.5, 0.4, 0.3985], 15, 4),
        # Just below is enough.
        ([0.5, 0.4, 0.3975, 0.3975, 0.3975], 23, 6),
    ],
)
def test_patience_is_extended_by_a_clear_improvement_alone(errors, iterations, epochs):
    assert trained(errors) == (iterations, epochs)


def test_a_small_improvement_is_kept_although_it_extends_nothing():
    script = Script([0.5, 0.4, 0.3985])
    result = script.run(n_train_batches=4, n_epochs=100, patience=10)
    assert (result.best_validation_error, result.best_iteration) == (0.3985, 12)
    assert result.best_parameters["layer.W"].tolist() == [12, 12]


def test_the_threshold_applies_to_the_best_error_even_if_that_extended_nothing():
    # Iteration 3 gives 4 * 3 = 12. At iteration 7, 0.399 is above 0.4 * 0.995 = 0.398. At iteration 11,
    # 0.3975 is below that, but above 0.399 * 0.995 = 0.397005.
    assert trained([0.4, 0.399, 0.3975], patience_increase=4) == (13, 4)


def test_increase_and_threshold_may_be_given():
    # Iteration 7 gives 3 * 7 = 21.
    assert trained([0.5, 0.4, 0.4, 0.4, 0.4], patience_increase=3) == (22, 6)
    # 0.4 is above 0.5 * 0.75, so iteration 7 extends nothing.
    assert trained([0.5, 0.4], improvement_threshold=0.75) == (11, 3)


def test_training_ends_with_the_last_epoch_whatever_patience_is_left():
    script = Script([0.5, 0.4, 0.3])
    result = script.run(n_train_batches=2, n_epochs=3, patience=100)
    assert (script.iteration(), result.epochs, len(result.history)) == (6, 3, 3)


def test_patience_that_ends_with_an_epoch_does_not_begin_another():
    # Patience 7 ends with iteration 7 counted from 0, the last of the second epoch.
    script = Script([0.5] * 9)
    result = script.run(n_train_batches=4, n_epochs=100, patience=7)
    assert (script.iteration(), result.epochs) == (8, 2)


def test_each_improvement_is_saved_at_once(tmp_path, monkeypatch):
    path = tmp_path / "best.npz"
    script = Script([0.5, 0.4, 0.45, 0.3])
    stored = []

    def validate(index):
        if path.exists():
            with np.load(path) as file:
                stored.append((script.iteration(), file.files[:-1], file["layer.W"].tolist()))
        return Script.validate(script, index)

    monkeypatch.setattr(script, "validate", validate)
    script.run(n_train_batches=2, n_epochs=4, patience=100, files=TrainingFiles(save=path))
    # What is in the file when the later looks are taken, at iterations 4, 6 and 8.
    assert stored == [
        (4, ["layer.W"], [2, 2]),
        (6, ["layer.W"], [4, 4]),
        (8, ["layer.W"], [4, 4]),
    ]
    with np.load(path) as file:
        assert file["layer.W"].tolist() == [8, 8]


def test_without_save_no_file_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Script([0.5]).run(n_train_batches=2, n_epochs=1, patience=100)
    assert list(tmp_path.iterdir()) == []


def test_the_progress_bar_goes_to_stderr_and_leaves_stdout_alone(capsys):
    Script([0.5, 0.4]).run(n_train_batches=2, n_epochs=2, patience=100)
    plain = capsys.readouterr().out
    Script([0.5, 0.4]).run(n_train_batches=2, n_epochs=2, patience=100, progress=True)
    out, err = capsys.readouterr()
    assert out == plain
    assert "training: 100%" in err and "4/4" in err and "minibatch" in err


def test_the_bar_ends_where_patience_will_end(capsys):
    Script([0.5, 0.4, 0.4]).run(n_train_batches=4, n_epochs=100, patience=10, progress=True)
    # From 10 + 1 minibatches to 14 + 1.
    err = capsys.readouterr().err
    assert "0/11 " in err and "15/15 " in err


def test_lines_on_a_terminal_get_past_the_bar(capsys, monkeypatch):
    monkeypatch.setattr(early_stopping.sys.stderr, "isatty", lambda: True, raising=False)
    Script([0.5]).run(n_train_batches=2, n_epochs=1, patience=100, progress=True)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1, minibatch 2/2, validation error 50.000000 %",
        "     epoch 1, minibatch 2/2, test error of best model 0.200000 %",
    ]


def test_a_result_before_any_validation_has_no_best_error():
    result = TrainingResult()
    assert result.best_validation_error == math.inf and result.history == []
