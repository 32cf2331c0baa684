import math
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytensor
import pytest

from deeplearning_tutorial.training import run as run_module
from deeplearning_tutorial.training.checkpoint import read_checkpoint
from deeplearning_tutorial.training.early_stopping import train_with_patience
from deeplearning_tutorial.training.results import DivergenceError, TrainingInterrupted, Validation
from deeplearning_tutorial.training.run import Run


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


def test_a_channel_is_told_each_validation_and_stops_training_after_the_files_were_written(tmp_path):
    script, told = Script([0.5, 0.25, 0.375]), []
    path = tmp_path / "run.npz"

    def channel(validation):
        told.append((validation, read_checkpoint(path).iteration))
        return "stop" if len(told) == 2 else "go on"

    run = Run(checkpoint=path, channel=channel).start("script")
    result = script.run(n_train_batches=2, n_epochs=3, patience=100, run=run)
    assert told == [(result.history[0], 2), (result.history[1], 4)]
    assert (script.iteration(), result.epochs, result.best_iteration) == (4, 2, 4)


def test_an_equal_error_is_no_improvement():
    result = Script([0.5, 0.5]).run(n_train_batches=2, n_epochs=2, patience=100)
    assert result.best_iteration == 2
    assert result.history[1].test_error is None


def test_seconds_are_those_of_the_loop(monkeypatch):
    clock = iter([10.0, 11.0, 12.0, 12.5])
    monkeypatch.setattr(run_module, "default_timer", lambda: next(clock))
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
    script.run(n_train_batches=2, n_epochs=4, patience=100, run=Run(save=path))
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
    Script([0.5, 0.4]).run(n_train_batches=2, n_epochs=2, patience=100, run=Run(progress=True))
    out, err = capsys.readouterr()
    assert out == plain
    assert "training: 100%" in err and "4/4" in err and "minibatch" in err


def test_the_bar_ends_where_patience_will_end(capsys):
    Script([0.5, 0.4, 0.4]).run(n_train_batches=4, n_epochs=100, patience=10, run=Run(progress=True))
    # From 10 + 1 minibatches to 14 + 1.
    err = capsys.readouterr().err
    assert "0/11 " in err and "15/15 " in err


def test_lines_on_a_terminal_get_past_the_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    Script([0.5]).run(n_train_batches=2, n_epochs=1, patience=100, run=Run(progress=True))
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1, minibatch 2/2, validation error 50.000000 %",
        "     epoch 1, minibatch 2/2, test error of best model 0.200000 %",
    ]


def test_the_bar_shows_the_cost_of_the_last_minibatch(capsys):
    Script([0.5]).run(n_train_batches=3, n_epochs=1, patience=100, run=Run(progress=True))
    assert "cost 0.375" in capsys.readouterr().err.split("\r")[-1]


ERRORS = [0.5, 0.4, 0.45, 0.3, 0.35]


@pytest.fixture
def resumable(tmp_path, capsys):
    """Run a script of five epochs of three minibatches, from its checkpoint where there is one."""

    def run(errors=ERRORS, resume=False, n_epochs=5, script=None, **options):
        options_of_run = {"checkpoint": tmp_path / "c.npz", "resume": resume, "log": tmp_path / "log.csv"}
        script = Script(errors) if script is None else script
        options = {"n_train_batches": 3, "patience": 100, "announce_every": 2} | options
        try:
            result = script.run(n_epochs=n_epochs, run=Run(**options_of_run), **options)
        finally:
            script.lines = capsys.readouterr().out.splitlines()
            script.logged = [line.rpartition(",")[0] for line in (tmp_path / "log.csv").read_text().split()]
        return script, result

    return run


def outcome(result):
    return replace(result, seconds=0, best_parameters=result.best_parameters["layer.W"].tolist())


