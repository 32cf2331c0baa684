"""The inner loops of convolution and pooling, as LLVM vector code with every sum held in registers.

Numba's own loops over arrays load and store each partial sum; written as vectors whose accumulators are SSA
values, the loops reach the speed of a matrix product. The vectors are as wide as the target's registers.
Lengths are counted in half vectors, so that a rest costs at most half a vector of wasted arithmetic.
"""

import math
from functools import cache, reduce

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

_INDEX = ir.IntType(64)


def _target_features():
    """Names of the instruction sets that Numba compiles for."""
    if config.CPU_FEATURES is not None:
        return {name[1:] for name in config.CPU_FEATURES.split(",") if name.startswith("+")}
    if config.CPU_NAME is not None:
        return set()
    return {name for name, present in llvmlite.binding.get_host_cpu_features().items() if present}


def _register_bytes(features):
    if "avx512f" in features:
        return 64
    return 32 if "avx" in features else 16


_FEATURES = _target_features()
REGISTER_BYTES = _register_bytes(_FEATURES)
# x86 before AVX-512 has 16 vector registers, AVX-512 and NEON have 32.
_MANY_REGISTERS = bool(_FEATURES & {"avx512f", "neon"})

TILE_COLUMNS = 4
"""Output columns that `convolve_tile` computes at once."""

TILE_HALVES = 8 if _MANY_REGISTERS else 6
"""Half vectors of filters that `convolve_tile` takes at most."""

GATHER_HALVES = 16
"""Half vectors of a row that `gather_add` takes at most."""

# What begins anywhere is loaded in short vectors: nearly all of 64 bytes would cross a line of the cache.
_SHORT_BYTES = 32

# Sums that `gather_add` holds, where there are several rows: with their factor they fit in 16 registers.
_GATHER_SUMS = 8

INNER_ROWS = 2
"""Rows that `inner_tile` multiplies at once."""

INNER_COLUMNS = 12 if _MANY_REGISTERS else 6
"""Columns that `inner_tile` multiplies at most."""

# So far ahead `inner_tile` asks for rows, which it reads once: a minibatch comes from main memory.
_PREFETCH_BYTES = 24 << 10

SHIFTS = 4
"""Shifted arrays that `add_inner_rows` takes at most."""

BLOCK_SIDE = 4
"""Rows and columns that `transpose_block` takes."""

MASK_LANES = 8
"""Filters that `max_window` takes at once: a byte of the mask."""


def in_halves(length, half):
    """``length`` elements in half vectors of ``half`` elements, rounded up."""
    return (length + half - 1) // half


