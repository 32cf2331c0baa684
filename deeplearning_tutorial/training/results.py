"""What a training run reached, and how it may end early."""

import math
from dataclasses import dataclass, field

import numpy as np


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
    seconds : float
        Duration of the training so far. Not compared: equal runs take their time unequally.
    """

    epoch: int
    minibatch: int
    iteration: int
    cost: float
    validation_error: float
    test_error: float | None
    seconds: float = field(default=0.0, compare=False)


@dataclass
class TrainingResult:
    """What a training run reached.

    Attributes
    ----------
    best_validation_error, test_error : float
        Fractions, not percent: the lowest validation error, and the test error measured with it.
        ``best_validation_error`` is infinite if Ctrl-C or a diverging cost ended training before the first
        validation.
    best_iteration : int
        The iteration of the lowest validation error, counted from 1 as it is printed.
    epochs : int
        Epochs begun.
    seconds : float
        Duration of the training loop, over all parts of a run that was resumed. Numba compiles within it, in
        the first call of each function.
    history : list of Validation
        Every validation, in order.
    best_parameters : dict of str to numpy.ndarray
        The parameters that gave ``best_validation_error``, by name.
    minibatches : tuple of int
        Minibatches in the training, validation and test set.
    write_errors : list of str
        Files that could not be written to the end, each with the reason.
    """

    best_validation_error: float = np.inf
    best_iteration: int = 0
    test_error: float = 0.0
    epochs: int = 0
    seconds: float = 0.0
    history: list[Validation] = field(default_factory=list)
    best_parameters: dict[str, np.ndarray] = field(default_factory=dict)
    minibatches: tuple[int, int, int] = (0, 0, 0)
    write_errors: list[str] = field(default_factory=list)

    def closing_line(self):
        """Return the tutorial's closing line: the best validation error, when it was, and the test error."""
        if math.isinf(self.best_validation_error):
            return "There was no validation yet"
        return (
            f"Best validation score of {self.best_validation_error * 100:f} % obtained at iteration "
            f"{self.best_iteration}, with test performance {self.test_error * 100:f} %"
        )


class _EndedEarly(BaseException):
    def __init__(self, message, result):
        super().__init__(message)
        self.result = result

    def __reduce__(self):
        # Exceptions are made again from ``args``, the message alone.
        kind, arguments, attributes = super().__reduce__()
        return kind, (*arguments, self.result), attributes


class TrainingInterrupted(_EndedEarly, KeyboardInterrupt):
    """Ctrl-C ended training; what was reached is in the attribute ``result``, a `TrainingResult`."""


class DivergenceError(_EndedEarly, FloatingPointError):
    """The cost became NaN or infinite; what was reached before is in ``result``, a `TrainingResult`."""


class CompilationFinished(_EndedEarly):
    """All that a run needs is compiled; with ``Run(precompile=True)`` nothing is trained."""
