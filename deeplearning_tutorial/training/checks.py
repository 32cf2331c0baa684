"""Checks of arguments, made before any data is read or anything is compiled."""

import math
from numbers import Integral, Real

from deeplearning_tutorial.nnet.integers import division_note


def check_positive_int(name, value, example):
    """Raise ValueError unless ``value`` is an int of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"{name}={value!r} is not a positive integer; use e.g. {name}={example}{division_note(value)}"
        )


def check_positive_ints(name, value, length, example, *, none_allowed=False):
    """Raise ValueError unless ``value`` holds ``length`` ints of at least 1, or None if that is allowed."""
    if not isinstance(value, (tuple, list)) or len(value) != length:
        raise ValueError(f"{name}={value!r} is not a tuple of {length} integers; use e.g. {name}={example}")
    numbers = [n for n in value if not (none_allowed and n is None)]
    if any(not isinstance(n, Integral) or isinstance(n, bool) or n < 1 for n in numbers):
        raise ValueError(
            f"{name}={value!r} holds something other than positive integers; use e.g. {name}={example}"
            f"{division_note(value)}"
        )


def check_choice(name, value, choices):
    """Raise ValueError unless ``value`` is one of the strings ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(map(repr, choices))}")


def check_rate(name, value, example, minimum_excluded=True):
    """Return ``value`` as a float; raise ValueError unless it is finite and above zero (or at least zero).

    A float takes the precision of what it is multiplied with; a NumPy scalar would impose its own.
    """
    finite = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not finite or value < 0 or (minimum_excluded and value == 0):
        kind = "positive" if minimum_excluded else "non-negative"
        raise ValueError(f"{name}={value!r} is not a {kind} finite number; use e.g. {name}={example}")
    return float(value)


def check_probability(name, value, example):
    """Return ``value`` as a float; raise ValueError unless it is at least 0 and below 1."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r} is not a number from 0 to below 1; use e.g. {name}={example}")
    return float(value)


def check_no_gaps(name, value, stride, windows, size):
    """Raise ValueError if ``windows``, of ``size`` rows and columns, are further apart than they are long."""
    if stride > size:
        raise ValueError(
            f"{name}={value} does not fit: {windows}, {size}x{size}, would leave gaps between them; use "
            f"{size} or less"
        )


def check_seed(name, value, example):
    """Raise ValueError unless ``value`` is an int from 0 to 2**32 - 1, as NumPy's RandomState takes."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise ValueError(
            f"{name}={value!r} is not an integer from 0 to 4294967295; use e.g. {name}={example}"
            f"{division_note(value)}"
        )


def count_minibatches(batch_size, **splits):
    """Count the whole minibatches in each split.

    Parameters
    ----------
    batch_size : int
        Examples per minibatch.
    **splits
        Shared variables, shape ``(examples, ...)``.

    Returns
    -------
    list of int
        In the order of ``splits``; a remainder shorter than ``batch_size`` is not counted.

    Raises
    ------
    ValueError
        If a split holds less than one minibatch.
    """
    counts = []
    for name, split in splits.items():
        examples = len(split.get_value(borrow=True))
        if examples < batch_size:
            raise ValueError(
                f"batch_size={batch_size} is larger than the {name} set of {examples} examples; "
                f"use batch_size={examples} or less"
            )
        counts.append(examples // batch_size)
    return counts
