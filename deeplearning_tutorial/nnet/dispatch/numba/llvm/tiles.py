"""The inner loops of convolution and pooling, as LLVM vector code with every sum held in registers.

Numba's own loops over arrays load and store each partial sum; written as vectors whose accumulators are SSA
values, the loops reach the speed of a matrix product. The vectors are as wide as the target's registers.
Lengths are counted in half vectors, so that a rest costs at most half a vector of wasted arithmetic.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import (
    INDEX,
    MANY_REGISTERS,
    REGISTER_BYTES,
    SHORT_BYTES,
    Emitter,
)

TILE_COLUMNS = 4
"""Output columns that `convolve_tile` computes at once."""

TILE_HALVES = 8 if MANY_REGISTERS else 6
"""Half vectors of filters that `convolve_tile` takes at most."""

GATHER_HALVES = 16
"""Half vectors of a row that `gather_add` takes at most."""

# Sums that `gather_add` holds, where there are several rows: with their factor they fit in 16 registers.
_GATHER_SUMS = 8

SHIFTS = 4
"""Shifted arrays that `add_inner_rows` takes at most."""


def in_halves(length, half):
    """``length`` elements in half vectors of ``half`` elements, rounded up."""
    return (length + half - 1) // half


@intrinsic
def convolve_tile(
    typingctx, out, out_at, out_step, x, x_at, column, filters, filters_at, tap, offsets, halves, more
):
    """Correlate `TILE_COLUMNS` neighbouring positions of an image with a block of filters.

    For p in 0..TILE_COLUMNS - 1, all flat offsets counted in elements::

        out[out_at + p * out_step : ... + halves * half] = sum over t < len(offsets) of
            x[x_at + p * column + offsets[t]] * filters[filters_at + t * tap : ... + halves * half]

    With ``more`` the sum begins at what is in ``out``. ``halves`` lies in 1..TILE_HALVES.
    """
    signature = types.void(
        out, types.intp, types.intp, x, types.intp, types.intp, filters, types.intp, types.intp, offsets,
        types.intp, types.boolean,
    )  # fmt: skip

    def codegen(context, builder, signature, arguments):
        out_, out_at, out_step, x_, x_at, column, filters_, filters_at, tap, offsets_, halves, more = (
            arguments
        )
        emitter = Emitter(context, builder, out.dtype)
        step = emitter.step
        outs = emitter.pointer(out, out_, out_at)
        images = [
            step(emitter.pointer(x, x_, x_at), builder.mul(column, INDEX(p))) for p in range(TILE_COLUMNS)
        ]
        weights = emitter.pointer(filters, filters_, filters_at)
        offset = emitter.pointer(offsets, offsets_, INDEX(0))

        def emit(n):
            odd, pairs = n % 2, range(0, TILE_COLUMNS, 2)
            vectors = emitter.vectors(n - odd)
            # Filters that fill half a vector share it: the halves belong to neighbouring positions.
            [(whole, _)], [(part, _)] = emitter.vectors(2), emitter.vectors(1)
            odd_first = INDEX((n - odd) * emitter.half)

            def add_tap(t, sums):
                here = emitter.index(step(offset, t))
                tap_weights = step(weights, builder.mul(t, tap))
                loaded = [emitter.load(step(tap_weights, first), vector) for vector, first in vectors]
                pixels = [builder.load(step(image, here)) for image in images]
                factors = [(emitter.spread(pixel, whole), weight) for pixel in pixels for weight in loaded]
                if odd:
                    half = emitter.load(step(tap_weights, odd_first), part)
                    for p in pairs:
                        left, right = (emitter.spread(pixel, whole) for pixel in pixels[p : p + 2])
                        factors.append((emitter.halves_of(left, right), emitter.join(half, half)))
                return [emitter.multiply_add(*pair, total) for pair, total in zip(factors, sums, strict=True)]

            columns = [step(outs, builder.mul(out_step, INDEX(p))) for p in range(TILE_COLUMNS)]

            def load_sums():
                sums = [
                    emitter.load(step(place, first), vector) for place in columns for vector, first in vectors
                ]
                for p in pairs if odd else ():
                    sums.append(
                        emitter.join(
                            *(emitter.load(step(place, odd_first), part) for place in columns[p : p + 2])
                        )
                    )
                return sums

            sums = emitter.either(
                more,
                load_sums,
                lambda: [ir.Constant(whole, None)] * (TILE_COLUMNS * len(vectors) + odd * len(pairs)),
            )
            sums = iter(emitter.accumulate(emitter.length(offsets, offsets_), sums, add_tap))
            for place in columns:
                for _, first in vectors:
                    emitter.store(next(sums), step(place, first))
            for p in pairs if odd else ():
                for value, place in zip(emitter.split(next(sums)), columns[p : p + 2], strict=True):
                    emitter.store(value, step(place, odd_first))

        emitter.choose(halves, {n: (n,) for n in range(1, TILE_HALVES + 1)}, emit)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_inner_rows(
    typingctx, out, out_at, a, a_at, a_step, b, b_at, b_step, offsets, first, rows, length, columns
):
    """Add the inner products of some rows with those of as many shifted arrays.

    For c in 0..columns - 1, all flat offsets counted in elements::

        out[out_at + c] += sum over r < rows and t < length of
            a[a_at + r * a_step + t] * b[b_at + r * b_step + offsets[first + c] + t]

    ``columns`` lies in 1..SHIFTS.
    """
    signature = types.void(
        out, types.intp, a, types.intp, types.intp, b, types.intp, types.intp, offsets, *[types.intp] * 4
    )

    def codegen(context, builder, signature, arguments):
        out_, out_at, a_, a_at, a_step, b_, b_at, b_step, offsets_, first, rows, length, columns = arguments
        emitter = Emitter(context, builder, out.dtype)
        step = emitter.step
        [(vector, _)] = emitter.vectors(2)
        whole = builder.udiv(length, INDEX(vector.count))
        done = builder.mul(whole, INDEX(vector.count))
        rest = builder.sub(length, done)
        target = emitter.pointer(out, out_, out_at)
        left, right = emitter.pointer(a, a_, a_at), emitter.pointer(b, b_, b_at)
        offset = emitter.pointer(offsets, offsets_, first)

        def emit(n):
            shifts = [emitter.index(step(offset, INDEX(c))) for c in range(n)]

            def add_row(r, sums):
                line = step(left, builder.mul(r, a_step))
                row = step(right, builder.mul(r, b_step))
                shifted = [step(row, shift) for shift in shifts]

                def add_products(sums, at, load):
                    value = load(step(line, at))
                    return [
                        emitter.multiply_add(value, load(step(place, at)), total)
                        for place, total in zip(shifted, sums, strict=True)
                    ]

                def add_vectors(i, sums):
                    at = builder.mul(i, INDEX(vector.count))
                    return add_products(sums, at, lambda place: emitter.load(place, vector))

                sums = emitter.accumulate(whole, sums, add_vectors)
                return add_products(sums, done, lambda place: emitter.load_first(place, vector, rest))

            sums = emitter.accumulate(rows, [ir.Constant(vector, None)] * n, add_row)
            for c, total in enumerate(map(emitter.total, sums)):
                place = step(target, INDEX(c))
                builder.store(builder.fadd(builder.load(place), total), place)

        emitter.choose(columns, {n: (n,) for n in range(1, SHIFTS + 1)}, emit)
        return context.get_dummy_value()

    return signature, codegen


def gather_rows(halves):
    """Rows of ``halves`` half vectors that `gather_add` takes at most at once."""
    vectors = halves if REGISTER_BYTES > SHORT_BYTES else (halves + 1) // 2
    return max(1, _GATHER_SUMS // vectors)


@intrinsic
def gather_add(
    typingctx, out, out_at, out_row, source, source_at, rows, row, n_rows,
    offsets, factors, first, count, halves,
):  # fmt: skip
    """Add weighted sums of scattered pieces of an array to some rows.

    For r in 0..n_rows - 1, all flat offsets counted in elements::

        out[out_at + r * out_row : ... + halves * half] += sum over first <= n < first + count of
            factors[n] * source[source_at + rows[row + r] + offsets[n] : ... + halves * half]

    ``halves`` lies in 1..GATHER_HALVES and ``n_rows`` in 1..gather_rows(halves).
    """
    signature = types.void(
        out, types.intp, types.intp, source, types.intp, rows, types.intp, types.intp, offsets, factors,
        types.intp, types.intp, types.intp,
    )  # fmt: skip

    def codegen(context, builder, signature, arguments):
        out_, out_at, out_row, source_, source_at, rows_, row, n_rows, *pieces = arguments
        offsets_, factors_, start, count, halves = pieces
        emitter = Emitter(context, builder, out.dtype)
        step = emitter.step
        target = emitter.pointer(out, out_, out_at)
        origin = emitter.pointer(source, source_, source_at)
        row_offset = emitter.pointer(rows, rows_, row)
        offset = emitter.pointer(offsets, offsets_, start)
        factor = emitter.pointer(factors, factors_, start)

        def emit(n_rows, n):
            targets, origins, vectors = [], [], []
            for r in range(n_rows):
                row_target = step(target, builder.mul(out_row, INDEX(r)))
                row_origin = step(origin, emitter.index(step(row_offset, INDEX(r))))
                for vector, begin in emitter.short_vectors(n):
                    targets.append(step(row_target, begin))
                    origins.append(step(row_origin, begin))
                    vectors.append(vector)

            def add_piece(i, sums):
                here = emitter.index(step(offset, i))
                weight = builder.load(step(factor, i))
                return [
                    emitter.multiply_add(
                        emitter.spread(weight, vector), emitter.load(step(begin, here), vector), total
                    )
                    for vector, begin, total in zip(vectors, origins, sums, strict=True)
                ]

            sums = [emitter.load(place, vector) for place, vector in zip(targets, vectors, strict=True)]
            for place, total in zip(targets, emitter.accumulate(count, sums, add_piece), strict=True):
                emitter.store(total, place)

        cases = {
            n_rows * (GATHER_HALVES + 1) + n: (n_rows, n)
            for n in range(1, GATHER_HALVES + 1)
            for n_rows in range(1, gather_rows(n) + 1)
        }
        key = builder.add(builder.mul(n_rows, INDEX(GATHER_HALVES + 1)), halves)
        emitter.choose(key, cases, emit)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def trailing_zeros(typingctx, bits):
    """Position of the lowest bit of a uint64 that is set; at least one must be.

    Unsigned, for Numba checks whether an index is negative.
    """

    def codegen(context, builder, signature, arguments):
        return Emitter(context, builder, types.float64).trailing_zeros(arguments[0])

    return types.uint64(types.uint64), codegen
