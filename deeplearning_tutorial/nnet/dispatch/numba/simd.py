"""The two inner loops of convolution, as LLVM vector code with every sum held in registers.

Numba's own loops over arrays load and store each partial sum; written as vectors whose accumulators are SSA
values, the loops reach the speed of a matrix product. The vectors are as wide as the target's registers.
Lengths are counted in half vectors, so that a rest costs at most half a vector of wasted arithmetic.
"""

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import config
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
"""Half vectors that `gather_add` takes at most."""


def half_vector(dtype):
    """Elements in half a vector register."""
    return REGISTER_BYTES // dtype.itemsize // 2


def in_halves(length, half):
    """``length`` elements in half vectors, rounded up.

    Written without ``-``: this runs inside kernels too, where lengths are unsigned now and then.
    """
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

    def step(self, pointer, elements):
        return self.builder.gep(pointer, [elements])

    def vectors(self, halves):
        """Vector types that together hold ``halves`` half vectors, with their first elements."""
        full, rest = divmod(halves, 2)
        lanes = [2 * self.half] * full + [self.half] * rest
        return [(ir.VectorType(self.scalar, n), _INDEX(sum(lanes[:i]))) for i, n in enumerate(lanes)]

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

    def multiply_add(self, a, b, c):
        # ``contract`` lets targets with a fused multiply-add use it; the others need no library call.
        product = self.builder.fmul(a, b, flags=("contract",))
        return self.builder.fadd(product, c, flags=("contract",))

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

    def for_each_count(self, halves, maximum, emit):
        """Emit ``emit(n)`` for n = 1..maximum and choose among them by the run-time value ``halves``."""
        builder = self.builder
        after = builder.append_basic_block("chosen")
        choice = builder.switch(halves, after)
        for n in range(1, maximum + 1):
            block = builder.append_basic_block(f"halves{n}")
            choice.add_case(_INDEX(n), block)
            builder.position_at_end(block)
            emit(n)
            builder.branch(after)
        builder.position_at_end(after)


@intrinsic
def convolve_tile(
    typingctx, out, out_at, out_step, x, x_at, column, row, filters, filters_at, tap, n_rows, n_taps, halves
):
    """Correlate `TILE_COLUMNS` neighbouring positions of an image with a block of filters.

    For p in 0..TILE_COLUMNS - 1, all flat offsets counted in elements::

        out[out_at + p * out_step : ... + halves * half] =
            sum over r < n_rows, t < n_taps of x[x_at + p * column + r * row + t]
                * filters[filters_at + (r * n_taps + t) * tap : ... + halves * half]

    ``halves`` lies in 1..TILE_HALVES.
    """
    signature = types.void(out, types.intp, types.intp, x, *[types.intp] * 3, filters, *[types.intp] * 5)

    def codegen(context, builder, signature, arguments):
        (out_, out_at, out_step, x_, x_at, column, row, filters_, filters_at, tap, n_rows, n_taps, halves) = (
            arguments
        )
        emitter = _Emitter(context, builder, out.dtype)
        step = emitter.step
        outs = emitter.pointer(out, out_, out_at)
        images = [
            step(emitter.pointer(x, x_, x_at), builder.mul(column, _INDEX(p))) for p in range(TILE_COLUMNS)
        ]
        weights = emitter.pointer(filters, filters_, filters_at)

        def emit(n):
            vectors = emitter.vectors(n)

            def add_row(r, sums):
                image_rows = [step(image, builder.mul(r, row)) for image in images]
                row_weights = step(weights, builder.mul(builder.mul(r, n_taps), tap))

                def add_tap(t, sums):
                    tap_weights = step(row_weights, builder.mul(t, tap))
                    loaded = [emitter.load(step(tap_weights, first), vector) for vector, first in vectors]
                    results = iter(sums)
                    return [
                        emitter.multiply_add(emitter.spread(pixel, weight.type), weight, next(results))
                        for pixel in [builder.load(step(image_row, t)) for image_row in image_rows]
                        for weight in loaded
                    ]

                return emitter.accumulate(n_taps, sums, add_tap)

            zeros = [ir.Constant(vector, [0.0] * vector.count) for vector, _ in vectors] * TILE_COLUMNS
            sums = iter(emitter.accumulate(n_rows, zeros, add_row))
            for p in range(TILE_COLUMNS):
                column_out = step(outs, builder.mul(out_step, _INDEX(p)))
                for _, first in vectors:
                    emitter.store(next(sums), step(column_out, first))

        emitter.for_each_count(halves, TILE_HALVES, emit)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def gather_add(typingctx, out, out_at, rows, rows_at, offsets, factors, first, count, halves):
    """Add a weighted sum of scattered rows to a row.

    All flat offsets counted in elements::

        out[out_at : out_at + halves * half] += sum over first <= n < first + count of
            factors[n] * rows[rows_at + offsets[n] : ... + halves * half]

    ``halves`` lies in 1..GATHER_HALVES.
    """
    signature = types.void(out, types.intp, rows, types.intp, offsets, factors, *[types.intp] * 3)

    def codegen(context, builder, signature, arguments):
        out_, out_at, rows_, rows_at, offsets_, factors_, start, count, halves = arguments
        emitter = _Emitter(context, builder, out.dtype)
        step = emitter.step
        target = emitter.pointer(out, out_, out_at)
        source = emitter.pointer(rows, rows_, rows_at)
        offset = emitter.pointer(offsets, offsets_, start)
        factor = emitter.pointer(factors, factors_, start)

        def emit(n):
            vectors = emitter.vectors(n)

            def add_row(i, sums):
                row = step(source, builder.sext(builder.load(step(offset, i)), _INDEX))
                weight = builder.load(step(factor, i))
                return [
                    emitter.multiply_add(
                        emitter.spread(weight, vector), emitter.load(step(row, begin), vector), total
                    )
                    for (vector, begin), total in zip(vectors, sums, strict=True)
                ]

            sums = [emitter.load(step(target, begin), vector) for vector, begin in vectors]
            for (_, begin), total in zip(vectors, emitter.accumulate(count, sums, add_row), strict=True):
                emitter.store(total, step(target, begin))

        emitter.for_each_count(halves, GATHER_HALVES, emit)
        return context.get_dummy_value()

    return signature, codegen
