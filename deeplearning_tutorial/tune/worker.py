"""Run the trials of a study.

A trial calls the page's ``experiment(state, channel)``; its value is the best validation error. Workers
share only the storage, so they may be processes or machines. Each running trial has a heartbeat; a trial
without one counts as dead and is retried.

Optuna's own ``RDBStorage(heartbeat_interval=...)`` does not suffice: it excludes journal files, runs only
within ``Study.optimize``, never retries a trial whose worker died before its first heartbeat, and on a shared
SQLite file compares the clocks of different machines.
"""

import io
import os
import socket
import threading
import time
from contextlib import contextmanager, redirect_stdout, suppress
from types import SimpleNamespace

import numpy as np

from deeplearning_tutorial.files.streams import stderr
from deeplearning_tutorial.training.interrupts import on_interrupt
from deeplearning_tutorial.training.results import DivergenceError
from deeplearning_tutorial.tune.search_space import suggest
from deeplearning_tutorial.tune.storage import require_optuna

PRUNERS = ("median", "hyperband", "successive_halving", "none")
# Retries of a trial whose workers died. The limit is needed because the trial itself may kill them.
MAX_RETRIES = 3


def make_pruner(name, n_epochs):
    """Return Optuna's pruner with a name in `PRUNERS`; ``n_epochs`` is Hyperband's longest trial."""
    pruners = require_optuna().pruners
    return {
        "median": pruners.MedianPruner,
        "hyperband": lambda: pruners.HyperbandPruner(max_resource=n_epochs or "auto"),
        "successive_halving": pruners.SuccessiveHalvingPruner,
        "none": pruners.NopPruner,
    }[name]()


def counted_trials(study):
    """List the trials that count towards a study's number: all except withdrawn and retried ones.

    Parameters
    ----------
    study : optuna.Study

    Returns
    -------
    list of optuna.trial.FrozenTrial
        Ordered by number.
    """
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name != "FAIL"
        or (trial.user_attrs.get("retries", 0) >= MAX_RETRIES and "withdrawn" not in trial.user_attrs)
    ]


