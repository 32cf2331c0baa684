"""Loops over neighbouring elements, in vectors, of which the last one is masked.

Numba's own loops take several vectors at once, and what is left, a whole row of a small map, element by
element.
"""

from functools import reduce
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import Emitter
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import vector_intrinsic
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import TILE_HALVES

BLOCK_SIDE = 4
"""Rows and columns that `transpose_block` takes."""

SUM_ROWS = 7
"""Rows that `correlate_rows` takes at most."""


@vector_intrinsic()
def copy_elements(emitter, out, out_at, x, x_at, count):
    """Copy ``x[x_at : x_at + count]`` to ``out[out_at : out_at + count]``, both flat and of one data type.

    Numba compiles much more into the assignment of a slice, and a loop checks each index for its sign.
    """
    target, source = emitter.advance(out.start, out_at), emitter.advance(x.start, x_at)
    cgutils.raw_memcpy(emitter.builder, target, source, count, emitter.itemsize)


@vector_intrinsic()
def transpose_block(emitter, out, x):
    """Transpose BLOCK_SIDE rows and columns: ``out[c, r] = x[r, c]``, both `Rows`.

    Numba's own loop becomes gathers or scatters, of which some processors do one element after another.
    """
    vector = ir.VectorType(emitter.scalar, BLOCK_SIDE)
    a, b, c, d = (emitter.load(x.row(r), vector) for r in range(BLOCK_SIDE))
    columns = []
    for pairs in ([0, 4, 1, 5], [2, 6, 3, 7]):
        upper, lower = emitter.shuffle(a, b, pairs), emitter.shuffle(c, d, pairs)
        columns += [emitter.shuffle(upper, lower, lanes) for lanes in ([0, 1, 4, 5], [2, 3, 6, 7])]
    for i, column in enumerate(columns):
        emitter.store(column, out.row(i))


@vector_intrinsic(returns=lambda element: element)
def sgd_step(emitter, new, old, gradient, rate, decay, rows, halves):
    """Take a step of gradient descent; return the sum of squares of the weights before it.

    ``new``, ``old`` and ``gradient`` are `Rows`. For r in 0..rows - 1 and i in 0..halves * half - 1::

        new[r, i] = old[r, i] - rate * (gradient[r, i] + decay * old[r, i])

    ``halves`` lies in 0..TILE_HALVES.
    """
    builder, advance = emitter.builder, emitter.advance
    result = cgutils.alloca_once_value(builder, emitter.scalar(0))

    def emit(n):
        vectors = emitter.vectors(n)

        def one_row(r, sums):
            source, target, slope = old.row(r), new.row(r), gradient.row(r)
            squares = []
            for (vector, first), before in zip(vectors, sums, strict=True):
                weight = emitter.load(advance(source, first), vector)
                change = emitter.load(advance(slope, first), vector)
                change = emitter.multiply_add(emitter.broadcast(decay, vector), weight, change)
                down = emitter.broadcast(builder.fneg(rate), vector)
                emitter.store(emitter.multiply_add(down, change, weight), advance(target, first))
                squares.append(emitter.multiply_add(weight, weight, before))
            return squares

        sums = emitter.loop(rows, [ir.Constant(vector, None) for vector, _ in vectors], one_row)
        builder.store(reduce(builder.fadd, map(emitter.horizontal_sum, sums)), result)

    emitter.switch_up_to(TILE_HALVES, halves, emit)
    return builder.load(result)


def _elementwise(function):
    """Make an intrinsic of ``function(emitter, x)``."""

    @vector_intrinsic()
    def elementwise(emitter, out, out_at, x, x_at, count):
        """Compute ``out[out_at + i] = function(x[x_at + i])`` for i in 0..count - 1."""
        target, source = emitter.advance(out.start, out_at), emitter.advance(x.start, x_at)
        emitter.for_each_vector(count, [target], lambda load: [function(emitter, load(source))])

    return elementwise


