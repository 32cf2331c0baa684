import signal
from types import SimpleNamespace

import optuna
import pytest
import scripted

from deeplearning_tutorial.training.results import TrainingInterrupted, TrainingResult
from deeplearning_tutorial.tune import worker
from deeplearning_tutorial.tune.search_space import Choices, Range
from deeplearning_tutorial.tune.worker import MAX_RETRIES, Worker, counted_trials, make_pruner

RATE = {"rate": Range(0.1, 0.9)}


@pytest.fixture
def study():
    return optuna.create_study(pruner=optuna.pruners.NopPruner())


def work(study, space=RATE, arguments=None, n_trials=4, experiment=scripted.page.experiment, **options):
    page = SimpleNamespace(experiment=experiment, with_values=dict)
    Worker(study, page, space, arguments or {}, n_trials, **options).run()


def states(study):
    return [trial.state.name for trial in study.trials]


def test_a_trial_stores_its_best_validation_error_and_attributes(study, capsys):
    work(study, {"rate": Choices((0.75,)), "sizes.1": Choices((9,))}, {"sizes": (5, 7), "save": None}, 1)
    [trial] = study.trials
    assert trial.value == 0.75 - 0.03
    assert trial.intermediate_values == {1: 0.74, 2: 0.73, 3: 0.72}
    stored = {name: trial.user_attrs[name] for name in ("test_error", "iteration", "epochs", "arguments")}
    arguments = {"sizes": (5, 9), "rate": 0.75}
    assert stored == {"test_error": 0.725, "iteration": 30, "epochs": 3, "arguments": arguments}
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("[1/1] trial 0, validation error 72.000000 %, rate=0.75, sizes.1=9, ")


def test_the_number_of_trials_is_of_the_whole_study_and_can_be_raised(study):
    work(study, n_trials=3)
    work(study, n_trials=3)
    assert states(study) == ["COMPLETE"] * 3
    work(study, n_trials=5)
    assert states(study) == ["COMPLETE"] * 5


def test_an_unpromising_trial_is_pruned():
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0.5))
    space = {"n_epochs": Range(3, 4)}
    work(study, space, {"rate": 0.9}, n_trials=1)
    work(study, space, {"rate": 0.4}, n_trials=2)
    bad, good = study.trials
    assert (bad.state.name, bad.user_attrs["epochs"]) == ("PRUNED", 1)
    assert bad.user_attrs["reason"] == "unpromising"
    assert (good.state.name, good.user_attrs["epochs"]) == ("COMPLETE", good.params["n_epochs"])


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("unfit", "sizes=(5, 7) do not fit"),
        ("diverged", "the cost is nan at iteration 1"),
        ("silent", "ended before the first validation"),
    ],
)
def test_unsuitable_arguments_end_only_their_trial(study, kind, reason):
    work(study, n_trials=1)
    work(study, arguments={"kind": kind}, n_trials=2)
    work(study, n_trials=3)
    assert states(study) == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert study.trials[1].user_attrs["reason"] == reason
    assert study.trials[1].value is None


def test_unsuitable_arguments_before_any_validation_end_the_worker_and_do_not_count(study):
    for _ in range(2):
        with pytest.raises(ValueError, match="do not fit"):
            work(study, arguments={"kind": "unfit"}, n_trials=1)
    assert states(study) == ["FAIL"] * 2 and counted_trials(study) == []
    work(study, n_trials=1)
    assert states(study) == ["FAIL"] * 2 + ["COMPLETE"]


def test_a_trial_interrupted_by_ctrl_c_is_requeued_and_counts_once(study, ctrl_c):
    with pytest.raises(KeyboardInterrupt):
        work(study, arguments={"signalled": signal.SIGINT}, n_trials=2)
    assert states(study) == ["FAIL", "WAITING"]
    work(study, n_trials=2)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].params == study.trials[0].params
    assert [trial.number for trial in counted_trials(study)] == [1, 2]