class _Emitter:
    """Emits LLVM instructions for one data type at one place of a function."""

    def __init__(self, context, builder, dtype):
        self.context = context
        self.builder = builder
        self.scalar = context.get_value_type(dtype)
        self.itemsize = dtype.bitwidth // 8
        self.half = REGISTER_BYTES // self.itemsize // 2

    def pointer(self, array_type, array, offset):
        data = self.context.make_array(array_type)(self.context, self.builder, array).data
        return self.step(data, offset)

    def index(self, pointer):
        """Load an int32, to index with."""
        return self.builder.sext(self.builder.load(pointer), _INDEX)

    def length(self, array_type, array):
        shape = self.context.make_array(array_type)(self.context, self.builder, array).shape
        return self.builder.extract_value(shape, 0)

    def step(self, pointer, elements):
        return self.builder.gep(pointer, [elements])

    def vectors(self, halves):
        """Vector types that together hold ``halves`` half vectors, with their first elements."""
        full, rest = divmod(halves, 2)
        lanes = [2 * self.half] * full + [self.half] * rest
        return [(ir.VectorType(self.scalar, n), _INDEX(sum(lanes[:i]))) for i, n in enumerate(lanes)]

    def short_vectors(self, halves):
        """Return the same, none longer than `_SHORT_BYTES`."""
        if REGISTER_BYTES <= _SHORT_BYTES:
            return self.vectors(halves)
        return [(ir.VectorType(self.scalar, self.half), _INDEX(i * self.half)) for i in range(halves)]

    def load(self, pointer, vector):
        typed = self.builder.bitcast(pointer, vector.as_pointer())
        return self.builder.load(typed, align=self.itemsize)

    def store(self, value, pointer):
        typed = self.builder.bitcast(pointer, value.type.as_pointer())
        self.builder.store(value, typed, align=self.itemsize)

    def spread(self, scalar, vector):
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def prefetch(self, pointer):
        """Ask for a line of the cache that will be read; whether it is there does not matter."""
        typed = self.builder.bitcast(pointer, ir.IntType(8).as_pointer())
        integer = ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [typed.type, integer, integer, integer])
        prefetch = cgutils.get_or_insert_function(self.builder.module, signature, "llvm.prefetch.p0")
        self.builder.call(prefetch, [typed, integer(0), integer(3), integer(1)])

    def first_lanes(self, vector, count):
        """Return a mask of the first ``count`` elements."""
        lanes = ir.Constant(ir.VectorType(_INDEX, vector.count), list(range(vector.count)))
        return self.builder.icmp_signed("<", lanes, self.spread(count, lanes.type))

    def load_first(self, pointer, vector, count):
        """Load the first ``count`` elements of a vector, with zeros for the others."""
        mask = self.first_lanes(vector, count)
        typed = self.builder.bitcast(pointer, vector.as_pointer())
        name = f"llvm.masked.load.v{vector.count}f{8 * self.itemsize}.p0"
        signature = ir.FunctionType(vector, [typed.type, ir.IntType(32), mask.type, vector])
        load = cgutils.get_or_insert_function(self.builder.module, signature, name)
        zeros = ir.Constant(vector, None)
        return self.builder.call(load, [typed, ir.IntType(32)(self.itemsize), mask, zeros])

    def store_first(self, value, pointer, count):
        """Store the first ``count`` elements of a vector."""
        vector = value.type
        mask = self.first_lanes(vector, count)
        typed = self.builder.bitcast(pointer, vector.as_pointer())
        name = f"llvm.masked.store.v{vector.count}f{8 * self.itemsize}.p0"
        signature = ir.FunctionType(ir.VoidType(), [vector, typed.type, ir.IntType(32), mask.type])
        store = cgutils.get_or_insert_function(self.builder.module, signature, name)
        self.builder.call(store, [value, typed, ir.IntType(32)(self.itemsize), mask])

    def for_each_vector(self, count, target, compute):
        """Set ``count`` elements of ``target``, a vector at a time, to ``compute(load)``.

        There ``load(pointer, stride=1)`` gives the elements that lie as far from ``pointer`` as those from
        ``target``, or, for a stride of 2, twice as far.
        """
        builder = self.builder
        [(vector, _)] = self.vectors(2)
        n_lanes = vector.count
        whole = builder.udiv(count, _INDEX(n_lanes))
        done = builder.mul(whole, _INDEX(n_lanes))
        rest = builder.sub(count, done)

        def compute_from(at, read):
            def load(pointer, stride=1):
                pointer = self.step(pointer, builder.mul(at, _INDEX(stride)))
                if stride == 1:
                    return read(pointer, stride, 0)
                # The last element read is the last one taken: nothing past the array.
                even, odd = read(pointer, stride, 0), read(pointer, stride, n_lanes - 1)
                return self.shuffle(even, odd, [*range(0, n_lanes, 2), *range(n_lanes + 1, 2 * n_lanes, 2)])

            return compute(load)

        def read_whole(pointer, stride, skipped):
            return self.load(self.step(pointer, _INDEX(skipped)), vector)

        def read_rest(pointer, stride, skipped):
            span = builder.sub(builder.mul(rest, _INDEX(stride)), _INDEX(stride - 1 + skipped))
            return self.load_first(self.step(pointer, _INDEX(skipped)), vector, span)

        def one_vector(i, _sums):
            at = builder.mul(i, _INDEX(n_lanes))
            self.store(compute_from(at, read_whole), self.step(target, at))
            return []

        self.accumulate(whole, [], one_vector)
        with builder.if_then(builder.icmp_signed("!=", rest, _INDEX(0))):
            self.store_first(compute_from(done, read_rest), self.step(target, done), rest)

    def sum(self, a, b):
        return self.builder.fadd(a, b)

    def larger(self, a, b):
        """Return the larger one, or a NaN where one is, as NumPy."""
        wins = self.builder.fcmp_ordered(">", b, a)
        nan = self.builder.fcmp_unordered("uno", b, b)
        return self.builder.select(self.builder.or_(wins, nan), b, a)

    def shuffle(self, a, b, lanes):
        """Take elements of two vectors: those of ``b`` are counted on from those of ``a``."""
        lanes = list(lanes)
        taken = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return self.builder.shuffle_vector(a, b, taken)

    def split(self, vector):
        """Return the two halves of a vector."""
        half = vector.type.count // 2
        return [self.shuffle(vector, vector, lanes) for lanes in (range(half), range(half, 2 * half))]

    def join(self, a, b):
        """Return the vector whose halves are ``a`` and ``b``."""
        return self.shuffle(a, b, range(2 * a.type.count))

    def halves_of(self, a, b):
        """Return the first half of ``a`` and the last of ``b``, where they are."""
        half = a.type.count // 2
        return self.shuffle(a, b, [*range(half), *range(3 * half, 4 * half)])

    def total(self, vector):
        """Add the elements of a vector, the halves first."""
        while vector.type.count > 1:
            vector = self.builder.fadd(*self.split(vector))
        return self.builder.extract_element(vector, ir.IntType(32)(0))

    def multiply_add(self, a, b, c):
        # ``contract`` lets targets with a fused multiply-add use it; the others need no library call.
        product = self.builder.fmul(a, b, flags=("contract",))
        return self.builder.fadd(product, c, flags=("contract",))

    def constant(self, value, vector):
        element = vector.element
        return ir.Constant(vector, [element(value)] * vector.count)

    def _exponential(self, y):
        """Return p and q such that exp(y) = p + p * q, p is a power of two and q small.

        exp(y) = 2**n * exp(y - n log 2), and the Taylor series of exp(r) - 1 for |r| <= log(2) / 2 keeps the
        relative precision near zero. ``y`` must not go beyond the exponents of normal numbers.
        """
        builder, vector = self.builder, y.type
        double = self.itemsize == 8
        mantissa, bias, terms = (52, 1023, 13) if double else (23, 127, 8)
        integers = ir.VectorType(ir.IntType(8 * self.itemsize), vector.count)

        def constant(value):
            return self.constant(value, vector)

        # Adding this constant rounds to an integer, which is then found in the lowest bits.
        rounder = constant(1.5 * 2.0**mantissa)
        shifted = builder.fadd(builder.fmul(y, constant(1 / math.log(2))), rounder)
        n = builder.fsub(shifted, rounder)
        exponent = builder.shl(builder.bitcast(shifted, integers), self.constant(mantissa, integers))
        power = builder.add(exponent, self.constant(bias << mantissa, integers))
        power = builder.bitcast(power, vector)
        # log 2 in two parts, the first with so few digits that n times it is exact.
        digits = 2.0**32 if double else 2.0**9
        high = round(math.log(2) * digits) / digits
        r = builder.fsub(y, builder.fmul(n, constant(high)))
        r = builder.fsub(r, builder.fmul(n, constant(math.log(2) - high)))
        series = constant(1 / math.factorial(terms))
        for k in range(terms - 1, 0, -1):
            series = self.multiply_add(series, r, constant(1 / math.factorial(k)))
        return power, builder.fmul(series, r)

    def exp_of_negative(self, y):
        """Exponential of ``y <= 0`` to a few units in the last place; zero if no normal number is left."""
        builder = self.builder
        limit = self.constant(-708.0 if self.itemsize == 8 else -87.0, y.type)
        # A NaN compares false and stays.
        tiny = builder.fcmp_ordered("<", y, limit)
        power, rest = self._exponential(builder.select(tiny, limit, y))
        return builder.select(tiny, self.constant(0.0, y.type), self.multiply_add(power, rest, power))

    def tanh(self, x):
        """Hyperbolic tangent to a few units in the last place, over the whole range.

        tanh(x) = e / (e + 2) with e = exp(2 |x|) - 1.
        """
        builder, vector = self.builder, x.type
        integers = ir.VectorType(ir.IntType(8 * self.itemsize), vector.count)
        sign_bit = self.constant(-(1 << (8 * self.itemsize - 1)), integers)
        sign = builder.and_(builder.bitcast(x, integers), sign_bit)
        magnitude = builder.bitcast(builder.xor(builder.bitcast(x, integers), sign), vector)
        y = builder.fadd(magnitude, magnitude)
        # Beyond the limit tanh is 1 in this precision; a NaN compares false and stays.
        limit = self.constant(44.0 if self.itemsize == 8 else 20.0, vector)
        y = builder.select(builder.fcmp_ordered(">", y, limit), limit, y)
        power, rest = self._exponential(y)
        e = self.multiply_add(power, rest, builder.fsub(power, self.constant(1.0, vector)))
        result = builder.fdiv(e, builder.fadd(e, self.constant(2.0, vector)))
        return builder.bitcast(builder.or_(builder.bitcast(result, integers), sign), vector)

    def accumulate(self, count, sums, body):
        """``for i in range(count): sums = body(i, sums)`` with the sums in registers; returns them."""
        builder = self.builder
        before = builder.block
        loop = builder.append_basic_block("accumulate")
        after = builder.append_basic_block("accumulated")
        builder.cbranch(builder.icmp_signed(">", count, _INDEX(0)), loop, after)

        builder.position_at_end(loop)
        i = builder.phi(_INDEX)
        inside = [builder.phi(value.type) for value in sums]
        results = body(i, inside)
        end = builder.block
        following = builder.add(i, _INDEX(1))
        for phi, first, later in zip([i, *inside], [_INDEX(0), *sums], [following, *results], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, end)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)

        builder.position_at_end(after)
        final = [builder.phi(value.type) for value in sums]
        for phi, first, later in zip(final, sums, results, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, end)
        return final

    def choose(self, value, cases, emit):
        """Emit ``emit(*case)`` for each case; run the one whose key equals ``value``, or none."""
        builder = self.builder
        after = builder.append_basic_block("chosen")
        choice = builder.switch(value, after)
        for key, case in cases.items():
            block = builder.append_basic_block(f"case{key}")
            choice.add_case(_INDEX(key), block)
            builder.position_at_end(block)
            emit(*case)
            builder.branch(after)
        builder.position_at_end(after)


