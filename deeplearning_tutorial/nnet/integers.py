"""Integers as Theano's programs pass them: as constants of a graph, or as the quotients of Python 2."""

from numbers import Integral

import numpy as np
from pytensor.graph.basic import Constant, Variable
from pytensor.tensor.basic import get_underlying_scalar_constant_value
from pytensor.tensor.exceptions import NotScalarConstantError


def folded(value):
    """Return the number that a constant scalar, or one computed from such, is; else return ``value``."""
    if isinstance(value, Variable) and value.type.ndim == 0:
        try:
            value = get_underlying_scalar_constant_value(value)
        except NotScalarConstantError:
            return value
    return value.item() if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0 else value


def folded_tuple(value):
    """Return the elements of a sequence, an array or a constant vector as a tuple; else return ``value``."""
    if isinstance(value, Constant):
        value = value.data
    if isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim == 1):
        return tuple(folded(n) for n in value)
    return value


def is_integer(value):
    """Tell whether ``value`` is a number of Python's or NumPy's integers, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_positive_integer(name, value, example):
    """Raise ValueError unless ``value``, given as the argument ``name``, is an integer of at least 1."""
    if not is_integer(value) or value < 1:
        raise ValueError(
            f"{name}={value!r} is not a positive integer; use e.g. {name}={example}{division_note(value)}"
        )


def division_note(value):
    """Return what an error message adds if ``value`` holds a float: how Python 2 divided; else nothing."""
    if isinstance(value, (tuple, list)):
        return next(filter(None, map(division_note, value)), "")
    is_float = isinstance(value, (float, np.floating)) or str(getattr(value, "dtype", "")).startswith("float")
    return "; Python 2's division of integers, 24 / 2, is 24 // 2 in Python 3" if is_float else ""
