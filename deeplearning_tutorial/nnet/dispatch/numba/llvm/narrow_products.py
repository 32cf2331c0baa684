"""Products with few columns, which would leave most of a tile's vectors empty, as LLVM vector code.

The vectors run along the inner length instead. Where two neighbouring rows have nothing but zeros
in a vector, as digits have in their background, it may be left out.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import INDEX, MANY_REGISTERS, Emitter

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


@intrinsic
def list_vectors(typingctx, places, x, x_at, x_step, length, every):
    """List the whole vectors in which INNER_ROWS rows are not all zero, or ``every`` one.

    ``places`` gets their numbers in ascending order; their count is returned. The rows, of ``length``
    elements, begin at ``x[x_at + r * x_step]``. Rows further on are fetched meanwhile.
    """
    signature = types.intp(places, x, types.intp, types.intp, types.intp, types.boolean)

    def codegen(context, builder, signature, arguments):
        places_, x_, x_at, x_step, length, every = arguments
        emitter = Emitter(context, builder, x.dtype)
        step = emitter.step
        [(vector, _)] = emitter.vectors(2)
        place = emitter.pointer(places, places_, INDEX(0))
        rows = [step(emitter.pointer(x, x_, x_at), builder.mul(x_step, INDEX(r))) for r in range(INNER_ROWS)]
        zeros = ir.Constant(vector, None)
        always = builder.zext(builder.trunc(every, ir.IntType(1)), INDEX)

        def note(i, counts):
            [count] = counts
            at = builder.mul(i, INDEX(vector.count))
            ahead = builder.add(at, INDEX(_PREFETCH_BYTES // emitter.itemsize))
            filled = []
            for row in rows:
                emitter.prefetch(step(row, ahead))
                # A NaN is not zero either.
                filled.append(builder.fcmp_unordered("!=", emitter.load(step(row, at), vector), zeros))
            lanes = builder.bitcast(builder.or_(*filled), ir.IntType(vector.count))
            counts_here = builder.zext(builder.icmp_unsigned("!=", lanes, lanes.type(0)), INDEX)
            builder.store(i, step(place, count))
            return [builder.add(count, builder.or_(counts_here, always))]

        [count] = emitter.accumulate(builder.udiv(length, INDEX(vector.count)), [INDEX(0)], note)
        return count

    return signature, codegen


@intrinsic
def inner_tile(
    typingctx, out, out_at, out_row, out_column, a, a_at, a_step, b, b_at, b_step,
    places, count, length, columns,
):  # fmt: skip
    """Multiply INNER_ROWS rows by some columns, both with their elements side by side.

    For r in 0..INNER_ROWS - 1 and c in 0..columns - 1, all flat offsets counted in elements::

        out[out_at + r * out_row + c * out_column] = sum over t < length of
            a[a_at + r * a_step + t] * b[b_at + c * b_step + t]

    Of the whole vectors only those are multiplied that ``places`` lists, ``count`` of them. ``columns`` lies
    in 1..INNER_COLUMNS.
    """
    signature = types.void(
        out, types.intp, types.intp, types.intp, a, types.intp, types.intp, b, types.intp, types.intp, places,
        types.intp, types.intp, types.intp,
    )  # fmt: skip

    def codegen(context, builder, signature, arguments):
        out_, out_at, out_row, out_column, a_, a_at, a_step, b_, b_at, b_step, *sizes = arguments
        places_, count, length, columns = sizes
        emitter = Emitter(context, builder, out.dtype)
        step = emitter.step
        [(vector, _)] = emitter.vectors(2)
        whole = builder.mul(builder.udiv(length, INDEX(vector.count)), INDEX(vector.count))
        rest = builder.sub(length, whole)
        target = emitter.pointer(out, out_, out_at)
        place = emitter.pointer(places, places_, INDEX(0))
        left = [step(emitter.pointer(a, a_, a_at), builder.mul(a_step, INDEX(r))) for r in range(INNER_ROWS)]

        def emit(n):
            right = [step(emitter.pointer(b, b_, b_at), builder.mul(b_step, INDEX(c))) for c in range(n)]

            def add_products(sums, load):
                rows, results = [load(start) for start in left], iter(sums)
                columns = [load(start) for start in right]
                return [emitter.multiply_add(x, y, next(results)) for x in rows for y in columns]

            def add_vectors(i, sums):
                at = builder.mul(emitter.index(step(place, i)), INDEX(vector.count))
                return add_products(sums, lambda start: emitter.load(step(start, at), vector))

            zeros = [ir.Constant(vector, None)] * (INNER_ROWS * n)
            sums = emitter.accumulate(count, zeros, add_vectors)
            sums = add_products(sums, lambda start: emitter.load_first(step(start, whole), vector, rest))
            for i, total in enumerate(map(emitter.total, sums)):
                row, column = (INDEX(j) for j in divmod(i, n))
                at = builder.add(builder.mul(out_row, row), builder.mul(out_column, column))
                builder.store(total, step(target, at))

        emitter.choose(columns, {n: (n,) for n in range(1, INNER_COLUMNS + 1)}, emit)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_outer_rows(
    typingctx, out, out_at, out_step, x, x_at, x_step, masks, factors, factors_at, factors_step,
    rows, length, columns, ahead,
):  # fmt: skip
    """Add the outer products of some rows, each with a few factors.

    For c in 0..columns - 1 and i in 0..length - 1, all flat offsets counted in elements::

        out[out_at + c * out_step + i] += sum over r < rows of
            factors[factors_at + r * factors_step + c] * x[x_at + r * x_step + i]

    Rows come in groups of INNER_ROWS, and the bits of ``masks[k]`` tell which groups' vector k is added. What
    the last group lacks in rows must have factors of zero. ``columns`` lies in 1..OUTER_COLUMNS. What begins
    ``ahead`` elements after ``x`` is fetched meanwhile.
    """
    signature = types.void(
        out, types.intp, types.intp, x, types.intp, types.intp, masks, factors, *[types.intp] * 6
    )

    def codegen(context, builder, signature, arguments):
        out_, out_at, out_step, x_, x_at, x_step, masks_, factors_, factors_at, factors_step, *sizes = (
            arguments
        )
        rows, length, columns, ahead = sizes
        emitter = Emitter(context, builder, out.dtype)
        step = emitter.step
        [(vector, _)] = emitter.vectors(2)
        n_vectors = builder.udiv(length, INDEX(vector.count))
        done = builder.mul(n_vectors, INDEX(vector.count))
        rest = builder.sub(length, done)
        target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)
        mask = emitter.pointer(masks, masks_, INDEX(0))
        factor = emitter.pointer(factors, factors_, factors_at)
        last_row = builder.sub(rows, INDEX(1))
        groups = builder.udiv(builder.add(rows, INDEX(INNER_ROWS - 1)), INDEX(INNER_ROWS))
        line = _LINE_BYTES // emitter.itemsize

        def emit(n):
            targets = [step(target, builder.mul(out_step, INDEX(c))) for c in range(n)]

            def add_group(group, sums, load):
                for r in range(INNER_ROWS):
                    row = builder.add(builder.mul(group, INDEX(INNER_ROWS)), INDEX(r))
                    there = builder.select(builder.icmp_signed("<", row, rows), row, last_row)
                    value = load(step(source, builder.mul(there, x_step)))
                    row_factors = step(factor, builder.mul(row, factors_step))
                    scalars = [builder.load(step(row_factors, INDEX(c))) for c in range(n)]
                    sums = [
                        emitter.multiply_add(emitter.spread(scalar, vector), value, total)
                        for scalar, total in zip(scalars, sums, strict=True)
                    ]
                return sums

            def one_vector(k, cursors):
                at = builder.mul(k, INDEX(vector.count))
                bits = builder.load(step(mask, k))
                places = [step(start, at) for start in targets]

                def add_lowest(_i, values):
                    bits, cursor, *sums = values
                    for i in range(_LINES_AHEAD):
                        emitter.prefetch(step(cursor, INDEX(i * line)))
                    group = emitter.trailing_zeros(bits)
                    sums = add_group(group, sums, lambda start: emitter.load(step(start, at), vector))
                    others = builder.and_(bits, builder.sub(bits, INDEX(1)))
                    return [others, step(cursor, INDEX(_LINES_AHEAD * line)), *sums]

                sums = [emitter.load(place, vector) for place in places]
                _, cursor, *sums = emitter.accumulate(
                    builder.ctpop(bits), [bits, *cursors, *sums], add_lowest
                )
                for place, total in zip(places, sums, strict=True):
                    emitter.store(total, place)
                return [cursor]

            emitter.accumulate(n_vectors, [step(source, ahead)], one_vector)
            with builder.if_then(builder.icmp_signed("!=", rest, INDEX(0))):
                places = [step(start, done) for start in targets]
                sums = [emitter.load_first(place, vector, rest) for place in places]
                sums = emitter.accumulate(
                    groups,
                    sums,
                    lambda group, sums: add_group(
                        group, sums, lambda start: emitter.load_first(step(start, done), vector, rest)
                    ),
                )
                for place, total in zip(places, sums, strict=True):
                    emitter.store_first(total, place, rest)

        emitter.choose(columns, {n: (n,) for n in range(1, OUTER_COLUMNS + 1)}, emit)
        return context.get_dummy_value()

    return signature, codegen