@intrinsic
def convolve_tile(
    typingctx, out, out_at, out_step, x, x_at, column, filters, filters_at, tap, offsets, halves
):
    """Correlate `TILE_COLUMNS` neighbouring positions of an image with a block of filters.

    For p in 0..TILE_COLUMNS - 1, all flat offsets counted in elements::

        out[out_at + p * out_step : ... + halves * half] = sum over t < len(offsets) of
            x[x_at + p * column + offsets[t]] * filters[filters_at + t * tap : ... + halves * half]

    ``halves`` lies in 1..TILE_HALVES.
    """
    signature = types.void(
        out, types.intp, types.intp, x, types.intp, types.intp, filters, types.intp, types.intp, offsets,
        types.intp,
    )  # fmt: skip

    def codegen(context, builder, signature, arguments):
        out_, out_at, out_step, x_, x_at, column, filters_, filters_at, tap, offsets_, halves = arguments
        emitter = _Emitter(context, builder, out.dtype)
        step = emitter.step
        outs = emitter.pointer(out, out_, out_at)
        images = [
            step(emitter.pointer(x, x_, x_at), builder.mul(column, _INDEX(p))) for p in range(TILE_COLUMNS)
        ]
        weights = emitter.pointer(filters, filters_, filters_at)
        offset = emitter.pointer(offsets, offsets_, _INDEX(0))

        def emit(n):
            odd, pairs = n % 2, range(0, TILE_COLUMNS, 2)
            vectors = emitter.vectors(n - odd)
            # Filters that fill half a vector share it: the halves belong to neighbouring positions.
            [(whole, _)], [(part, _)] = emitter.vectors(2), emitter.vectors(1)
            odd_first = _INDEX((n - odd) * emitter.half)

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

            zeros = [ir.Constant(whole, None)] * (TILE_COLUMNS * len(vectors) + odd * len(pairs))
            n_taps = emitter.length(offsets, offsets_)
            sums = iter(emitter.accumulate(n_taps, zeros, add_tap))
            columns = [step(outs, builder.mul(out_step, _INDEX(p))) for p in range(TILE_COLUMNS)]
            for column_out in columns:
                for _, first in vectors:
                    emitter.store(next(sums), step(column_out, first))
            for p in pairs if odd else ():
                for part, column_out in zip(emitter.split(next(sums)), columns[p : p + 2], strict=True):
                    emitter.store(part, step(column_out, odd_first))

        emitter.choose(halves, {n: (n,) for n in range(1, TILE_HALVES + 1)}, emit)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def inner_tile(typingctx, out, out_at, out_step, a, a_at, a_step, b, b_at, b_step, length, columns):
    """Multiply INNER_ROWS rows by some columns, both with their elements side by side.

    For r in 0..INNER_ROWS - 1 and c in 0..columns - 1, all flat offsets counted in elements::

        out[out_at + r * out_step + c] = sum over t < length of
            a[a_at + r * a_step + t] * b[b_at + c * b_step + t]

    ``columns`` lies in 1..INNER_COLUMNS.
    """
    signature = types.void(
        out, types.intp, types.intp, a, types.intp, types.intp, b, types.intp, types.intp, types.intp,
        types.intp,
    )  # fmt: skip

    def codegen(context, builder, signature, arguments):
        out_, out_at, out_step, a_, a_at, a_step, b_, b_at, b_step, length, columns = arguments
        emitter = _Emitter(context, builder, out.dtype)
        step = emitter.step
        [(vector, _)] = emitter.vectors(2)
        n_vectors = builder.udiv(length, _INDEX(vector.count))
        whole = builder.mul(n_vectors, _INDEX(vector.count))
        rest = builder.sub(length, whole)
        target = emitter.pointer(out, out_, out_at)
        left = [step(emitter.pointer(a, a_, a_at), builder.mul(a_step, _INDEX(r))) for r in range(INNER_ROWS)]

        def emit(n):
            right = [step(emitter.pointer(b, b_, b_at), builder.mul(b_step, _INDEX(c))) for c in range(n)]

            def add_products(sums, load):
                rows, results = [load(place) for place in left], iter(sums)
                columns = [load(place) for place in right]
                return [emitter.multiply_add(x, y, next(results)) for x in rows for y in columns]

            def add_vectors(i, sums):
                at = builder.mul(i, _INDEX(vector.count))
                ahead = builder.add(at, _INDEX(_PREFETCH_BYTES // emitter.itemsize))
                for place in left:
                    emitter.prefetch(step(place, ahead))
                return add_products(sums, lambda place: emitter.load(step(place, at), vector))

            zeros = [ir.Constant(vector, None)] * (INNER_ROWS * n)
            sums = emitter.accumulate(n_vectors, zeros, add_vectors)
            sums = add_products(sums, lambda place: emitter.load_first(step(place, whole), vector, rest))
            for i, total in enumerate(map(emitter.total, sums)):
                row, column = divmod(i, n)
                row_out = step(target, builder.mul(out_step, _INDEX(row)))
                builder.store(total, step(row_out, _INDEX(column)))

        emitter.choose(columns, {n: (n,) for n in range(1, INNER_COLUMNS + 1)}, emit)
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
        emitter = _Emitter(context, builder, out.dtype)
        step = emitter.step
        [(vector, _)] = emitter.vectors(2)
        whole = builder.udiv(length, _INDEX(vector.count))
        done = builder.mul(whole, _INDEX(vector.count))
        rest = builder.sub(length, done)
        target = emitter.pointer(out, out_, out_at)
        left, right = emitter.pointer(a, a_, a_at), emitter.pointer(b, b_, b_at)
        offset = emitter.pointer(offsets, offsets_, first)

        def emit(n):
            shifts = [emitter.index(step(offset, _INDEX(c))) for c in range(n)]

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
                    at = builder.mul(i, _INDEX(vector.count))
                    return add_products(sums, at, lambda place: emitter.load(place, vector))

                sums = emitter.accumulate(whole, sums, add_vectors)
                return add_products(sums, done, lambda place: emitter.load_first(place, vector, rest))

            sums = emitter.accumulate(rows, [ir.Constant(vector, None)] * n, add_row)
            for c, total in enumerate(map(emitter.total, sums)):
                place = step(target, _INDEX(c))
                builder.store(builder.fadd(builder.load(place), total), place)

        emitter.choose(columns, {n: (n,) for n in range(1, SHIFTS + 1)}, emit)
        return context.get_dummy_value()

    return signature, codegen


def gather_rows(halves):
    """Rows of ``halves`` half vectors that `gather_add` takes at most at once."""
    vectors = halves if REGISTER_BYTES > _SHORT_BYTES else (halves + 1) // 2
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
        emitter = _Emitter(context, builder, out.dtype)
        step = emitter.step
        target = emitter.pointer(out, out_, out_at)
        origin = emitter.pointer(source, source_, source_at)
        row_offset = emitter.pointer(rows, rows_, row)
        offset = emitter.pointer(offsets, offsets_, start)
        factor = emitter.pointer(factors, factors_, start)

        def emit(n_rows, n):
            targets, origins, vectors = [], [], []
            for r in range(n_rows):
                row_target = step(target, builder.mul(out_row, _INDEX(r)))
                row_origin = step(origin, emitter.index(step(row_offset, _INDEX(r))))
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
        key = builder.add(builder.mul(n_rows, _INDEX(GATHER_HALVES + 1)), halves)
        emitter.choose(key, cases, emit)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def trailing_zeros(typingctx, bits):
    """Position of the lowest bit of a uint64 that is set; at least one must be.

    Unsigned, for Numba checks whether an index is negative.
    """

    def codegen(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.uint64(types.uint64), codegen


@intrinsic
def copy_elements(typingctx, out, out_at, x, x_at, count):
    """Copy ``x[x_at : x_at + count]`` to ``out[out_at : out_at + count]``, both flat and of one data type.

    Numba compiles much more into the assignment of a slice, and a loop checks each index for its sign.
    """
    signature = types.void(out, types.intp, x, types.intp, types.intp)

    def codegen(context, builder, signature, arguments):
        out_, out_at, x_, x_at, count = arguments
        emitter = _Emitter(context, builder, out.dtype)
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
        emitter = _Emitter(context, builder, out.dtype)
        vector = ir.VectorType(emitter.scalar, BLOCK_SIDE)
        target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)

        places = [emitter.step(source, builder.mul(x_step, _INDEX(r))) for r in range(BLOCK_SIDE)]
        a, b, c, d = (emitter.load(place, vector) for place in places)
        columns = []
        for pairs in ([0, 4, 1, 5], [2, 6, 3, 7]):
            upper, lower = emitter.shuffle(a, b, pairs), emitter.shuffle(c, d, pairs)
            columns += [emitter.shuffle(upper, lower, lanes) for lanes in ([0, 1, 4, 5], [2, 3, 6, 7])]
        for i, column in enumerate(columns):
            emitter.store(column, emitter.step(target, builder.mul(out_step, _INDEX(i))))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def descend(typingctx, out, out_at, weights, weights_at, gradient, gradient_at, rate, decay, halves):
    """Take a step of gradient descent.

    For i in 0..halves * half - 1, all flat offsets counted in elements::

        w = weights[weights_at + i]
        out[out_at + i] = w - rate * (gradient[gradient_at + i] + decay * w)
    """
    signature = types.void(
        out, types.intp, weights, types.intp, gradient, types.intp, out.dtype, out.dtype, types.intp
    )

    def codegen(context, builder, signature, arguments):
        out_, out_at, weights_, weights_at, gradient_, gradient_at, rate, decay, halves = arguments
        emitter = _Emitter(context, builder, out.dtype)
        [(vector, _)] = emitter.vectors(1)
        target = emitter.pointer(out, out_, out_at)
        old = emitter.pointer(weights, weights_, weights_at)
        slope = emitter.pointer(gradient, gradient_, gradient_at)
        rates = emitter.spread(builder.fneg(rate), vector)
        decays = emitter.spread(decay, vector)

        def one_half(i, _sums):
            at = builder.mul(i, _INDEX(emitter.half))
            weight = emitter.load(emitter.step(old, at), vector)
            step = emitter.multiply_add(decays, weight, emitter.load(emitter.step(slope, at), vector))
            emitter.store(emitter.multiply_add(rates, step, weight), emitter.step(target, at))
            return []

        emitter.accumulate(halves, [], one_half)
        return context.get_dummy_value()

    return signature, codegen


def _elementwise(function, folds=False):
    """Make an intrinsic of ``function(emitter, x)``, or where it ``folds``, ``function(emitter, out, x)``."""

    @intrinsic
    def vectors(typingctx, out, out_at, x, x_at, count):
        """Compute ``out[out_at + i] = function([out[out_at + i],] x[x_at + i])`` for i in 0..count - 1."""
        signature = types.void(out, types.intp, x, types.intp, types.intp)

        def codegen(context, builder, signature, arguments):
            out_, out_at, x_, x_at, count = arguments
            emitter = _Emitter(context, builder, out.dtype)
            target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)
            sources = [target, source] if folds else [source]
            emitter.for_each_vector(count, target, lambda load: function(emitter, *map(load, sources)))
            return context.get_dummy_value()

        return signature, codegen

    return vectors


# Numba's own loops take several vectors at once, and what is left, a whole row of a small map, element by
# element.
vector_copy = _elementwise(lambda emitter, x: x)
vector_tanh = _elementwise(_Emitter.tanh)
vector_exp_of_negative = _elementwise(_Emitter.exp_of_negative)
vector_add = _elementwise(_Emitter.sum, folds=True)
vector_divide = _elementwise(lambda emitter, a, b: emitter.builder.fdiv(a, b), folds=True)


def _pooling(function, nothing):
    """Make an intrinsic that combines windows by ``function(emitter, a, b)``; ``nothing`` changes nothing."""

    @intrinsic
    def pool(typingctx, out, out_at, x, x_at, row_step, rows, cols, stride, count):
        """Combine the elements of ``count`` neighbouring windows of ``rows`` rows and ``cols`` columns.

        ``out[out_at + i]`` combines ``x[x_at + i * stride + r * row_step + c]`` for r in 0..rows - 1 and c in
        0..cols - 1. ``stride`` is 1 or 2.
        """
        signature = types.void(out, types.intp, x, *[types.intp] * 6)

        def codegen(context, builder, signature, arguments):
            out_, out_at, x_, x_at, row_step, rows, cols, window_stride, count = arguments
            emitter = _Emitter(context, builder, out.dtype)
            target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)
            [(vector, _)] = emitter.vectors(2)

            def emit(stride):
                def compute(load):
                    def combine_row(r, totals):
                        row = emitter.step(source, builder.mul(r, row_step))

                        def combine(c, totals):
                            return [function(emitter, totals[0], load(emitter.step(row, c), stride))]

                        return emitter.accumulate(cols, totals, combine)

                    return emitter.accumulate(rows, [emitter.constant(nothing, vector)], combine_row)[0]

                emitter.for_each_vector(count, target, compute)

            emitter.choose(window_stride, {1: (1,), 2: (2,)}, emit)
            return context.get_dummy_value()

        return signature, codegen

    return pool


