"""Integers as Theano's programs give them: as constants of a graph, or divided as in Python 2."""

import numpy as np
from pytensor.graph.basic import Constant, Variable
from pytensor.tensor.basic import get_underlying_scalar_constant_value
from pytensor.tensor.exceptions import NotScalarConstantError


def folded(value):
    """Return what ``value`` is if that is a constant scalar, or computed from such; else ``value``."""
    if isinstance(value, Variable) and value.type.ndim == 0:
        try:
            value = get_underlying_scalar_constant_value(value)
        except NotScalarConstantError:
            return value
    return value.item() if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0 else value


def folded_tuple(value):
    """Return a tuple of what a sequence, an array or a constant vector holds; else ``value``."""
    if isinstance(value, Constant):
        value = value.data
    if isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim == 1):
        return tuple(folded(n) for n in value)
    return value


def division_note(value):
    """Return what a message that refuses ``value`` adds if there is a float in it; else nothing."""
    if isinstance(value, (tuple, list)):
        return next(filter(None, map(division_note, value)), "")
    is_float = isinstance(value, (float, np.floating)) or str(getattr(value, "dtype", "")).startswith("float")
    return "; Python 2's division of integers, 24 / 2, is 24 // 2 in Python 3" if is_float else ""