@pytest.mark.parametrize("n_done", range(1, 6))
def test_a_resumed_run_ends_as_an_uninterrupted_one(resumable, tmp_path, n_done):
    whole, whole_result = resumable()
    for path in tmp_path.iterdir():
        path.unlink()
    first, _ = resumable(n_epochs=n_done)
    second, second_result = resumable(ERRORS[n_done:], resume=True)
    assert outcome(second_result) == outcome(whole_result)
    assert second.iteration() == whole.iteration() == 15
    assert first.calls + second.calls == whole.calls
    assert first.lines + second.lines == whole.lines and second.logged == whole.logged
    third, third_result = resumable([], resume=True)
    assert third.calls == third.lines == [] and outcome(third_result) == outcome(whole_result)


def test_a_run_that_patience_ended_stays_ended(resumable):
    options = {"patience": 7, "n_epochs": 100}
    _, result = resumable([0.5, 0.5], **options)
    again, again_result = resumable([], resume=True, **options)
    assert again.calls == [] and outcome(again_result) == outcome(result)


def test_a_resumed_run_goes_on_counting_its_seconds(resumable, monkeypatch):
    clock = iter([0.0, 4.0, 5.0, 5.0, 100.0, 101.0, 102.0, 102.0])
    monkeypatch.setattr(run_module, "default_timer", lambda: next(clock))
    resumable([0.5], n_epochs=1)
    _, result = resumable([0.4], resume=True, n_epochs=2)
    assert result.seconds == 7.0 and [look.seconds for look in result.history] == [4.0, 6.0]


class Interrupted(Script):
    """A script during whose training, at some iterations, Ctrl-C is pressed a number of times."""

    def __init__(self, errors, ctrl_c, presses, **options):
        super().__init__(errors, **options)
        self.ctrl_c, self.presses = ctrl_c, presses

    def train(self, index):
        cost = super().train(index)
        for _ in range(self.presses.get(self.iteration(), 0)):
            self.ctrl_c()
        return cost


@pytest.mark.parametrize("at", [2, 3, 5, 6, 14, 15])
def test_ctrl_c_ends_after_the_minibatch_with_everything_written(resumable, tmp_path, ctrl_c, at):
    whole, whole_result = resumable()
    for path in tmp_path.iterdir():
        path.unlink()
    first = Interrupted(ERRORS, ctrl_c, {at: 1})
    with pytest.raises(KeyboardInterrupt) as caught:
        resumable(script=first)
    result = caught.value.result
    assert first.iteration() == read_checkpoint(tmp_path / "c.npz").iteration == at
    assert len(result.history) == at // 3 and result.epochs == math.ceil(at / 3)
    told = str(caught.value)
    assert told.startswith(f"Interrupted after iteration {at}. {result.closing_line()}. ")
    assert told.endswith(f"The checkpoint is {tmp_path / 'c.npz'}; resume to continue from there.")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    second, second_result = resumable(ERRORS[at // 3 :], resume=True)
    assert outcome(second_result) == outcome(whole_result)
    assert first.calls + second.calls == whole.calls and first.lines + second.lines == whole.lines
    assert second.logged == whole.logged


def test_ctrl_c_before_the_first_validation_reaches_no_error(ctrl_c):
    with pytest.raises(TrainingInterrupted, match="after iteration 2. There was no validation") as caught:
        Interrupted([], ctrl_c, {2: 1}).run(n_train_batches=3, n_epochs=1, patience=100)
    assert caught.value.result.best_validation_error == math.inf


def test_a_second_ctrl_c_interrupts_at_once_and_leaves_the_checkpoint(resumable, tmp_path, ctrl_c):
    with pytest.raises(TrainingInterrupted, match="Interrupted within iteration 5. Best") as caught:
        resumable(script=Interrupted(ERRORS, ctrl_c, {5: 2}))
    assert caught.value.result.best_iteration == 3
    assert read_checkpoint(tmp_path / "c.npz").iteration == 3


def test_who_presses_ctrl_c_before_a_validation_is_told_what_a_second_would_do(ctrl_c, capsys):
    with pytest.raises(TrainingInterrupted):
        Interrupted([0.5] * 2, ctrl_c, {3: 1}, n_valid_batches=2).run(
            n_train_batches=3, n_epochs=2, patience=100
        )
    assert capsys.readouterr().err == "Stopping after this validation; Ctrl-C again stops at once\n"


def test_ctrl_c_while_the_first_minibatch_compiles_interrupts_at_once(ctrl_c):
    script = Interrupted([], ctrl_c, {1: 1})
    with pytest.raises(TrainingInterrupted, match="Interrupted within iteration 1. There was no validation"):
        script.run(n_train_batches=3, n_epochs=1, patience=100)
    assert script.calls == [("train", 0)]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda signum, frame: None])