def _accumulating(function):
    """Make an intrinsic of ``function(emitter, out, x)``."""

    @vector_intrinsic()
    def accumulating(emitter, out, out_at, x, x_at, count):
        """Compute ``out[out_at + i] = function(out[out_at + i], x[x_at + i])`` for i in 0..count - 1."""
        target, source = emitter.advance(out.start, out_at), emitter.advance(x.start, x_at)
        emitter.for_each_vector(count, [target], lambda load: [function(emitter, load(target), load(source))])

    return accumulating


vector_copy = _elementwise(lambda emitter, x: x)
vector_tanh = _elementwise(Emitter.tanh)
vector_exp_of_negative = _elementwise(Emitter.exp_of_negative)
vector_add = _accumulating(Emitter.add)
vector_or = _accumulating(Emitter.bitwise_or)


@vector_intrinsic()
def vector_divide(emitter, out, out_at, x, x_at, divisors, count):
    """Compute ``out[out_at + i] = x[x_at + i] / divisors[i]`` for i in 0..count - 1."""
    target, source = emitter.advance(out.start, out_at), emitter.advance(x.start, x_at)
    emitter.for_each_vector(
        count, [target], lambda load: [emitter.builder.fdiv(load(source), load(divisors.start))]
    )


class Taps(NamedTuple):
    """The elements of a filter for `correlate_rows`, row by row."""

    offsets: Any
    """Where each tap's pixel lies, from that of the first."""
    factors: Any
    cols: int
    """Taps in a row."""
    triples: int
    """Threes of rows whose pixels are rows of the image that follow each other."""


@vector_intrinsic()
def correlate_rows(emitter, out, x, taps, count, rows):
    """Compute weighted sums of shifted rows, for some rows at once.

    ``out`` and ``x`` are `Rows`, ``taps`` `Taps`. For r in 0..rows - 1 and i in 0..count - 1::

        out[r, i] = sum over t < len(offsets) of factors[t] * x[r, offsets[t] + i]

    In each of the first ``triples`` threes of rows of taps, what is loaded for a tap also serves the tap
    above it for the row of output below, and the one below for the row above. ``rows`` lies in 1..SUM_ROWS.
    """
    builder, advance, vector = emitter.builder, emitter.advance, emitter.vector
    three_rows = emitter.times(taps.cols, 3)
    in_triples = builder.mul(taps.triples, three_rows)
    others = builder.sub(taps.offsets.length, in_triples)

    def emit(n):
        targets, sources = [out.row(r) for r in range(n)], [x.row(r) for r in range(n + 2)]

        def compute(load):
            def add(tap, totals, tap_rows):
                """Add a tap, or that many taps of one column, to the totals of all rows."""
                offset = emitter.load_index(advance(taps.offsets.start, tap))
                places = [builder.add(tap, emitter.times(taps.cols, k)) for k in range(tap_rows)]
                weights = [
                    emitter.broadcast(builder.load(advance(taps.factors.start, place)), vector)
                    for place in places
                ]
                totals = list(totals)
                for row in range(n + tap_rows - 1):
                    shifted = load(advance(sources[row], offset))
                    for k in range(max(0, row - n + 1), min(tap_rows, row + 1)):
                        totals[row - k] = emitter.multiply_add(weights[k], shifted, totals[row - k])
                return totals

            def add_triple(i, totals):
                first = builder.mul(i, three_rows)
                return emitter.loop(
                    taps.cols, totals, lambda col, totals: add(builder.add(first, col), totals, 3)
                )

            totals = emitter.loop(taps.triples, [ir.Constant(vector, None)] * n, add_triple)
            return emitter.loop(others, totals, lambda i, totals: add(builder.add(in_triples, i), totals, 1))

        emitter.for_each_vector(count, targets, compute)

    emitter.switch_up_to(SUM_ROWS, rows, emit)
