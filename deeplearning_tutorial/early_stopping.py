"""The patience loop that trains every model of the tutorial, and what it returns."""

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from timeit import default_timer

import numpy as np
from tqdm import tqdm

from deeplearning_tutorial.parameters import copy_parameters, save_parameters

# A log file gets a line of progress now and then, a terminal a smooth bar.
_BAR = {
    "desc": "compiling",
    "unit": "minibatch",
    "dynamic_ncols": True,
    "mininterval": 0.1 if sys.stderr.isatty() else 10,
}


@dataclass(frozen=True)
class Validation:
    """One look at the validation set.

    Attributes
    ----------
    epoch, minibatch, iteration : int
        When it took place, counted from 1 as in the printed lines.
    cost : float
        Training cost of the minibatch just trained.
    validation_error : float
        Fraction of the validation examples that were misclassified.
    test_error : float or None
        The same for the test set; None unless this was the best validation error so far.
    """

    epoch: int
    minibatch: int
    iteration: int
    cost: float
    validation_error: float
    test_error: float | None


@dataclass
class TrainingResult:
    """What a training run reached.

    Attributes
    ----------
    best_validation_error, test_error : float
        Fractions, not percent: the lowest validation error, and the test error measured with it.
        ``best_validation_error`` is infinite if training ended before the first validation.
    best_iteration : int
        The iteration of the lowest validation error, counted from 1 as it is printed.
    epochs : int
        Epochs begun.
    seconds : float
        Duration of the training loop. Numba compiles within it, in the first call of each function.
    history : list of Validation
        Every validation, in order.
    best_parameters : dict of str to numpy.ndarray
        The parameters that gave ``best_validation_error``, by name.
    minibatches : tuple of int
        Minibatches in the training, validation and test set.
    """

    best_validation_error: float = np.inf
    best_iteration: int = 0
    test_error: float = 0.0
    epochs: int = 0
    seconds: float = 0.0
    history: list[Validation] = field(default_factory=list)
    best_parameters: dict[str, np.ndarray] = field(default_factory=dict)
    minibatches: tuple[int, int, int] = (0, 0, 0)


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
    save=None,
    progress=False,
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
    save : path, optional
        ``.npz`` file to which each new best model is written.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    TrainingResult
    """
    result = TrainingResult(minibatches=(n_train_batches, n_valid_batches, n_test_batches))
    n_iterations = n_epochs * n_train_batches
    validation_frequency = min(n_train_batches, patience // 2)
    start = default_timer()
    with tqdm(total=min(n_iterations, patience + 1), disable=not progress, **_BAR) as bar:
        for iteration in range(n_iterations):
            epoch, minibatch = divmod(iteration, n_train_batches)
            if announce_every and iteration % announce_every == 0:
                _print("training @ iter = ", iteration)
            cost = train_model(minibatch)

            if (iteration + 1) % validation_frequency == 0:
                position = f"epoch {epoch + 1}, minibatch {minibatch + 1}/{n_train_batches}"
                error = _mean_error(validate_model, n_valid_batches)
                test_error = None
                _print(f"{position}, validation error {error * 100:f} %")
                if error < result.best_validation_error:
                    if error < result.best_validation_error * improvement_threshold:
                        patience = max(patience, iteration * patience_increase)
                        bar.total = min(n_iterations, patience + 1)
                    test_error = _mean_error(test_model, n_test_batches)
                    result.best_validation_error = error
                    result.best_iteration = iteration + 1
                    result.test_error = test_error
                    result.best_parameters = copy_parameters(parameters)
                    if save is not None:
                        save_parameters(save, result.best_parameters)
                    _print(f"     {position}, test error of best model {test_error * 100:f} %")
                result.history.append(
                    Validation(epoch + 1, minibatch + 1, iteration + 1, float(cost), error, test_error)
                )

            if iteration == 0:
                # The first call compiled; its seconds must not count in the time left.
                bar.unpause()
                bar.set_description("training")
            bar.update()
            result.epochs = epoch + 1
            if patience <= iteration:
                break
    result.seconds = default_timer() - start
    return result


def _mean_error(model, n_batches):
    return float(np.mean([model(index) for index in range(n_batches)]))


def _print(*values):
    # Only on a terminal does a line of output have to get past the bar.
    with tqdm.external_write_mode(file=sys.stdout) if sys.stderr.isatty() else nullcontext():
        print(*values, flush=True)
