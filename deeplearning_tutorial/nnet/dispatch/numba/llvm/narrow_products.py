"""Products with few columns, which would leave most of a tile's vectors empty.

The vectors run along the inner length instead. Where two neighbouring rows have nothing but zeros
in a vector, as digits have in their background, it may be left out.
"""

from typing import NamedTuple

from llvmlite import ir
from numba import types

from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import INDEX, MANY_REGISTERS
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import vector_intrinsic

INNER_ROWS = 2
"""Rows that `inner_tile` multiplies at once."""

INNER_COLUMNS = 12 if MANY_REGISTERS else 6
"""Columns that `inner_tile` multiplies at most."""

OUTER_COLUMNS = 12
"""Factors of a row that `add_outer_rows` takes at most."""

# So far ahead `list_vectors` asks for rows, which are read once: a minibatch comes from main memory.
_PREFETCH_BYTES = 24 << 10

_LINE_BYTES = 64
# Lines of the cache that `add_outer_rows` asks for with each group of rows: where half of the vectors are
# zeros, as in digits, all of the rows that follow.
_LINES_AHEAD = 2


@vector_intrinsic(returns=lambda element: types.intp)
def list_vectors(emitter, numbers, x, length, every):
    """List the whole vectors in which INNER_ROWS rows are not all zero, or ``every`` one.

    ``numbers`` receives their numbers in ascending order; how many they are is returned. ``x`` are `Rows` of
    ``length`` elements. Rows further on are fetched meanwhile.
    """
    builder, advance, vector = emitter.builder, emitter.advance, emitter.vector
    rows = [x.row(r) for r in range(INNER_ROWS)]
    zeros = ir.Constant(vector, None)
    always = builder.zext(builder.trunc(every, ir.IntType(1)), INDEX)

    def note(i, counts):
        [count] = counts
        at = emitter.times(i, vector.count)
        ahead = builder.add(at, INDEX(_PREFETCH_BYTES // emitter.itemsize))
        filled = []
        for row in rows:
            emitter.prefetch(advance(row, ahead))
            # A NaN is not zero either.
            filled.append(builder.fcmp_unordered("!=", emitter.load(advance(row, at), vector), zeros))
        lanes = builder.bitcast(builder.or_(*filled), ir.IntType(vector.count))
        is_listed = builder.zext(builder.icmp_unsigned("!=", lanes, lanes.type(0)), INDEX)
        builder.store(i, advance(numbers.start, count))
        return [builder.add(count, builder.or_(is_listed, always))]

    [count] = emitter.loop(builder.udiv(length, INDEX(vector.count)), [INDEX(0)], note)
    return count


@vector_intrinsic()
def inner_tile(emitter, out, a, b, numbers, count, length, columns):
    """Multiply INNER_ROWS rows by some columns, both with their elements side by side.

    ``out`` is a `Grid`, ``a`` and ``b`` are `Rows`. For r in 0..INNER_ROWS - 1 and c in 0..columns - 1::

        out[r, c, 0] = sum over t < length of a[r, t] * b[c, t]

    Of the whole vectors only those are multiplied that ``numbers`` lists, ``count`` of them. ``columns`` lies
    in 1..INNER_COLUMNS.
    """
    builder, advance, vector = emitter.builder, emitter.advance, emitter.vector
    _, whole, remainder = emitter.divided(length, vector)
    left = [a.row(r) for r in range(INNER_ROWS)]

    def emit(n):
        right = [b.row(c) for c in range(n)]

        def add_products(sums, load):
            rows, columns = [load(start) for start in left], [load(start) for start in right]
            pairs = [(x, y) for x in rows for y in columns]
            return [emitter.multiply_add(*pair, total) for pair, total in zip(pairs, sums, strict=True)]

        def add_vectors(i, sums):
            number = emitter.load_index(advance(numbers.start, i))
            at = emitter.times(number, vector.count)
            return add_products(sums, lambda start: emitter.load(advance(start, at), vector))

        zeros = [ir.Constant(vector, None)] * (INNER_ROWS * n)
        sums = emitter.loop(count, zeros, add_vectors)
        sums = add_products(sums, lambda start: emitter.load_masked(advance(start, whole), vector, remainder))
        for i, total in enumerate(map(emitter.horizontal_sum, sums)):
            builder.store(total, out.at(*divmod(i, n)))

    emitter.switch_up_to(INNER_COLUMNS, columns, emit)


class OuterShape(NamedTuple):
    """The sizes of `add_outer_rows`: rows of ``x``, factors of each, and elements of a row."""

    rows: int
    columns: int
    length: int


@vector_intrinsic()
def add_outer_rows(emitter, out, x, factors, shape, masks, ahead):
    """Add the outer products of some rows, each with a few factors.

    ``out``, ``x`` and ``factors`` are `Rows`, ``shape`` is an `OuterShape`. For c in 0..columns - 1 and i in
    0..length - 1::

        out[c, i] += sum over r < rows of factors[r, c] * x[r, i]

    Rows come in groups of INNER_ROWS, and bit g of ``masks[k]`` says whether vector k of group g is added.
    The factors of rows that the last group lacks must be zero. ``columns`` lies in 1..OUTER_COLUMNS. What
    begins ``ahead`` elements after ``x`` is fetched meanwhile.
    """
    builder, advance, vector = emitter.builder, emitter.advance, emitter.vector
    n_vectors, done, remainder = emitter.divided(shape.length, vector)
    last_row = builder.sub(shape.rows, INDEX(1))
    groups = builder.udiv(builder.add(shape.rows, INDEX(INNER_ROWS - 1)), INDEX(INNER_ROWS))
    line = _LINE_BYTES // emitter.itemsize

    def add_group(n, group, sums, load):
        for r in range(INNER_ROWS):
            row = builder.add(emitter.times(group, INNER_ROWS), INDEX(r))
            existing = builder.select(builder.icmp_signed("<", row, shape.rows), row, last_row)
            value = load(x.row(existing))
            row_factors = factors.row(row)
            scalars = [builder.load(advance(row_factors, INDEX(c))) for c in range(n)]
            sums = [
                emitter.multiply_add(emitter.broadcast(scalar, vector), value, total)
                for scalar, total in zip(scalars, sums, strict=True)
            ]
        return sums

    def emit(n):
        targets = [out.row(c) for c in range(n)]

        def one_vector(k, cursors):
            at = emitter.times(k, vector.count)
            mask = builder.load(advance(masks.start, k))
            places = [advance(start, at) for start in targets]

            def add_lowest(_i, values):
                bits, cursor, *sums = values
                for i in range(_LINES_AHEAD):
                    emitter.prefetch(advance(cursor, INDEX(i * line)))
                group = emitter.trailing_zeros(bits)
                sums = add_group(n, group, sums, lambda start: emitter.load(advance(start, at), vector))
                others = builder.and_(bits, builder.sub(bits, INDEX(1)))
                return [others, advance(cursor, INDEX(_LINES_AHEAD * line)), *sums]

            sums = [emitter.load(place, vector) for place in places]
            _, cursor, *sums = emitter.loop(builder.ctpop(mask), [mask, *cursors, *sums], add_lowest)
            for place, total in zip(places, sums, strict=True):
                emitter.store(total, place)
            return [cursor]

        def load_last(start):
            return emitter.load_masked(advance(start, done), vector, remainder)

        emitter.loop(n_vectors, [advance(x.start, ahead)], one_vector)
        with emitter.if_any(remainder):
            sums = [load_last(start) for start in targets]
            sums = emitter.loop(groups, sums, lambda group, sums: add_group(n, group, sums, load_last))
            for start, total in zip(targets, sums, strict=True):
                emitter.store_masked(total, advance(start, done), remainder)

    emitter.switch_up_to(OUTER_COLUMNS, shape.columns, emit)