class Worker:
    """Run trials of a study until it has enough.

    Parameters
    ----------
    study : optuna.Study
        Its pruner must be set.
    page : Page
        The page to train.
    space : dict of str to Range or Choices
        As `search_space.parse_searches` returns it.
    arguments : dict
        The page's other arguments, and the tuples of which ``space`` has elements.
    n_trials : int
        Trials of the whole study, by all workers.
    heartbeat_timeout : float
        Seconds without a heartbeat after which a trial counts as dead.
    seed : tuple of int, optional
        Seed of Optuna's sampler; different for each worker.
    """

    def __init__(self, study, page, space, arguments, n_trials, *, heartbeat_timeout=60.0, seed=None):
        self.study = study
        self.page = page
        self.space = space
        self.arguments = arguments
        self.n_trials = n_trials
        self.heartbeat_timeout = heartbeat_timeout
        self.seed = seed
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._optuna = require_optuna()
        # For each running trial, its last heartbeat and the time when this worker first saw it.
        self._last_heartbeats = {}
        self._interrupted = False
        self._requeuing = False

    def run(self):
        """Run trials; return when the study is complete, or raise the error that ended a trial."""
        with on_interrupt(self._interrupt):
            self._run()

    def _interrupt(self, signum, frame):
        # Also set a flag: if a compiler called back into Python, the exception is printed and lost.
        self._interrupted = True
        if not self._requeuing:
            raise KeyboardInterrupt

    def _run(self):
        while True:
            self._stop_if_interrupted()
            self._retry_dead_trials()
            trials = counted_trials(self.study)
            n_finished = sum(trial.state.is_finished() for trial in trials)
            if n_finished >= self.n_trials:
                return
            # A waiting trial is a retry, which counts already.
            if len(trials) < self.n_trials or any(trial.state.name == "WAITING" for trial in trials):
                self._run_one()
            else:
                # Other workers run the last trials. Wait in case one dies and has to be retried.
                time.sleep(min(self.heartbeat_timeout / 4, 2))

    def _stop_if_interrupted(self):
        if self._interrupted:
            raise KeyboardInterrupt

    def _run_one(self):
        if self.seed is not None:
            # A new sampler for each trial makes a study that was stopped between trials continue identically.
            # Ctrl-C within a trial adds a trial, which changes the samples that follow.
            state = np.random.SeedSequence([*self.seed, len(self.study.get_trials(deepcopy=False))])
            self.study.sampler = self._optuna.samplers.TPESampler(seed=int(state.generate_state(1)[0]))
        trial = self.study.ask()
        heartbeat = _Heartbeat(trial, self.heartbeat_timeout / 4)
        with suppress(self._optuna.exceptions.UpdateFinishedTrialError), heartbeat:
            earlier = sum(other.number < trial.number for other in counted_trials(self.study))
            if earlier >= self.n_trials and "retry_of" not in trial.user_attrs:
                # Another worker started the last trial at the same moment.
                return self._withdraw(trial, "surplus")
            try:
                state, value = self._train(trial)
            except KeyboardInterrupt:
                with self._without_interrupts():
                    if self._withdraw(trial, "interrupted"):
                        self.study.enqueue_trial(trial.params, _retry_attributes(trial, more=0))
                raise
            except self._optuna.exceptions.OptunaError:
                raise
            except ValueError:
                self._withdraw(trial, "refused")
                advice = "no trial has succeeded yet; correct the arguments, or repeat the command"
                print(advice, file=stderr, flush=True)
                raise
            except Exception as error:
                trial.set_user_attr("reason", f"{type(error).__name__}: {error}")
                self._retry(trial)
                raise
            self.study.tell(trial, value, state)
            return self._print_result(trial.number)
        print(f"trial {trial.number} had no heartbeat for too long, so it is retried", file=stderr)

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
        flags = {name: value for name, value in arguments.items() if value is not None}
        trial.set_user_attr("arguments", flags)
        try:
            with redirect_stdout(io.StringIO()):
                # A trial writes no files.
                state = SimpleNamespace(**{"save": None} | self.page.with_values(arguments))
                result = self.page.experiment(state, channel)
        except (ValueError, DivergenceError) as error:
            trials = self.study.get_trials(deepcopy=False)
            if isinstance(error, ValueError) and not any(other.intermediate_values for other in trials):
                # No trial has succeeded yet, so the fixed arguments may be wrong.
                raise
            # Only these arguments are unsuitable; others may work.
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

    def _print_result(self, number):
        trials = counted_trials(self.study)
        finished = next(trial for trial in trials if trial.number == number)
        n_finished = sum(trial.state.is_finished() for trial in trials)
        attributes = finished.user_attrs
        error = attributes.get("validation_error")
        parts = [
            f"[{n_finished}/{self.n_trials}] trial {number}",
            "no validation" if error is None else f"validation error {100 * error:f} %",
            *(f"{name}={value}" for name, value in finished.params.items()),
            f"{finished.duration.total_seconds():.1f} s",
        ]
        if "reason" in attributes:
            parts.append(f"pruned: {attributes['reason']}")
        print(", ".join(parts), file=stderr, flush=True)

    def _withdraw(self, trial, why):
        """Mark a trial of this worker as failed and not counted; return False if it had already ended."""
        with suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            trial.set_user_attr("withdrawn", why)
            return self._fail(trial.number)
        return False

    def _retry(self, trial):
        """Mark a trial as failed, and requeue it unless it has been retried too often."""
        with self._without_interrupts():
            if self._fail(trial.number) and trial.user_attrs.get("retries", 0) < MAX_RETRIES:
                self.study.enqueue_trial(trial.params, _retry_attributes(trial, more=1))

    @contextmanager
    def _without_interrupts(self):
        """Defer interrupts, so that a trial marked as failed is also requeued."""
        self._requeuing = True
        try:
            yield
        finally:
            self._requeuing = False

    def _fail(self, number):
        try:
            self.study.tell(number, state=self._optuna.trial.TrialState.FAIL)
        except (ValueError, self._optuna.exceptions.UpdateFinishedTrialError):
            # It has already ended; the storage lets only one of several workers end it.
            return False
        return True

    def _retry_dead_trials(self):
        # Use only this machine's clock, because others may differ.
        now = time.monotonic()
        running = [trial for trial in counted_trials(self.study) if trial.state.name == "RUNNING"]
        last_heartbeats = {}
        for trial in running:
            beat = trial.user_attrs.get("heartbeat")
            previous, since = self._last_heartbeats.get(trial.number, (None, now))
            last_heartbeats[trial.number] = beat, since if beat == previous else now
            if now - last_heartbeats[trial.number][1] > self.heartbeat_timeout:
                self._retry(trial)
        self._last_heartbeats = last_heartbeats


def _retry_attributes(trial, more):
    attributes = trial.user_attrs
    return {
        "retry_of": attributes.get("retry_of", trial.number),
        "retries": attributes.get("retries", 0) + more,
    }


class _Heartbeat:
    """Record heartbeats of a trial of this process in a thread."""

    def __init__(self, trial, interval):
        self._trial = trial
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._stopped.set()
        self._thread.join()

    def _run(self):
        n = 0
        while not self._stopped.is_set():
            # If the storage keeps failing, or the trial has ended, the worker itself finds out.
            with suppress(Exception):
                self._trial.set_user_attr("heartbeat", n)
            n += 1
            self._stopped.wait(self._interval)
        # Each thread has its own connection.
        self._trial.storage.remove_session()