def test_a_callers_own_way_with_ctrl_c_is_left_to_it(ctrl_c, handler):
    signal.signal(signal.SIGINT, handler)
    result = Interrupted([0.5], ctrl_c, {1: 1, 2: 1}).run(n_train_batches=3, n_epochs=1, patience=100)
    assert result.epochs == 1 and signal.getsignal(signal.SIGINT) is handler


def test_training_works_outside_the_main_thread():
    with ThreadPoolExecutor() as pool:
        run = pool.submit(Script([0.5]).run, n_train_batches=3, n_epochs=1, patience=100)
    assert run.result().best_validation_error == 0.5


class Diverging(Script):
    """A script whose cost is not finite from an iteration on."""

    def __init__(self, errors, at, cost):
        super().__init__(errors)
        self.at, self.cost = at, cost

    def train(self, index):
        cost = super().train(index)
        return np.asarray(self.cost) if self.iteration() >= self.at else cost


@pytest.mark.parametrize("cost", [math.nan, math.inf, -math.inf])
def test_a_cost_that_is_not_finite_ends_training_at_once(tmp_path, cost):
    run = Run(save=tmp_path / "m.npz", checkpoint=tmp_path / "c.npz").start("script", learning_rate=20.0)
    script = Diverging([0.5], at=5, cost=cost)
    with pytest.raises(DivergenceError) as caught:
        script.run(n_train_batches=3, n_epochs=9, patience=100, run=run)
    assert script.iteration() == 5
    assert str(caught.value).startswith(
        f"the cost is {cost} at iteration 5: training diverges with learning_rate=20.0; use a smaller "
        "learning rate, e.g. 2. Best validation score of 50.000000 % obtained at iteration 3, "
    )
    assert f"The best model is in {tmp_path / 'm.npz'}." in str(caught.value)
    assert caught.value.result.best_parameters["layer.W"].tolist() == [3, 3]
    checkpoint = read_checkpoint(tmp_path / "c.npz")
    assert checkpoint.iteration == 3 and checkpoint.parameters["layer.W"].tolist() == [3, 3]


def test_divergence_without_known_arguments_or_validations_is_told_as_well():
    with pytest.raises(FloatingPointError) as caught:
        Diverging([], at=1, cost=math.nan).run(n_train_batches=3, n_epochs=9, patience=100)
    assert str(caught.value).strip() == (
        "the cost is nan at iteration 1: training diverges; use a smaller learning rate. "
        "There was no validation yet."
    )


def test_files_that_could_not_be_written_in_the_end_are_in_the_result(tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run = Run(save=tmp_path / "m.npz")
    result = Script([0.5, 0.4]).run(n_train_batches=2, n_epochs=2, patience=100, run=run)
    assert result.best_validation_error == 0.4 and result.best_parameters["layer.W"].tolist() == [4, 4]
    line = f"the best model could not be written to {tmp_path / 'm.npz'}: No space left on device"
    assert result.write_errors == [line]
    # Not again where nothing has changed.
    assert capsys.readouterr().err == f"WARNING: {line}; each validation tries again\n"
