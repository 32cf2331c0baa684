"""Workers, which run the trials of a study.

A trial calls the script's ``experiment(state, channel)``, and its value is the best validation error. The
storage is all that workers share, so they may be processes or machines. Each running trial gives a sign of
life now and then; one that stays silent is taken for dead and tried again.
"""

import io
import os
import socket
import threading
import time
from contextlib import contextmanager, redirect_stdout, suppress
from types import SimpleNamespace

import numpy as np

from deeplearning_tutorial.interrupts import on_interrupt
from deeplearning_tutorial.results import DivergenceError
from deeplearning_tutorial.search_space import suggest
from deeplearning_tutorial.streams import stderr
from deeplearning_tutorial.study_storage import require_optuna

PRUNERS = ("median", "hyperband", "successive_halving", "none")
# Times that a trial whose workers died is tried again: it may be what kills them.
MAX_RETRIES = 3


def make_pruner(name, n_epochs):
    """Return Optuna's pruner of a name in `PRUNERS`; ``n_epochs`` tells Hyperband how long a trial may be."""
    pruners = require_optuna().pruners
    return {
        "median": pruners.MedianPruner,
        "hyperband": lambda: pruners.HyperbandPruner(max_resource=n_epochs or "auto"),
        "successive_halving": pruners.SuccessiveHalvingPruner,
        "none": pruners.NopPruner,
    }[name]()


def counting(study):
    """List the trials that count towards a study's number, but not those that were put back or begun anew.

    Parameters
    ----------
    study : optuna.Study

    Returns
    -------
    list of optuna.trial.FrozenTrial
        By number.
    """
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name != "FAIL"
        or (trial.user_attrs.get("retries", 0) >= MAX_RETRIES and "withdrawn" not in trial.user_attrs)
    ]


