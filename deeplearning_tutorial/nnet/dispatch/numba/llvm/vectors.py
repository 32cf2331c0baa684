"""Loops over neighbouring elements, in vectors, of which the last one is masked.

Numba's own loops take several vectors at once, and what is left, a whole row of a small map, element by
element. Offsets are flat and counted in elements.
"""

from functools import reduce

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import INDEX, Emitter
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import TILE_HALVES

BLOCK_SIDE = 4
"""Rows and columns that `transpose_block` takes."""

SUM_ROWS = 7
"""Rows that `correlate_rows` takes at most."""


@intrinsic
def copy_elements(typingctx, out, out_at, x, x_at, count):
    """Copy ``x[x_at : x_at + count]`` to ``out[out_at : out_at + count]``, both flat and of one data type.

    Numba compiles much more into the assignment of a slice, and a loop checks each index for its sign.
    """
    signature = types.void(out, types.intp, x, types.intp, types.intp)

    def codegen(context, builder, signature, arguments):
        out_, out_at, x_, x_at, count = arguments
        emitter = Emitter(context, builder, out.dtype)
        target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)
        cgutils.raw_memcpy(builder, target, source, count, emitter.itemsize)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def transpose_block(typingctx, out, out_at, out_step, x, x_at, x_step):
    """Transpose BLOCK_SIDE rows and columns.

    For r and c in 0..BLOCK_SIDE - 1, all flat offsets counted in elements::

        out[out_at + c * out_step + r] = x[x_at + r * x_step + c]

    Numba's own loop becomes gathers or scatters, of which some processors do one element after another.
    """
    signature = types.void(out, types.intp, types.intp, x, types.intp, types.intp)

    def codegen(context, builder, signature, arguments):
        out_, out_at, out_step, x_, x_at, x_step = arguments
        emitter = Emitter(context, builder, out.dtype)
        vector = ir.VectorType(emitter.scalar, BLOCK_SIDE)
        target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)

        places = [emitter.step(source, builder.mul(x_step, INDEX(r))) for r in range(BLOCK_SIDE)]
        a, b, c, d = (emitter.load(place, vector) for place in places)
        columns = []
        for pairs in ([0, 4, 1, 5], [2, 6, 3, 7]):
            upper, lower = emitter.shuffle(a, b, pairs), emitter.shuffle(c, d, pairs)
            columns += [emitter.shuffle(upper, lower, lanes) for lanes in ([0, 1, 4, 5], [2, 3, 6, 7])]
        for i, column in enumerate(columns):
            emitter.store(column, emitter.step(target, builder.mul(out_step, INDEX(i))))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def descend(
    typingctx, out, weights, at, row_step, gradient, gradient_at, gradient_step, rate, decay, rows, halves
):  # fmt: skip
    """Take a step of gradient descent, and return the sum of squares of the weights before it.

    For r in 0..rows - 1 and i in 0..halves * half - 1, all flat offsets counted in elements::

        w = weights[at + r * row_step + i]
        g = gradient[gradient_at + r * gradient_step + i]
        out[at + r * row_step + i] = w - rate * (g + decay * w)

    ``halves`` lies in 0..TILE_HALVES.
    """
    real, size = out.dtype, types.intp
    signature = real(out, weights, size, size, gradient, size, size, real, real, size, size)

    def codegen(context, builder, signature, arguments):
        out_, weights_, at, row_step, gradient_, gradient_at, gradient_step, *rest = arguments
        rate, decay, rows, halves = rest
        emitter = Emitter(context, builder, real)
        step = emitter.step
        target, old = emitter.pointer(out, out_, at), emitter.pointer(weights, weights_, at)
        slope = emitter.pointer(gradient, gradient_, gradient_at)
        total = cgutils.alloca_once_value(builder, emitter.scalar(0))

        def emit(n):
            vectors = emitter.vectors(n)

            def one_row(r, sums):
                here, there = builder.mul(r, row_step), builder.mul(r, gradient_step)
                squares = []
                for (vector, first), before in zip(vectors, sums, strict=True):
                    place = builder.add(here, first)
                    weight = emitter.load(step(old, place), vector)
                    change = emitter.load(step(slope, builder.add(there, first)), vector)
                    change = emitter.multiply_add(emitter.spread(decay, vector), weight, change)
                    down = emitter.spread(builder.fneg(rate), vector)
                    emitter.store(emitter.multiply_add(down, change, weight), step(target, place))
                    squares.append(emitter.multiply_add(weight, weight, before))
                return squares

            sums = emitter.accumulate(rows, [ir.Constant(vector, None) for vector, _ in vectors], one_row)
            builder.store(reduce(builder.fadd, map(emitter.total, sums)), total)

        emitter.choose(halves, {n: (n,) for n in range(1, TILE_HALVES + 1)}, emit)
        return builder.load(total)

    return signature, codegen