pool_maximum, pool_sum = _pooling(_Emitter.larger, -math.inf), _pooling(_Emitter.sum, 0.0)


@intrinsic
def spread_apart(typingctx, out, out_at, x, x_at, count):
    """Set ``out[out_at + 2 * i]`` to ``x[x_at + i]`` and the element after it to zero, i in 0..count - 1."""
    signature = types.void(out, types.intp, x, types.intp, types.intp)

    def codegen(context, builder, signature, arguments):
        out_, out_at, x_, x_at, count = arguments
        emitter = _Emitter(context, builder, out.dtype)
        target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)

        [(half, _)] = emitter.vectors(1)
        lanes = _INDEX(half.count)

        def spread(value):
            zeros = ir.Constant(half, None)
            pairs = zip(range(half.count), range(half.count, 2 * half.count), strict=True)
            return emitter.shuffle(value, zeros, sum(pairs, ()))

        def one_half(i, _sums):
            at = builder.mul(i, lanes)
            value = emitter.load(emitter.step(source, at), half)
            emitter.store(spread(value), emitter.step(target, builder.mul(at, _INDEX(2))))
            return []

        whole = builder.udiv(count, lanes)
        emitter.accumulate(whole, [], one_half)
        done = builder.mul(whole, lanes)
        rest = builder.sub(count, done)
        value = emitter.load_first(emitter.step(source, done), half, rest)
        place = emitter.step(target, builder.mul(done, _INDEX(2)))
        emitter.store_first(spread(value), place, builder.mul(rest, _INDEX(2)))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def weighted_sum(typingctx, out, out_at, x, x_at, offsets, factors, count):
    """Set ``out[out_at + i]``, i in 0..count - 1, to the sum of ``factors[t] * x[x_at + offsets[t] + i]``."""
    signature = types.void(out, types.intp, x, types.intp, offsets, factors, types.intp)

    def codegen(context, builder, signature, arguments):
        out_, out_at, x_, x_at, offsets_, factors_, count = arguments
        emitter = _Emitter(context, builder, out.dtype)
        target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)
        offset = emitter.pointer(offsets, offsets_, _INDEX(0))
        factor = emitter.pointer(factors, factors_, _INDEX(0))
        [(vector, _)] = emitter.vectors(2)

        def compute(load):
            def add(t, totals):
                shifted = load(emitter.step(source, emitter.index(emitter.step(offset, t))))
                weight = emitter.spread(builder.load(emitter.step(factor, t)), vector)
                return [emitter.multiply_add(weight, shifted, totals[0])]

            n_terms = emitter.length(offsets, offsets_)
            return emitter.accumulate(n_terms, [ir.Constant(vector, None)], add)[0]

        emitter.for_each_vector(count, target, compute)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_where_equal(typingctx, out, out_at, a, a_at, b, b_at, c, c_at, times, count):
    """Add elements of ``c`` where those of ``b`` equal that of ``a``.

    To ``out[out_at + i]``, i in 0..count - 1, is added ``c[c_at + r + i]`` for each r in 0..times - 1 with
    ``a[a_at + i] == b[b_at + r + i]``.
    """
    signature = types.void(out, types.intp, a, types.intp, b, types.intp, c, *[types.intp] * 3)

    def codegen(context, builder, signature, arguments):
        *arrays, times, count = arguments
        emitter = _Emitter(context, builder, out.dtype)
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

            return emitter.accumulate(times, [load(target)], add)[0]

        emitter.for_each_vector(count, target, compute)
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
            emitter = _Emitter(context, builder, out.dtype)
            step = emitter.step
            vector, byte = ir.VectorType(emitter.scalar, MASK_LANES), ir.IntType(8)
            maxima = emitter.pointer(out, out_, out_at)
            biases = emitter.pointer(bias, bias_, _INDEX(0))
            first = emitter.pointer(lines, lines_, lines_at)
            places, masks = [], []
            for p, (row, col) in enumerate(positions):
                line = step(first, builder.mul(row_step, _INDEX(row)))
                places.append(step(line, builder.mul(col_step, _INDEX(col))))
                words = emitter.pointer(mask, mask_, builder.add(mask_at, builder.mul(mask_step, _INDEX(p))))
                masks.append(builder.bitcast(words, byte.as_pointer()))

            def pool_lanes(i, _sums):
                at = builder.mul(i, _INDEX(MASK_LANES))
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