class Worker:
    """Take trials of a study until it has enough.

    Parameters
    ----------
    study : optuna.Study
        With its pruner.
    experiment : callable
        The script's ``experiment(state, channel)``.
    space : dict of str to Range or Choices
        As `search_space.parse_searches` gives it.
    arguments : dict
        The script's other arguments, and the tuples of which ``space`` has elements.
    n_trials : int
        Of the whole study, whoever runs them.
    silence : float
        Seconds after which a trial without a sign of life is taken for dead.
    seed : tuple of int, optional
        For Optuna's sampler; two workers need two.
    """

    def __init__(self, study, experiment, space, arguments, n_trials, *, silence=60.0, seed=None):
        self.study = study
        self.experiment = experiment
        self.space = space
        self.arguments = arguments
        self.n_trials = n_trials
        self.silence = silence
        self.seed = seed
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._optuna = require_optuna()
        # Of each trial that runs, its last sign and when that was first seen.
        self._last_heard = {}
        self._interrupted = False
        self._putting_back = False

    def run(self):
        """Run trials; return when the study has all of them, or raise what ended one."""
        with on_interrupt(self._interrupt):
            self._run()

    def _interrupt(self, signum, frame):
        # Noted, too, for where a compiler calls Python back, an exception is printed and forgotten.
        self._interrupted = True
        if not self._putting_back:
            raise KeyboardInterrupt

    def _run(self):
        while True:
            self._stop_if_interrupted()
            self._retry_the_silent()
            trials = counting(self.study)
            n_finished = sum(trial.state.is_finished() for trial in trials)
            if n_finished >= self.n_trials:
                return
            # A trial that waits was begun before and counts already.
            if len(trials) < self.n_trials or any(trial.state.name == "WAITING" for trial in trials):
                self._run_one()
            else:
                # Somebody else's are running. Should they die, they are to be tried again.
                time.sleep(min(self.silence / 4, 2))

    def _stop_if_interrupted(self):
        if self._interrupted:
            raise KeyboardInterrupt

    def _run_one(self):
        if self.seed is not None:
            # Anew for each trial, so that a study that was stopped between two goes on as it would have.
            # Ctrl-C within one leaves a trial more, and what follows is drawn differently.
            state = np.random.SeedSequence([*self.seed, len(self.study.get_trials(deepcopy=False))])
            self.study.sampler = self._optuna.samplers.TPESampler(seed=int(state.generate_state(1)[0]))
        trial = self.study.ask()
        with suppress(self._optuna.exceptions.UpdateFinishedTrialError), _Signs(trial, self.silence / 4):
            earlier = sum(other.number < trial.number for other in counting(self.study))
            if earlier >= self.n_trials and "retry_of" not in trial.user_attrs:
                # Another worker took the last one at the same moment.
                return self._withdraw(trial, "surplus")
            try:
                state, value = self._train(trial)
            except KeyboardInterrupt:
                with self._without_interrupts():
                    if self._withdraw(trial, "interrupted"):
                        self.study.enqueue_trial(trial.params, _lineage(trial, more=0))
                raise
            except self._optuna.exceptions.OptunaError:
                raise
            except ValueError:
                self._withdraw(trial, "refused")
                told = "no trial has worked yet; correct the arguments, or try others with the same command"
                print(told, file=stderr, flush=True)
                raise
            except Exception as error:
                trial.set_user_attr("reason", f"{type(error).__name__}: {error}")
                self._retry(trial)
                raise
            self.study.tell(trial, value, state)
            return self._announce(trial.number)
        print(f"trial {trial.number} was silent for too long, so it is tried again", file=stderr)

    def _train(self, trial):
        """Run the experiment; return the trial's state and value."""
        states = self._optuna.trial.TrialState
        trial.set_user_attr("worker", self.name)
        reason, n_validations = None, 0

        def channel(validation):
            nonlocal reason, n_validations
            self._stop_if_interrupted()
            n_validations += 1
            trial.report(validation.validation_error, n_validations)
            if trial.should_prune():
                reason = "unpromising"
                return "stop"

        arguments = suggest(self.space, trial, self.arguments)
        told = {name: value for name, value in arguments.items() if value is not None}
        trial.set_user_attr("arguments", told)
        try:
            with redirect_stdout(io.StringIO()):
                result = self.experiment(SimpleNamespace(**arguments), channel)
        except (ValueError, DivergenceError) as error:
            trials = self.study.get_trials(deepcopy=False)
            if isinstance(error, ValueError) and not any(other.intermediate_values for other in trials):
                # Nothing has worked so far, so it may be what all trials have in common.
                raise
            # These arguments are no good; others may be.
            reason = str(error).partition(". ")[0]
            result = getattr(error, "result", None)
        if result is not None and result.best_iteration:
            trial.set_user_attr("validation_error", result.best_validation_error)
            trial.set_user_attr("test_error", result.test_error)
            trial.set_user_attr("iteration", result.best_iteration)
            trial.set_user_attr("epochs", result.epochs)
        elif reason is None:
            reason = "ended before the first validation"
        if reason is not None:
            trial.set_user_attr("reason", reason)
            return states.PRUNED, None
        return states.COMPLETE, result.best_validation_error

    def _announce(self, number):
        trials = counting(self.study)
        finished = next(trial for trial in trials if trial.number == number)
        n_finished = sum(trial.state.is_finished() for trial in trials)
        attributes = finished.user_attrs
        error = attributes.get("validation_error")
        told = [
            f"[{n_finished}/{self.n_trials}] trial {number}",
            "no validation" if error is None else f"validation error {100 * error:f} %",
            *(f"{name}={value}" for name, value in finished.params.items()),
            f"{finished.duration.total_seconds():.1f} s",
        ]
        if "reason" in attributes:
            told.append(f"pruned: {attributes['reason']}")
        print(", ".join(told), file=stderr, flush=True)

    def _withdraw(self, trial, why):
        """Fail a trial of this worker that does not count; tell whether it had not ended before."""
        with suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            trial.set_user_attr("withdrawn", why)
            return self._fail(trial.number)
        return False

    def _retry(self, trial):
        """Fail a trial, and have it tried again unless that was done too often."""
        with self._without_interrupts():
            if self._fail(trial.number) and trial.user_attrs.get("retries", 0) < MAX_RETRIES:
                self.study.enqueue_trial(trial.params, _lineage(trial, more=1))

    @contextmanager
    def _without_interrupts(self):
        """Have an interrupt wait, or a trial that has failed may not be enqueued again."""
        self._putting_back = True
        try:
            yield
        finally:
            self._putting_back = False

    def _fail(self, number):
        try:
            self.study.tell(number, state=self._optuna.trial.TrialState.FAIL)
        except (ValueError, self._optuna.exceptions.UpdateFinishedTrialError):
            # It has ended; of several workers the storage lets one alone end it.
            return False
        return True

    def _retry_the_silent(self):
        # By this machine's clock alone, for others' may differ.
        now = time.monotonic()
        running = [trial for trial in counting(self.study) if trial.state.name == "RUNNING"]
        last_heard = {}
        for trial in running:
            sign = trial.user_attrs.get("sign")
            known, since = self._last_heard.get(trial.number, (None, now))
            last_heard[trial.number] = sign, since if sign == known else now
            if now - last_heard[trial.number][1] > self.silence:
                self._retry(trial)
        self._last_heard = last_heard


def _lineage(trial, more):
    attributes = trial.user_attrs
    return {
        "retry_of": attributes.get("retry_of", trial.number),
        "retries": attributes.get("retries", 0) + more,
    }


class _Signs:
    """Show that a trial of this process is alive."""

    def __init__(self, trial, interval):
        self._trial = trial
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._give, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._stopped.set()
        self._thread.join()

    def _give(self):
        n = 0
        while not self._stopped.is_set():
            # Where the storage fails for good, or the trial has ended, its worker will be told.
            with suppress(Exception):
                self._trial.set_user_attr("sign", n)
            n += 1
            self._stopped.wait(self._interval)
        # A thread has a connection of its own.
        self._trial.storage.remove_session()
