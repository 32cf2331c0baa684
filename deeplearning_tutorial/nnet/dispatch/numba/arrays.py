"""Checks and copies of the arrays that kernels are called with."""

import numpy as np
from numba.extending import overload

from deeplearning_tutorial.nnet.dispatch.numba.jit import kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.memory import (
    as_contiguous,
    copy_values,
    empty,
    missing,
    result,
)


@kernel_njit
def _is_in_order(array):
    """Tell whether the elements lie in C order, without gaps."""
    step = array.itemsize
    for axis in range(array.ndim - 1, -1, -1):
        if array.shape[axis] != 1 and array.strides[axis] != step:
            return False
        step *= array.shape[axis]
    return True


@kernel_njit
def contiguous(memory, array):
    """Return the array itself if its elements are in C order, else a copy, which the kernel's end frees."""
    if _is_in_order(array):
        return as_contiguous(array)
    copy = empty(memory, array.shape, array)
    copy_values(copy, array)
    return copy


def in_order(array):
    """Return the array itself if its elements are in C order, else a copy, which is a `result`."""


@overload(in_order)
def _in_order(array):
    if array.layout == "C":
        return lambda array: array

    def copied(array):
        if _is_in_order(array):
            return as_contiguous(array)
        copy = result(array.shape, array)
        if not missing(copy):
            copy_values(copy, array)
        return copy

    return copied


@kernel_njit
def all_finite(values):
    """Tell whether no value is infinite or NaN, whose product with zero is not zero."""
    finite = True
    # Numba does not make vectors of ``for value in values``.
    for i in range(len(values)):
        finite &= np.isfinite(values[i])
    return finite
