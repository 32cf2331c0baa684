"""Loops over the windows of poolings and over what their gradients give back, in vectors.

Windows side by side are the elements of a vector. Offsets are flat and counted in elements.
"""

import math
from functools import cache, partial, reduce

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import INDEX, Emitter

MASK_LANES = 8
"""Filters that `max_window` takes at once: a byte of the mask."""

# So far ahead a pooling asks for what it reads once: the processor's own prefetching lags behind.
_PREFETCH_BYTES = 4 << 10


def _pooling(function, nothing, divides=False):
    """Make an intrinsic that combines windows by ``function(emitter, a, b)``; ``nothing`` changes nothing."""

    @intrinsic
    def pool(
        typingctx, out, out_at, x, x_at, row_step, lines, line_step, rows, cols, stride, divisors, count
    ):  # fmt: skip
        """Combine the elements of windows of ``rows`` rows and ``cols`` columns, ``count`` in a line.

        ``out[out_at + n * count + i]`` combines ``x[x_at + n * line_step + i * stride + r * row_step + c]``
        for r in 0..rows - 1 and c in 0..cols - 1; where it ``divides`` that is divided by ``divisors[i]``.
        ``stride`` is 1 or 2.
        """
        signature = types.void(out, types.intp, x, *[types.intp] * 7, divisors, types.intp)

        def codegen(context, builder, signature, arguments):
            out_, out_at, x_, x_at, row_step, lines, line_step, *window, divisors_, count = arguments
            rows, cols, window_stride = window
            emitter = Emitter(context, builder, out.dtype)
            step = emitter.step
            outs, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)
            divisor = emitter.pointer(divisors, divisors_, INDEX(0))
            [(vector, _)] = emitter.vectors(2)
            lanes = vector.count

            def combine(first, stride, read):
                """Combine a vector of windows from ``first`` on.

                ``read(place, skip, width)`` loads neighbours of ``place + skip``, among the first ``width``
                columns from ``place`` on of each window.
                """

                def add_columns(begin, width):
                    # At a stride of 2 two vectors hold even and odd columns. Of a column alone the last
                    # element loaded is the last one taken: nothing past the array.
                    skips = [0, lanes - 2 + width][:stride]

                    def add(j, totals):
                        place = step(first, builder.add(begin, builder.mul(j, INDEX(width))))

                        def add_row(r, parts):
                            row = step(place, builder.mul(r, row_step))
                            emitter.prefetch(step(row, INDEX(_PREFETCH_BYTES // emitter.itemsize)))
                            return [
                                function(emitter, part, read(row, skip, width))
                                for part, skip in zip(parts, skips, strict=True)
                            ]

                        parts = [emitter.constant(nothing, vector)] * stride
                        parts = emitter.accumulate(rows, parts, add_row)
                        if stride == 2:
                            others = range(lanes + 2 - width, 2 * lanes, 2)
                            even = emitter.shuffle(*parts, [*range(0, lanes, 2), *others])
                            odd = emitter.shuffle(*parts, range(1, 2 * lanes, 2))
                            parts = [even, odd][:width]
                        return [reduce(partial(function, emitter), parts, *totals)]

                    return add

                total, done = [emitter.constant(nothing, vector)], INDEX(0)
                if stride == 2:
                    pairs = builder.lshr(cols, INDEX(1))
                    total = emitter.accumulate(pairs, total, add_columns(INDEX(0), 2))
                    done = builder.shl(pairs, INDEX(1))
                return emitter.accumulate(builder.sub(cols, done), total, add_columns(done, 1))[0]

            def emit_whole(stride):
                def read(place, skip, _width):
                    return emitter.load(step(place, INDEX(skip)), vector)

                def one_line(n, _sums):
                    target = step(outs, builder.mul(n, count))
                    line = step(source, builder.mul(n, line_step))
                    last = builder.sub(count, INDEX(lanes))

                    def one_vector(i, _sums):
                        # The last vector begins early and combines some windows again: nothing is masked.
                        at = builder.mul(i, INDEX(lanes))
                        at = builder.select(builder.icmp_signed("<", at, last), at, last)
                        total = combine(step(line, builder.mul(at, INDEX(stride))), stride, read)
                        if divides:
                            total = builder.fdiv(total, emitter.load(step(divisor, at), vector))
                        emitter.store(total, step(target, at))
                        return []

                    vectors = builder.udiv(builder.add(count, INDEX(lanes - 1)), INDEX(lanes))
                    return emitter.accumulate(vectors, [], one_vector)

                emitter.accumulate(lines, [], one_line)

            def emit_few(stride):
                def read(place, skip, width):
                    taken = builder.add(builder.mul(count, INDEX(stride)), INDEX(width - stride - skip))
                    return emitter.load_first(step(place, INDEX(skip)), vector, taken)

                def one_line(n, _sums):
                    total = combine(step(source, builder.mul(n, line_step)), stride, read)
                    if divides:
                        total = builder.fdiv(total, emitter.load_first(divisor, vector, count))
                    emitter.store_first(total, step(outs, builder.mul(n, count)), count)
                    return []

                emitter.accumulate(lines, [], one_line)

            with builder.if_else(builder.icmp_signed("<", count, INDEX(lanes))) as ways:
                for way, emit in zip(ways, (emit_few, emit_whole), strict=True):
                    with way:
                        emitter.choose(window_stride, {1: (1,), 2: (2,)}, emit)
            return context.get_dummy_value()

        return signature, codegen

    return pool


pool_maximum = _pooling(Emitter.larger, -math.inf)
pool_sum = _pooling(Emitter.sum, 0.0)
pool_average = _pooling(Emitter.sum, 0.0, divides=True)


def _doubling(repeats):
    """Make an intrinsic that gives each element a second one: itself where it ``repeats``, or zero."""

    @intrinsic
    def spread(typingctx, out, out_at, x, x_at, count):
        """Set ``out[out_at + 2 * i]`` to ``x[x_at + i]``, with its second one next, for i in 0..count - 1."""
        signature = types.void(out, types.intp, x, types.intp, types.intp)

        def codegen(context, builder, signature, arguments):
            out_, out_at, x_, x_at, count = arguments
            emitter = Emitter(context, builder, out.dtype)
            target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)

            [(half, _)] = emitter.vectors(1)
            lanes = INDEX(half.count)

            def doubled(value):
                seconds = value if repeats else ir.Constant(half, None)
                pairs = zip(range(half.count), range(half.count, 2 * half.count), strict=True)
                return emitter.shuffle(value, seconds, sum(pairs, ()))

            def one_half(i, _sums):
                at = builder.mul(i, lanes)
                value = emitter.load(emitter.step(source, at), half)
                emitter.store(doubled(value), emitter.step(target, builder.mul(at, INDEX(2))))
                return []

            whole = builder.udiv(count, lanes)
            emitter.accumulate(whole, [], one_half)
            done = builder.mul(whole, lanes)
            rest = builder.sub(count, done)
            with builder.if_then(builder.icmp_signed("!=", rest, INDEX(0))):
                value = emitter.load_first(emitter.step(source, done), half, rest)
                place = emitter.step(target, builder.mul(done, INDEX(2)))
                emitter.store_first(doubled(value), place, builder.mul(rest, INDEX(2)))
            return context.get_dummy_value()

        return signature, codegen

    return spread


spread_apart = _doubling(repeats=False)
repeat_each = _doubling(repeats=True)


@intrinsic
def add_where_equal(typingctx, out, out_at, a, a_at, b, b_at, c, c_at, times, count):
    """Add elements of ``c`` where those of ``b`` equal that of ``a``.

    To ``out[out_at + i]``, i in 0..count - 1, is added ``c[c_at + r + i]`` for each r in 0..times - 1 with
    ``a[a_at + i] == b[b_at + r + i]``.
    """
    signature = types.void(out, types.intp, a, types.intp, b, types.intp, c, *[types.intp] * 3)

    def codegen(context, builder, signature, arguments):
        *arrays, times, count = arguments
        emitter = Emitter(context, builder, out.dtype)
        target, fixed, other, values = (
            emitter.pointer(kind, array, at)
            for kind, array, at in zip((out, a, b, c), arrays[::2], arrays[1::2], strict=True)
        )

        def compute(load):
            wanted = load(fixed)

            def add(r, totals):
                equal = builder.fcmp_ordered("==", wanted, load(emitter.step(other, r)))
                value = load(emitter.step(values, r))
                none = ir.Constant(value.type, None)
                return [builder.fadd(totals[0], builder.select(equal, value, none))]

            return emitter.accumulate(times, [load(target)], add)

        emitter.for_each_vector(count, [target], compute)
        return context.get_dummy_value()

    return signature, codegen


@cache
def max_window(window_rows, window_cols):
    """Make the intrinsic that pools a window of ``window_rows * window_cols`` positions, for all filters."""
    positions = [(row, col) for row in range(window_rows) for col in range(window_cols)]

    @intrinsic
    def pool(
        typingctx, out, out_at, mask, mask_at, mask_step, lines, lines_at, row_step, col_step, bias, count
    ):  # fmt: skip
        """Take the maximum, add the bias, and set the mask's bits of the maximal positions.

        For f in 0..count * MASK_LANES - 1, with position p at row r and column c of the window::

            maximum = max over p of lines[lines_at + r * row_step + c * col_step + f]
            out[out_at + f] = maximum + bias[f]
            bit f of the words from mask[mask_at + p * mask_step] on = position p holds the maximum
        """
        signature = types.void(
            out, types.intp, mask, types.intp, types.intp, lines, types.intp, types.intp, types.intp, bias,
            types.intp,
        )  # fmt: skip

        def codegen(context, builder, signature, arguments):
            out_, out_at, mask_, mask_at, mask_step, lines_, lines_at, row_step, col_step, *rest = arguments
            bias_, count = rest
            emitter = Emitter(context, builder, out.dtype)
            step = emitter.step
            vector, byte = ir.VectorType(emitter.scalar, MASK_LANES), ir.IntType(8)
            maxima = emitter.pointer(out, out_, out_at)
            biases = emitter.pointer(bias, bias_, INDEX(0))
            first = emitter.pointer(lines, lines_, lines_at)
            places, masks = [], []
            for p, (row, col) in enumerate(positions):
                line = step(first, builder.mul(row_step, INDEX(row)))
                places.append(step(line, builder.mul(col_step, INDEX(col))))
                words = emitter.pointer(mask, mask_, builder.add(mask_at, builder.mul(mask_step, INDEX(p))))
                masks.append(builder.bitcast(words, byte.as_pointer()))

            def pool_lanes(i, _sums):
                at = builder.mul(i, INDEX(MASK_LANES))
                values = [emitter.load(step(place, at), vector) for place in places]
                maximum = reduce(emitter.larger, values)
                # The lowest bytes of a word come first on every target of Numba.
                for value, words in zip(values, masks, strict=True):
                    equal = builder.fcmp_ordered("==", value, maximum)
                    builder.store(builder.bitcast(equal, byte), step(words, i))
                result = builder.fadd(maximum, emitter.load(step(biases, at), vector))
                emitter.store(result, step(maxima, at))
                return []

            emitter.accumulate(count, [], pool_lanes)
            return context.get_dummy_value()

        return signature, codegen

    return pool
