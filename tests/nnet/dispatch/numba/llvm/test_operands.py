from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types

from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import Elements, Grid, Rows, vector_intrinsic


class Sizes(NamedTuple):
    numbers: Any
    count: int


@vector_intrinsic()
def copy_one(emitter, out, rows, row, grid, elements):
    builder = emitter.builder
    places = [rows.row(row), grid.at(1, row), elements]
    for i, place in enumerate(places):
        builder.store(builder.load(place), emitter.advance(out.start, ir.IntType(64)(i)))


@vector_intrinsic(returns=lambda element: types.intp)
def length_of(emitter, out, sizes):
    return emitter.builder.add(sizes.numbers.length, sizes.count)


@vector_intrinsic(returns=lambda element: element)
def first_of(emitter, numbers, values):
    return emitter.builder.load(values.start)


def test_rows_grids_and_elements_are_where_their_docstrings_say():
    @numba.njit
    def copied(x, first, row):
        out = np.empty(3, x.dtype)
        copy_one(out, Rows(x, first, 10), row, Grid(x, first, 10, 2), Elements(x, 7))
        return out

    x = np.arange(60.0).reshape(6, 10)
    np.testing.assert_array_equal(copied(x, 3, 2), [3 + 2 * 10, 3 + 10 + 2 * 2, 7])
    # Integers of fewer bits, too.
    np.testing.assert_array_equal(copied(x, np.int32(3), np.int8(1)), [3 + 10, 3 + 10 + 2, 7])


def test_the_fields_of_other_tuples_are_operands_as_well():
    @numba.njit
    def length(x, numbers):
        return length_of(x, Sizes(numbers, 100))

    assert length(np.zeros(2), np.zeros(7, "int32")) == 107


def test_an_emitter_is_for_the_first_array_of_floats():
    @numba.njit
    def first(numbers, values):
        return first_of(numbers, values)

    result = first(np.array([5]), np.array([0.25, 2], "float32"))
    assert result == 0.25
