"""The patience loop that trains every model of the tutorial."""

import math
import os
import signal
import sys
import threading
from contextlib import nullcontext
from timeit import default_timer

import numpy as np
from tqdm import tqdm

from deeplearning_tutorial.parameters import copy_parameters
from deeplearning_tutorial.results import DivergenceError, TrainingInterrupted, TrainingResult, Validation
from deeplearning_tutorial.training_files import TrainingFiles

# A log file gets a line of progress now and then, a terminal a smooth bar.
_BAR = {
    "desc": "compiling",
    "unit": "minibatch",
    "dynamic_ncols": True,
    "mininterval": 0.1 if sys.stderr.isatty() else 10,
}


def train_with_patience(
    train_model,
    validate_model,
    test_model,
    n_train_batches,
    n_valid_batches,
    n_test_batches,
    n_epochs,
    patience,
    parameters,
    *,
    patience_increase=2,
    improvement_threshold=0.995,
    announce_every=None,
    optimiser=None,
    files=None,
    progress=False,
    channel=None,
):
    """Train minibatch by minibatch until patience or the epochs run out.

    Patience counts minibatches. A validation error below ``improvement_threshold`` times the best one
    extends it to ``patience_increase`` times the iteration reached (deep learning tutorial, section
    "Early-Stopping"; Bengio 2012, "Practical recommendations", section 3.1.1).

    Parameters
    ----------
    train_model, validate_model, test_model : callable
        Take the index of a minibatch. The first updates the parameters and returns the cost; the others
        return the fraction of misclassified examples.
    n_train_batches, n_valid_batches, n_test_batches : int
        Minibatches per split.
    n_epochs : int
        Epochs at most.
    patience : int
        Minibatches to train regardless of progress.
    parameters : dict of str to shared variable
        Copied whenever the validation error improves.
    patience_increase : int
        See above.
    improvement_threshold : float
        See above.
    announce_every : int, optional
        Print the iteration each time this many minibatches have passed, as LeNet's script does.
    optimiser : dict of str to shared variable, optional
        What else ``train_model`` updates, such as velocities: part of the checkpoint, not of the model.
    files : TrainingFiles, optional
        Receives the state after each validation and in the end, and may hold one to go on from.
    progress : bool
        Show a progress bar on stderr.
    channel : callable, optional
        Given each `Validation` after the files were written; training ends after the one for which it returns
        ``'stop'``. What it raises ends training, too.

    Returns
    -------
    TrainingResult

    Raises
    ------
    TrainingInterrupted
        On Ctrl-C, after the minibatch or validation in hand was finished and the files were written. A second
        Ctrl-C, and one while the first minibatch compiles, interrupts at once and writes nothing.
    DivergenceError
        If the cost becomes NaN or infinite.
    """
    files = TrainingFiles() if files is None else files
    result, iteration = TrainingResult(minibatches=(n_train_batches, n_valid_batches, n_test_batches)), 0
    n_iterations = n_epochs * n_train_batches
    validation_frequency = min(n_train_batches, patience // 2)
    if files.resumed is not None:
        result, iteration, patience = files.restore(parameters, result.minibatches, optimiser)
    compiled = stopped = False
    start = default_timer() - result.seconds
    total = min(n_iterations, patience + 1)
    with tqdm(initial=iteration, total=total, disable=not progress, **_BAR) as bar, _Interrupt() as interrupt:
        try:
            while iteration < n_iterations and iteration <= patience and not (interrupt.requested or stopped):
                epoch, minibatch = divmod(iteration, n_train_batches)
                result.epochs = epoch + 1
                if announce_every and iteration % announce_every == 0:
                    _print("training @ iter = ", iteration)
                cost = float(train_model(minibatch))
                if not math.isfinite(cost):
                    raise DivergenceError(_diverged(cost, iteration + 1, result, files), result)
                iteration += 1

                if iteration % validation_frequency == 0:
                    position = f"epoch {epoch + 1}, minibatch {minibatch + 1}/{n_train_batches}"
                    error = _mean_error(validate_model, n_valid_batches)
                    test_error = None
                    _print(f"{position}, validation error {error * 100:f} %")
                    if error < result.best_validation_error:
                        if error < result.best_validation_error * improvement_threshold:
                            # Counted from 0, this is iteration - 1.
                            patience = max(patience, (iteration - 1) * patience_increase)
                            bar.total = min(n_iterations, patience + 1)
                        test_error = _mean_error(test_model, n_test_batches)
                        result.best_validation_error = error
                        result.best_iteration = iteration
                        result.test_error = test_error
                        result.best_parameters = copy_parameters(parameters)
                        _print(f"     {position}, test error of best model {test_error * 100:f} %")
                    result.seconds = default_timer() - start
                    when = epoch + 1, minibatch + 1, iteration
                    result.history.append(Validation(*when, cost, error, test_error, result.seconds))
                    files.write(result, iteration, patience, parameters, optimiser)
                    stopped = channel is not None and channel(result.history[-1]) == "stop"

                if not compiled:
                    compiled = True
                    interrupt.defer()
                    # The first call compiled; its seconds must not count in the time left.
                    bar.unpause()
                    bar.set_description("training")
                # Shown when the bar next refreshes itself.
                bar.set_postfix_str(f"cost {cost:.4g}", refresh=False)
                bar.update()
            result.seconds = default_timer() - start
            files.write(result, iteration, patience, parameters, optimiser)
        except KeyboardInterrupt:
            raise _interrupted(f"within iteration {iteration + 1}", result, files) from None
        finally:
            result.seconds = default_timer() - start
            result.unwritten = list(files.unwritten.values())
    if interrupt.requested:
        raise _interrupted(f"after iteration {iteration}", result, files)
    return result


class _Interrupt:
    """Let Ctrl-C only ask for an end, so that it does not come in the midst of an update of the parameters.

    The second Ctrl-C interrupts at once.
    """

    def __init__(self):
        self.requested = False
        self._deferred = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._deferred:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def defer(self):
        """Begin to hold Ctrl-C back, unless the caller handles it in a way of their own."""
        if (
            # Only the main thread may set handlers.
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._deferred = True
            signal.signal(signal.SIGINT, self._request)

    def _request(self, signum, frame):
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not by print: the signal may have come while sys.stderr was being written.
        os.write(2, b"\nStopping after this minibatch or validation; Ctrl-C again stops at once\n")


def _interrupted(when, result, files):
    return TrainingInterrupted(f"Interrupted {when}. {result.summary()}. {files.whereabouts()}", result)


def _diverged(cost, iteration, result, files):
    rate = files.arguments.get("learning_rate")
    used, smaller = ("", "") if rate is None else (f" learning_rate={rate}", f", e.g. {rate / 10:g}")
    return (
        f"the cost is {cost} at iteration {iteration}: training diverges{' with' if used else ''}{used}; "
        f"use a smaller learning rate{smaller}. {result.summary()}. {files.whereabouts()}"
    )


def _mean_error(model, n_batches):
    return float(np.mean([model(index) for index in range(n_batches)]))


def _print(*values):
    # Only on a terminal does a line of output have to get past the bar.
    with tqdm.external_write_mode(file=sys.stdout) if sys.stderr.isatty() else nullcontext():
        print(*values, flush=True)