@pytest.mark.parametrize("has_channel", [True, False], ids=["channel", "no channel"])
def test_a_lost_ctrl_c_takes_effect_at_the_next_validation_or_trial(study, ctrl_c, has_channel):
    def experiment(state, channel):
        try:
            ctrl_c()
        except KeyboardInterrupt:
            # As Python does in a callback from a compiler.
            pass
        return scripted.page.experiment(state, channel if has_channel else None)

    with pytest.raises(KeyboardInterrupt):
        work(study, experiment=experiment)
    assert states(study) == (["FAIL", "WAITING"] if has_channel else ["COMPLETE"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_training_that_raises_interrupted_is_requeued(study):
    def experiment(state, channel):
        raise TrainingInterrupted("Interrupted", TrainingResult())

    with pytest.raises(TrainingInterrupted):
        work(study, experiment=experiment)
    assert states(study) == ["FAIL", "WAITING"]


def test_a_broken_script_ends_the_worker_and_its_trial_is_retried_a_limited_number_of_times(study):
    space = {"kind": Choices(("broken",)), "rate": Range(0.1, 0.9)}
    for n in range(MAX_RETRIES + 1):
        assert len(study.trials) == (n + 1 if n else 0)
        with pytest.raises(TypeError, match="the script is broken"):
            work(study, space, n_trials=1)
    assert states(study) == ["FAIL"] * (MAX_RETRIES + 1)
    assert len({trial.params["rate"] for trial in study.trials}) == 1
    work(study, space, n_trials=1)
    [given_up] = counted_trials(study)
    assert given_up.user_attrs["reason"] == "TypeError: the script is broken"


def test_a_trial_without_heartbeats_is_retried_with_its_parameters(study, monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds):
        clock.now += seconds

    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    study.ask().suggest_float("rate", 0.1, 0.9)
    work(study, n_trials=3, heartbeat_timeout=60)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert study.trials[3].params == study.trials[0].params
    assert study.trials[3].user_attrs["retry_of"] == 0
    # It waited for the timeout, but not much longer.
    assert 60 < clock.now < 65


def test_a_second_ctrl_c_does_not_lose_a_trial_that_is_being_requeued(study, ctrl_c, monkeypatch):
    tell = study.tell

    def tell_and_interrupt(*args, **kwargs):
        tell(*args, **kwargs)
        ctrl_c()

    monkeypatch.setattr(study, "tell", tell_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        work(study, arguments={"signalled": signal.SIGINT})
    assert states(study) == ["FAIL", "WAITING"]
    assert study.trials[1].user_attrs["retry_of"] == 0


def test_a_retried_trial_is_never_surplus(study):
    study.ask().suggest_float("rate", 0.1, 0.9)
    study.tell(0, state=optuna.trial.TrialState.FAIL)
    # Another worker started a trial in its place before it was requeued.
    study.ask()
    study.enqueue_trial(study.trials[0].params, {"retry_of": 0, "retries": 1})
    study.tell(1, state=optuna.trial.TrialState.PRUNED)
    work(study, n_trials=2, experiment=scripted.page.experiment)
    assert states(study) == ["FAIL", "PRUNED", "COMPLETE"]


def test_a_trial_with_heartbeats_is_not_retried(study, monkeypatch):
    other = study.ask()
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds):
        clock.now += seconds
        other.set_user_attr("heartbeat", clock.now // 30)
        if clock.now > 500:
            study.tell(other, 0.25)

    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    work(study, n_trials=1, heartbeat_timeout=60)
    assert states(study) == ["COMPLETE"]


def test_a_running_trial_records_heartbeats(study):
    def experiment(state, channel):
        [running] = study.trials
        before = running.user_attrs.get("heartbeat", -1)
        while study.trials[0].user_attrs.get("heartbeat", -1) < before + 2:
            pass
        return scripted.page.experiment(state, channel)

    work(study, n_trials=1, experiment=experiment, heartbeat_timeout=0.1)
    assert states(study) == ["COMPLETE"]


def test_a_worker_whose_trial_was_declared_dead_abandons_it_and_continues(study, capsys):
    def experiment(state, channel):
        if len(study.trials) == 1:
            study.tell(0, state=optuna.trial.TrialState.FAIL)
        return scripted.page.experiment(state, channel)

    work(study, n_trials=1, experiment=experiment)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert "trial 0 had no heartbeat for too long" in capsys.readouterr().err


def test_one_of_two_workers_that_start_the_last_trial_withdraws(study, monkeypatch):
    ask = study.ask

    def ask_after_another():
        other = ask()
        trial = ask()
        study.tell(other, 0.5)
        return trial

    monkeypatch.setattr(study, "ask", ask_after_another)
    work(study, n_trials=1)
    assert states(study) == ["COMPLETE", "FAIL"]
    assert study.trials[1].user_attrs["withdrawn"] == "surplus"
    assert [trial.number for trial in counted_trials(study)] == [0]


def test_a_seed_gives_the_same_trials_even_if_the_study_is_stopped_in_between():
    def rates(*parts, seed):
        study = optuna.create_study()
        for n_trials in parts:
            work(study, n_trials=n_trials, seed=seed)
        return [trial.params["rate"] for trial in study.trials]

    whole = rates(13, seed=(1, 0))
    assert rates(4, 13, seed=(1, 0)) == whole
    assert len(set(whole)) == 13
    assert rates(2, seed=(1, 1))[0] != whole[0] != rates(2, seed=(2, 0))[0]


@pytest.mark.parametrize(
    "name, kind",
    [
        ("median", optuna.pruners.MedianPruner),
        ("hyperband", optuna.pruners.HyperbandPruner),
        ("successive_halving", optuna.pruners.SuccessiveHalvingPruner),
        ("none", optuna.pruners.NopPruner),
    ],
)
def test_each_pruner_is_optunas_and_prunes(name, kind):
    # Hyperband assigns a trial to its bracket by the name of the study, which is random unless given.
    study = optuna.create_study(study_name="pruned", pruner=make_pruner(name, 3))
    assert type(study.pruner) is kind
    work(study, n_trials=12, seed=(3,))
    ended_early = [trial for trial in study.trials if trial.user_attrs["epochs"] < 3]
    assert bool(ended_early) == (name != "none")
    assert all(trial.state.name == "PRUNED" for trial in ended_early)
