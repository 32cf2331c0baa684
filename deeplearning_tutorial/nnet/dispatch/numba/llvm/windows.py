"""Loops over the windows of poolings and over what their gradients give back, in vectors.

Windows side by side are the elements of a vector.
"""

import math
from functools import cache, partial, reduce
from typing import NamedTuple

from llvmlite import ir

from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import INDEX, Emitter
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import vector_intrinsic

MASK_LANES = 8
"""Filters that `max_window` takes at once: a byte of the mask."""

# So far ahead a pooling asks for what it reads once: the processor's own prefetching lags behind.
_PREFETCH_BYTES = 4 << 10


class Window(NamedTuple):
    """Rows and columns of a window, and the columns from one window to the next."""

    rows: int
    cols: int
    stride: int


class _WindowVector:
    """Emits the combination of a vector of windows by ``function(emitter, a, b)``.

    ``neutral`` is the value that changes nothing. ``read(place, skip, width)`` loads neighbours of
    ``place + skip``, among the first ``width`` columns from ``place`` on of each window.
    """

    def __init__(self, emitter, function, neutral, row_step, window):
        self.emitter = emitter
        self.combine = partial(function, emitter)
        self.neutral = emitter.constant(neutral, emitter.vector)
        self.row_step = row_step
        self.window = window

    def emit(self, first, stride, read):
        """Combine the windows from ``first`` on; at a stride of 2 two columns at a time."""
        emitter, cols = self.emitter, self.window.cols
        builder = emitter.builder
        total, done = [self.neutral], INDEX(0)

        def add_columns(width, j, totals):
            place = emitter.advance(first, builder.add(done, emitter.times(j, width)))
            return self._add_columns(place, width, stride, read, totals)

        if stride == 2:
            pairs = builder.lshr(cols, INDEX(1))
            total = emitter.loop(pairs, total, partial(add_columns, 2))
            done = builder.shl(pairs, INDEX(1))
        [total] = emitter.loop(builder.sub(cols, done), total, partial(add_columns, 1))
        return total

    def _add_columns(self, place, width, stride, read, totals):
        emitter, lanes = self.emitter, self.emitter.vector.count
        # At a stride of 2 two vectors hold even and odd columns. Of a column alone the last element loaded is
        # the last one taken: nothing past the array.
        skips = [0, lanes - 2 + width][:stride]

        def add_row(r, parts):
            row = emitter.advance(place, emitter.builder.mul(r, self.row_step))
            emitter.prefetch(emitter.advance(row, INDEX(_PREFETCH_BYTES // emitter.itemsize)))
            return [
                self.combine(part, read(row, skip, width)) for part, skip in zip(parts, skips, strict=True)
            ]

        parts = emitter.loop(self.window.rows, [self.neutral] * stride, add_row)
        if stride == 2:
            others = range(lanes + 2 - width, 2 * lanes, 2)
            even = emitter.shuffle(*parts, [*range(0, lanes, 2), *others])
            odd = emitter.shuffle(*parts, range(1, 2 * lanes, 2))
            parts = [even, odd][:width]
        return [reduce(self.combine, parts, *totals)]


def _pooling(function, neutral, divides=False):
    """Make an intrinsic that combines windows by ``function(emitter, a, b)``; ``neutral`` changes nothing."""

    @vector_intrinsic()
    def pool(emitter, out, x, window, lines, count, divisors):
        """Combine the elements of windows, ``count`` of them in each of some lines.

        ``out`` are `Rows`; ``x`` is a `Grid`, of lines of windows and of the rows under a line; ``window`` is
        a `Window`, whose stride is 1 or 2. For n in 0..lines - 1 and i in 0..count - 1, ``out[n, i]``
        combines ``x[n, r, i * stride + c]`` for r in 0..rows - 1 and c in 0..cols - 1. An average is that
        divided by ``divisors[i]``.
        """
        builder, advance, vector = emitter.builder, emitter.advance, emitter.vector
        windows = _WindowVector(emitter, function, neutral, x.column_step, window)

        def emit_many(stride):
            def read(place, skip, _width):
                return emitter.load(advance(place, INDEX(skip)), vector)

            def one_line(n, _values):
                target, line = out.row(n), x.at(n, 0)
                last = builder.sub(count, INDEX(vector.count))

                def one_vector(i, _values):
                    # The last vector begins early and combines some windows again: nothing is masked.
                    at = emitter.times(i, vector.count)
                    at = builder.select(builder.icmp_signed("<", at, last), at, last)
                    total = windows.emit(advance(line, emitter.times(at, stride)), stride, read)
                    if divides:
                        total = builder.fdiv(total, emitter.load(advance(divisors.start, at), vector))
                    emitter.store(total, advance(target, at))
                    return []

                n_vectors = builder.udiv(builder.add(count, INDEX(vector.count - 1)), INDEX(vector.count))
                return emitter.loop(n_vectors, [], one_vector)

            emitter.loop(lines, [], one_line)

        def emit_few(stride):
            def read(place, skip, width):
                taken = builder.add(emitter.times(count, stride), INDEX(width - stride - skip))
                return emitter.load_masked(advance(place, INDEX(skip)), vector, taken)

            def one_line(n, _values):
                total = windows.emit(x.at(n, 0), stride, read)
                if divides:
                    total = builder.fdiv(total, emitter.load_masked(divisors.start, vector, count))
                emitter.store_masked(total, out.row(n), count)
                return []

            emitter.loop(lines, [], one_line)

        with builder.if_else(builder.icmp_signed("<", count, INDEX(vector.count))) as branches:
            for branch, emit in zip(branches, (emit_few, emit_many), strict=True):
                with branch:
                    emitter.switch_up_to(2, window.stride, emit)

    return pool


pool_maximum = _pooling(Emitter.maximum, -math.inf)
pool_sum = _pooling(Emitter.add, 0.0)
pool_average = _pooling(Emitter.add, 0.0, divides=True)


def _doubling(repeats):
    """Make an intrinsic that puts after each element the same one again if it ``repeats``, or else zero."""

    @vector_intrinsic()
    def double(emitter, out, out_at, x, x_at, count):
        """Set ``out[out_at + 2 * i]`` to ``x[x_at + i]``, and the element after it, for i in 0..count - 1."""
        target, source = emitter.advance(out.start, out_at), emitter.advance(x.start, x_at)
        half = emitter.half_vector
        whole, done, remainder = emitter.divided(count, half)

        def doubled(value):
            seconds = value if repeats else ir.Constant(half, None)
            pairs = zip(range(half.count), range(half.count, 2 * half.count), strict=True)
            return emitter.shuffle(value, seconds, sum(pairs, ()))

        def one_half(i, _values):
            at = emitter.times(i, half.count)
            value = emitter.load(emitter.advance(source, at), half)
            emitter.store(doubled(value), emitter.advance(target, emitter.times(at, 2)))
            return []

        emitter.loop(whole, [], one_half)
        with emitter.if_any(remainder):
            value = emitter.load_masked(emitter.advance(source, done), half, remainder)
            place = emitter.advance(target, emitter.times(done, 2))
            emitter.store_masked(doubled(value), place, emitter.times(remainder, 2))

    return double


interleave_zeros = _doubling(repeats=False)
repeat_each = _doubling(repeats=True)


@vector_intrinsic()
def add_where_equal(emitter, out, a, b, c, times, count):
    """Add elements of ``c`` where those of ``b`` equal that of ``a``; all are `Elements`.

    To ``out[i]``, i in 0..count - 1, is added ``c[r + i]`` for each r in 0..times - 1 with
    ``a[i] == b[r + i]``.
    """
    builder = emitter.builder

    def compute(load):
        expected = load(a)

        def add(r, totals):
            equal = builder.fcmp_ordered("==", expected, load(emitter.advance(b, r)))
            value = load(emitter.advance(c, r))
            return [builder.fadd(totals[0], builder.select(equal, value, ir.Constant(value.type, None)))]

        return emitter.loop(times, [load(out)], add)

    emitter.for_each_vector(count, [out], compute)


@cache
def max_window(window_rows, window_cols):
    """Make the intrinsic that pools a window of ``window_rows * window_cols`` positions, for all filters."""
    positions = [(row, col) for row in range(window_rows) for col in range(window_cols)]

    @vector_intrinsic()
    def pool(emitter, out, mask, lines, bias, count):
        """Take the maximum, add the bias, and set the mask's bits of the maximal positions.

        ``out`` are `Elements`, ``mask`` `Rows` of words, ``lines`` is a `Grid`. For f in
        0..count * MASK_LANES - 1, with position p at row r and column c of the window::

            maximum = max over p of lines[r, c, f]
            out[f] = maximum + bias[f]
            bit f of the words of row p of the mask = position p holds the maximum
        """
        builder, advance = emitter.builder, emitter.advance
        vector, byte = ir.VectorType(emitter.scalar, MASK_LANES), ir.IntType(8)
        places = [lines.at(row, col) for row, col in positions]
        masks = [builder.bitcast(mask.row(p), byte.as_pointer()) for p in range(len(positions))]

        def pool_lanes(i, _values):
            at = emitter.times(i, MASK_LANES)
            values = [emitter.load(advance(place, at), vector) for place in places]
            maximum = reduce(emitter.maximum, values)
            # The lowest bytes of a word come first on every target of Numba.
            for value, words in zip(values, masks, strict=True):
                equal = builder.fcmp_ordered("==", value, maximum)
                builder.store(builder.bitcast(equal, byte), advance(words, i))
            result = builder.fadd(maximum, emitter.load(advance(bias.start, at), vector))
            emitter.store(result, advance(out, at))
            return []

        emitter.loop(count, [], pool_lanes)

    return pool
