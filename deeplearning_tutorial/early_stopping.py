"""The patience loop that trains every model of the tutorial."""

import math
from contextlib import ExitStack
from timeit import default_timer

import numpy as np
from tqdm import tqdm

from deeplearning_tutorial.interrupts import on_interrupt
from deeplearning_tutorial.parameters import copy_parameters
from deeplearning_tutorial.results import DivergenceError, TrainingInterrupted, TrainingResult, Validation
from deeplearning_tutorial.streams import past_bars, stderr, stdout
from deeplearning_tutorial.training_files import TrainingFiles


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
    with _progress_bar(iteration, total, progress) as bar, _Interrupt() as interrupt:
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
                    error = _mean_error(validate_model, n_valid_batches, interrupt)
                    test_error = None
                    if error < result.best_validation_error:
                        if error < result.best_validation_error * improvement_threshold:
                            # Counted from 0, this is iteration - 1.
                            patience = max(patience, (iteration - 1) * patience_increase)
                            bar.total = min(n_iterations, patience + 1)
                        test_error = _mean_error(test_model, n_test_batches, interrupt)
                        result.best_validation_error = error
                        result.best_iteration = iteration
                        result.test_error = test_error
                        result.best_parameters = copy_parameters(parameters)
                    result.seconds = default_timer() - start
                    when = epoch + 1, minibatch + 1, iteration
                    result.history.append(Validation(*when, cost, error, test_error, result.seconds))
                    files.write(result, iteration, patience, parameters, optimiser)
                    _print_validation(result.history[-1], n_train_batches)
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


def _progress_bar(iteration, total, shown):
    return tqdm(
        desc="compiling",
        unit="minibatch",
        initial=iteration,
        total=total,
        disable=not shown,
        file=stderr,
        dynamic_ncols=True,
        # A log file gets a line of progress now and then, a terminal a smooth bar.
        mininterval=0.1 if stderr.isatty() else 10,
    )


class _Interrupt:
    """Let Ctrl-C only ask for an end, so that it does not come in the midst of an update of the parameters.

    The second Ctrl-C interrupts at once.
    """

    def __init__(self):
        self.requested = False
        self._acknowledged = False
        self._deferred = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._deferred.close()

    def defer(self):
        """Begin to hold Ctrl-C back, unless the caller handles it in a way of their own."""
        self._deferred.enter_context(on_interrupt(self._request))

    def acknowledge(self):
        """Tell, once, who has pressed Ctrl-C what is still to come."""
        if self.requested and not self._acknowledged:
            self._acknowledged = True
            _print("Stopping after this validation; Ctrl-C again stops at once", file=stderr)

    # Nothing but the flag: it may come in the midst of writing a line, or of compiled code.
    def _request(self, signum, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def _interrupted(when, result, files):
    return TrainingInterrupted(f"Interrupted {when}. {result.summary()}. {files.whereabouts()}", result)


def _diverged(cost, iteration, result, files):
    rate = files.arguments.get("learning_rate")
    used, smaller = ("", "") if rate is None else (f" learning_rate={rate}", f", e.g. {rate / 10:g}")
    return (
        f"the cost is {cost} at iteration {iteration}: training diverges{' with' if used else ''}{used}; "
        f"use a smaller learning rate{smaller}. {result.summary()}. {files.whereabouts()}"
    )


def _mean_error(model, n_batches, interrupt):
    errors = []
    for index in range(n_batches):
        interrupt.acknowledge()
        errors.append(model(index))
    return float(np.mean(errors))


def _print_validation(validation, n_train_batches):
    position = f"epoch {validation.epoch}, minibatch {validation.minibatch}/{n_train_batches}"
    _print(f"{position}, validation error {validation.validation_error * 100:f} %")
    if validation.test_error is not None:
        _print(f"     {position}, test error of best model {validation.test_error * 100:f} %")


def _print(*values, file=stdout):
    with past_bars():
        print(*values, file=file, flush=True)