def _elementwise(function, folds=False):
    """Make an intrinsic of ``function(emitter, x)``, or where it ``folds``, ``function(emitter, out, x)``."""

    @intrinsic
    def vectors(typingctx, out, out_at, x, x_at, count):
        """Compute ``out[out_at + i] = function([out[out_at + i],] x[x_at + i])`` for i in 0..count - 1."""
        signature = types.void(out, types.intp, x, types.intp, types.intp)

        def codegen(context, builder, signature, arguments):
            out_, out_at, x_, x_at, count = arguments
            emitter = Emitter(context, builder, out.dtype)
            target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)
            sources = [target, source] if folds else [source]
            emitter.for_each_vector(count, [target], lambda load: [function(emitter, *map(load, sources))])
            return context.get_dummy_value()

        return signature, codegen

    return vectors


vector_copy = _elementwise(lambda emitter, x: x)
vector_tanh = _elementwise(Emitter.tanh)
vector_exp_of_negative = _elementwise(Emitter.exp_of_negative)
vector_add = _elementwise(Emitter.sum, folds=True)
vector_or = _elementwise(Emitter.either_bit, folds=True)


@intrinsic
def vector_divide(typingctx, out, out_at, x, x_at, divisors, count):
    """Compute ``out[out_at + i] = x[x_at + i] / divisors[i]`` for i in 0..count - 1."""
    signature = types.void(out, types.intp, x, types.intp, divisors, types.intp)

    def codegen(context, builder, signature, arguments):
        out_, out_at, x_, x_at, divisors_, count = arguments
        emitter = Emitter(context, builder, out.dtype)
        target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)
        divisor = emitter.pointer(divisors, divisors_, INDEX(0))
        emitter.for_each_vector(count, [target], lambda load: [builder.fdiv(load(source), load(divisor))])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def correlate_rows(
    typingctx, out, out_at, out_step, x, x_at, x_step, offsets, factors, filter_cols, triples, count, rows
):
    """Compute weighted sums of shifted rows, for some rows at once.

    For r in 0..rows - 1 and i in 0..count - 1::

        out[out_at + r * out_step + i] = sum over t < len(offsets) of
            factors[t] * x[x_at + r * x_step + offsets[t] + i]

    The taps stand in rows of ``filter_cols``. In each of the first ``triples`` threes of rows, these lie
    ``x_step`` apart: what is loaded for a tap serves the one above it and the one below, for the outputs
    below and above. ``rows`` lies in 1..SUM_ROWS.
    """
    signature = types.void(
        out, types.intp, types.intp, x, types.intp, types.intp, offsets, factors, *[types.intp] * 4
    )

    def codegen(context, builder, signature, arguments):
        out_, out_at, out_step, x_, x_at, x_step, offsets_, factors_, *sizes = arguments
        filter_cols, triples, count, rows = sizes
        emitter = Emitter(context, builder, out.dtype)
        target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)
        offset = emitter.pointer(offsets, offsets_, INDEX(0))
        factor = emitter.pointer(factors, factors_, INDEX(0))
        [(vector, _)] = emitter.vectors(2)
        three_rows = builder.mul(filter_cols, INDEX(3))
        in_triples = builder.mul(triples, three_rows)
        others = builder.sub(emitter.length(offsets, offsets_), in_triples)

        def emit(n):
            targets = [emitter.step(target, builder.mul(out_step, INDEX(r))) for r in range(n)]
            sources = [emitter.step(source, builder.mul(x_step, INDEX(r))) for r in range(n + 2)]

            def compute(load):
                def add(tap, totals, tap_rows):
                    """Add a tap, or that many taps of one column, to the totals of all rows."""
                    here = emitter.index(emitter.step(offset, tap))
                    taps = [builder.add(tap, builder.mul(filter_cols, INDEX(k))) for k in range(tap_rows)]
                    weights = [emitter.spread(builder.load(emitter.step(factor, t)), vector) for t in taps]
                    totals = list(totals)
                    for row in range(n + tap_rows - 1):
                        shifted = load(emitter.step(sources[row], here))
                        for k in range(max(0, row - n + 1), min(tap_rows, row + 1)):
                            totals[row - k] = emitter.multiply_add(weights[k], shifted, totals[row - k])
                    return totals

                def add_triple(i, totals):
                    first = builder.mul(i, three_rows)
                    return emitter.accumulate(
                        filter_cols, totals, lambda col, totals: add(builder.add(first, col), totals, 3)
                    )

                totals = emitter.accumulate(triples, [ir.Constant(vector, None)] * n, add_triple)
                return emitter.accumulate(
                    others, totals, lambda i, totals: add(builder.add(in_triples, i), totals, 1)
                )

            emitter.for_each_vector(count, targets, compute)

        emitter.choose(rows, {n: (n,) for n in range(1, SUM_ROWS + 1)}, emit)
        return context.get_dummy_value()

    return signature, codegen
