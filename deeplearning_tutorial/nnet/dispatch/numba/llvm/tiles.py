"""The inner loops of convolution, with every sum held in registers.

Numba's own loops over arrays load and store each partial sum; written as vectors whose accumulators are SSA
values, the loops reach the speed of a matrix product. The vectors are as wide as the target's registers.
Lengths are counted in half vectors, so that at most half a vector of arithmetic is wasted at the end.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from deeplearning_tutorial.nnet.dispatch.numba.jit import kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import (
    INDEX,
    MANY_REGISTERS,
    REGISTER_BYTES,
    SHORT_BYTES,
    Emitter,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import vector_intrinsic

TILE_COLUMNS = 4
"""Output columns that `convolve_tile` computes at once."""

TILE_HALVES = 8 if MANY_REGISTERS else 6
"""Half vectors of filters that `convolve_tile` takes at most."""

GATHER_HALVES = 16
"""Half vectors of a row that `gather_add` takes at most."""

# Sums that `gather_add` holds for several rows: with their factor they fit in 16 registers.
_GATHER_SUMS = 8

SHIFTS = 4
"""Shifted arrays that `add_inner_rows` takes at most."""


@kernel_njit
def in_halves(length, half):
    """Return how many half vectors, of ``half`` elements, ``length`` elements need."""
    return (length + half - 1) // half


@vector_intrinsic()
def convolve_tile(emitter, out, image, filters, offsets, halves, more):
    """Correlate `TILE_COLUMNS` neighbouring positions of an image with a block of filters.

    ``out``, ``image`` and ``filters`` are `Rows`, one for each position or tap. For p in
    0..TILE_COLUMNS - 1 and i in 0..halves * half - 1::

        out[p, i] = sum over t < len(offsets) of image[p, offsets[t]] * filters[t, i]

    If ``more`` is True the sum begins with what is in ``out``. ``halves`` lies in 1..TILE_HALVES.
    """
    emitter.switch_up_to(
        TILE_HALVES, halves, lambda n: _emit_tile(emitter, out, image, filters, offsets, more, n)
    )


def _emit_tile(emitter, out, image, filters, offsets, more, n):
    """Emit `convolve_tile` for ``n`` half vectors."""
    builder, advance, whole = emitter.builder, emitter.advance, emitter.vector
    positions = range(TILE_COLUMNS)
    odd = n % 2
    pairs = range(0, TILE_COLUMNS, 2) if odd else ()
    vectors = emitter.vectors(n - odd)
    # Filters that fill half a vector share it: the halves belong to neighbouring positions.
    odd_first = INDEX((n - odd) * emitter.half)
    targets, sources = [out.row(p) for p in positions], [image.row(p) for p in positions]

    def add_tap(t, sums):
        offset = emitter.load_index(advance(offsets.start, t))
        weights = filters.row(t)
        loaded = [emitter.load(advance(weights, first), vector) for vector, first in vectors]
        pixels = [builder.load(advance(source, offset)) for source in sources]
        factors = [(emitter.broadcast(pixel, whole), weight) for pixel in pixels for weight in loaded]
        if odd:
            half = emitter.load(advance(weights, odd_first), emitter.half_vector)
            for p in pairs:
                left, right = (emitter.broadcast(pixel, whole) for pixel in pixels[p : p + 2])
                factors.append((emitter.blend_halves(left, right), emitter.join(half, half)))
        return [emitter.multiply_add(*pair, total) for pair, total in zip(factors, sums, strict=True)]

    def load_sums():
        sums = [emitter.load(advance(place, first), vector) for place in targets for vector, first in vectors]
        for p in pairs:
            halves = (
                emitter.load(advance(place, odd_first), emitter.half_vector) for place in targets[p : p + 2]
            )
            sums.append(emitter.join(*halves))
        return sums

    def zeros():
        return [ir.Constant(whole, None)] * (TILE_COLUMNS * len(vectors) + len(pairs))

    sums = emitter.if_else(more, load_sums, zeros)
    sums = iter(emitter.loop(offsets.length, sums, add_tap))
    for place in targets:
        for _, first in vectors:
            emitter.store(next(sums), advance(place, first))
    for p in pairs:
        for value, place in zip(emitter.split(next(sums)), targets[p : p + 2], strict=True):
            emitter.store(value, advance(place, odd_first))


@vector_intrinsic()
def add_inner_rows(emitter, out, a, b, offsets, rows, length, columns):
    """Add the inner products of some rows with those of as many shifted arrays.

    ``out`` and ``offsets`` are `Elements`, ``a`` and ``b`` `Rows`. For c in 0..columns - 1::

        out[c] += sum over r < rows and t < length of a[r, t] * b[r, offsets[c] + t]

    ``columns`` lies in 1..SHIFTS.
    """
    builder, advance, vector = emitter.builder, emitter.advance, emitter.vector
    whole, done, remainder = emitter.divided(length, vector)

    def emit(n):
        shifts = [emitter.load_index(advance(offsets, INDEX(c))) for c in range(n)]

        def add_row(r, sums):
            row = b.row(r)
            left, right = a.row(r), [advance(row, shift) for shift in shifts]

            def add_products(sums, at, load):
                value = load(advance(left, at))
                return [
                    emitter.multiply_add(value, load(advance(place, at)), total)
                    for place, total in zip(right, sums, strict=True)
                ]

            def add_vectors(i, sums):
                at = builder.mul(i, INDEX(vector.count))
                return add_products(sums, at, lambda place: emitter.load(place, vector))

            sums = emitter.loop(whole, sums, add_vectors)
            return add_products(sums, done, lambda place: emitter.load_masked(place, vector, remainder))

        sums = emitter.loop(rows, [ir.Constant(vector, None)] * n, add_row)
        for c, total in enumerate(map(emitter.horizontal_sum, sums)):
            place = advance(out, INDEX(c))
            builder.store(builder.fadd(builder.load(place), total), place)

    emitter.switch_up_to(SHIFTS, columns, emit)


class Pieces(NamedTuple):
    """What `gather_add` adds: ``count`` pieces, from number ``first`` on of two lists."""

    offsets: Any
    """Where each piece begins."""
    factors: Any
    """What each piece is multiplied by."""
    first: int
    count: int


@kernel_njit
def gather_rows(halves):
    """Return how many rows of ``halves`` half vectors `gather_add` takes at most at once."""
    vectors = halves if REGISTER_BYTES > SHORT_BYTES else (halves + 1) // 2
    return max(1, _GATHER_SUMS // vectors)


@vector_intrinsic()
def gather_add(emitter, out, source, row_offsets, n_rows, pieces, halves):
    """Add weighted sums of scattered pieces of an array to some rows.

    ``out`` are `Rows`, ``source`` and ``row_offsets`` `Elements`, ``pieces`` `Pieces`. For r in 0..n_rows - 1
    and i in 0..halves * half - 1::

        out[r, i] += sum over first <= n < first + count of
            factors[n] * source[row_offsets[r] + offsets[n] + i]

    ``halves`` lies in 1..GATHER_HALVES and ``n_rows`` in 1..gather_rows(halves).
    """
    builder, advance = emitter.builder, emitter.advance
    offsets, factors = (advance(listed.start, pieces.first) for listed in pieces[:2])

    def emit(n_rows, n):
        targets, origins, vectors = [], [], []
        for r in range(n_rows):
            target = out.row(r)
            origin = advance(source, emitter.load_index(advance(row_offsets, INDEX(r))))
            for vector, first in emitter.short_vectors(n):
                targets.append(advance(target, first))
                origins.append(advance(origin, first))
                vectors.append(vector)

        def add_piece(i, sums):
            offset = emitter.load_index(advance(offsets, i))
            factor = builder.load(advance(factors, i))
            return [
                emitter.multiply_add(
                    emitter.broadcast(factor, vector), emitter.load(advance(origin, offset), vector), total
                )
                for vector, origin, total in zip(vectors, origins, sums, strict=True)
            ]

        sums = [emitter.load(place, vector) for place, vector in zip(targets, vectors, strict=True)]
        for place, total in zip(targets, emitter.loop(pieces.count, sums, add_piece), strict=True):
            emitter.store(total, place)

    cases = {
        n_rows * (GATHER_HALVES + 1) + n: (n_rows, n)
        for n in range(1, GATHER_HALVES + 1)
        for n_rows in range(1, gather_rows.py_func(n) + 1)
    }
    emitter.switch(builder.add(emitter.times(n_rows, GATHER_HALVES + 1), halves), cases, emit)


@intrinsic
def trailing_zeros(typingctx, bits):
    """Return the position of the lowest bit of a uint64 that is set; at least one must be.

    Unsigned, because Numba checks whether an index is negative.
    """

    def codegen(context, builder, signature, arguments):
        return Emitter(context, builder, types.float64).trailing_zeros(arguments[0])

    return types.uint64(types.uint64), codegen
