"""The target's vector registers, and how LLVM code for them is emitted."""

import math

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, codegen, config

INDEX = ir.IntType(64)
"""The type of array offsets."""


def target_features():
    """Return the names of the instruction sets that Numba compiles for."""
    configured = config.CPU_FEATURES
    features = codegen.get_host_cpu_features() if configured is None else configured
    names = {name[1:] for name in features.split(",") if name.startswith("+")}
    # Every 64-bit ARM has it, listed or not.
    arm = llvmlite.binding.get_process_triple().startswith(("aarch64", "arm64"))
    return names | {"neon"} if arm else names


def register_bytes(features):
    """Return the width of a vector register."""
    if "avx512f" in features:
        return 64
    return 32 if "avx" in features else 16


def has_many_registers(features):
    """Tell whether there are 32 vector registers, as with AVX-512 and NEON; x86 without AVX-512 has 16."""
    return bool(features & {"avx512f", "neon"})


REGISTER_BYTES = register_bytes(target_features())
MANY_REGISTERS = has_many_registers(target_features())

# Unaligned rows are loaded in short vectors: nearly all loads of 64 bytes would cross a line of the cache.
SHORT_BYTES = 32


class Emitter:
    """Emits LLVM instructions for one data type at one place of a function."""

    def __init__(self, context, builder, dtype):
        self.context = context
        self.builder = builder
        self.scalar = context.get_value_type(dtype)
        self.itemsize = dtype.bitwidth // 8
        self.half = REGISTER_BYTES // self.itemsize // 2
        self.vector = ir.VectorType(self.scalar, 2 * self.half)
        self.half_vector = ir.VectorType(self.scalar, self.half)

    def load_index(self, pointer):
        """Load an int32 or int64 as an index."""
        return self.builder.sext(self.builder.load(pointer), INDEX)

    def trailing_zeros(self, bits):
        """Return the position of the lowest bit that is set; at least one must be."""
        return self.builder.cttz(bits, ir.IntType(1)(1))

    def advance(self, pointer, elements):
        """Return the pointer so many elements further on."""
        return self.builder.gep(pointer, [elements])

    def times(self, a, b):
        """Multiply LLVM integers; ``b`` may also be an int."""
        return self.builder.mul(a, INDEX(b) if isinstance(b, int) else b)

    def vectors(self, halves):
        """Return vector types that together hold ``halves`` half vectors, with their first elements."""
        full, odd = divmod(halves, 2)
        lanes = [2 * self.half] * full + [self.half] * odd
        return [(ir.VectorType(self.scalar, n), INDEX(sum(lanes[:i]))) for i, n in enumerate(lanes)]

    def short_vectors(self, halves):
        """Return the same, none longer than `SHORT_BYTES`."""
        if REGISTER_BYTES <= SHORT_BYTES:
            return self.vectors(halves)
        return [(ir.VectorType(self.scalar, self.half), INDEX(i * self.half)) for i in range(halves)]

    def load(self, pointer, vector):
        typed = self.builder.bitcast(pointer, vector.as_pointer())
        return self.builder.load(typed, align=self.itemsize)

    def store(self, value, pointer):
        typed = self.builder.bitcast(pointer, value.type.as_pointer())
        self.builder.store(value, typed, align=self.itemsize)

    def broadcast(self, scalar, vector):
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def prefetch(self, pointer):
        """Prefetch a line of the cache; its address need not be valid."""
        typed = self.builder.bitcast(pointer, ir.IntType(8).as_pointer())
        integer = ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [typed.type, integer, integer, integer])
        prefetch = cgutils.get_or_insert_function(self.builder.module, signature, "llvm.prefetch.p0")
        self.builder.call(prefetch, [typed, integer(0), integer(3), integer(1)])

    def first_lanes_mask(self, vector, count):
        """Return a mask of the first ``count`` elements."""
        lanes = ir.Constant(ir.VectorType(INDEX, vector.count), list(range(vector.count)))
        return self.builder.icmp_signed("<", lanes, self.broadcast(count, lanes.type))

    def load_masked(self, pointer, vector, count):
        """Load the first ``count`` elements of a vector, with zeros for the others."""
        mask = self.first_lanes_mask(vector, count)
        typed = self.builder.bitcast(pointer, vector.as_pointer())
        name = f"llvm.masked.load.v{vector.count}f{8 * self.itemsize}.p0"
        signature = ir.FunctionType(vector, [typed.type, ir.IntType(32), mask.type, vector])
        load = cgutils.get_or_insert_function(self.builder.module, signature, name)
        zeros = ir.Constant(vector, None)
        return self.builder.call(load, [typed, ir.IntType(32)(self.itemsize), mask, zeros])

    def store_masked(self, value, pointer, count):
        """Store the first ``count`` elements of a vector."""
        vector = value.type
        mask = self.first_lanes_mask(vector, count)
        typed = self.builder.bitcast(pointer, vector.as_pointer())
        name = f"llvm.masked.store.v{vector.count}f{8 * self.itemsize}.p0"
        signature = ir.FunctionType(ir.VoidType(), [vector, typed.type, ir.IntType(32), mask.type])
        store = cgutils.get_or_insert_function(self.builder.module, signature, name)
        self.builder.call(store, [value, typed, ir.IntType(32)(self.itemsize), mask])

    def divided(self, count, vector):
        """Return how many vectors ``count`` elements fill, the elements in these, and how many remain."""
        whole = self.builder.udiv(count, INDEX(vector.count))
        done = self.builder.mul(whole, INDEX(vector.count))
        return whole, done, self.builder.sub(count, done)

    def if_any(self, count):
        """Return a context for code that runs unless ``count`` is 0."""
        return self.builder.if_then(self.builder.icmp_signed("!=", count, INDEX(0)))

    def for_each_vector(self, count, targets, compute):
        """Set ``count`` elements of each target, a vector at a time, to the vectors of ``compute(load)``.

        ``load(pointer)`` loads the elements as far from ``pointer`` as those that are set from the target.
        """
        builder, vector = self.builder, self.vector
        whole, done, remainder = self.divided(count, vector)

        def one_vector(i, _values):
            at = builder.mul(i, INDEX(vector.count))
            values = compute(lambda pointer: self.load(self.advance(pointer, at), vector))
            for target, value in zip(targets, values, strict=True):
                self.store(value, self.advance(target, at))
            return []

        self.loop(whole, [], one_vector)
        with self.if_any(remainder):
            values = compute(lambda pointer: self.load_masked(self.advance(pointer, done), vector, remainder))
            for target, value in zip(targets, values, strict=True):
                self.store_masked(value, self.advance(target, done), remainder)

    def add(self, a, b):
        return self.builder.fadd(a, b)

    def bitwise_or(self, a, b):
        """Combine the bits of two vectors: the result is zero, of either sign, only where both are."""
        integers = ir.VectorType(ir.IntType(8 * self.itemsize), a.type.count)
        bits = self.builder.or_(self.builder.bitcast(a, integers), self.builder.bitcast(b, integers))
        return self.builder.bitcast(bits, a.type)

    def maximum(self, a, b):
        """Return the larger of two vectors' elements, or NaN where either is NaN, as NumPy does."""
        # The inner selection is one instruction on x86.
        larger = self.builder.select(self.builder.fcmp_ordered(">", b, a), b, a)
        return self.builder.select(self.builder.fcmp_unordered("uno", b, b), b, larger)

    def shuffle(self, a, b, lanes):
        """Select elements of two vectors by number; the numbers of ``b`` follow those of ``a``."""
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

    def blend_halves(self, a, b):
        """Return the first half of ``a`` and the last half of ``b``, each in its place."""
        half = a.type.count // 2
        return self.shuffle(a, b, [*range(half), *range(3 * half, 4 * half)])

    def horizontal_sum(self, vector):
        """Add the elements of a vector, one half to the other until one element is left."""
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
        """Return p and q with exp(y) = p + p * q, where p is a power of two and q is small.

        exp(y) = 2**n * exp(y - n log 2), and the Taylor series of exp(r) - 1 for |r| <= log(2) / 2 keeps the
        relative precision near zero. exp(y) must be a normal number.
        """
        builder, vector = self.builder, y.type
        double = self.itemsize == 8
        mantissa, bias, terms = (52, 1023, 13) if double else (23, 127, 8)
        integers = ir.VectorType(ir.IntType(8 * self.itemsize), vector.count)

        def constant(value):
            return self.constant(value, vector)

        # Adding this constant rounds to an integer, which then stands in the lowest bits.
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
        """Compute exp(y) for ``y <= 0`` to a few units in the last place; zero below the normal numbers."""
        builder = self.builder
        limit = self.constant(-708.0 if self.itemsize == 8 else -87.0, y.type)
        # A NaN compares false and remains.
        tiny = builder.fcmp_ordered("<", y, limit)
        p, q = self._exponential(builder.select(tiny, limit, y))
        return builder.select(tiny, self.constant(0.0, y.type), self.multiply_add(p, q, p))

    def tanh(self, x):
        """Compute the hyperbolic tangent to a few units in the last place, over the whole range.

        ``tanh(x) = e / (e + 2)`` with ``e = exp(2 |x|) - 1``, and the sign of ``x``.
        """
        builder, vector = self.builder, x.type
        integers = ir.VectorType(ir.IntType(8 * self.itemsize), vector.count)
        sign_bit = self.constant(-(1 << (8 * self.itemsize - 1)), integers)
        sign = builder.and_(builder.bitcast(x, integers), sign_bit)
        magnitude = builder.bitcast(builder.xor(builder.bitcast(x, integers), sign), vector)
        y = builder.fadd(magnitude, magnitude)
        # Beyond the limit tanh is 1 in this precision; a NaN compares false and remains.
        limit = self.constant(44.0 if self.itemsize == 8 else 20.0, vector)
        y = builder.select(builder.fcmp_ordered(">", y, limit), limit, y)
        p, q = self._exponential(y)
        e = self.multiply_add(p, q, builder.fsub(p, self.constant(1.0, vector)))
        result = builder.fdiv(e, builder.fadd(e, self.constant(2.0, vector)))
        return builder.bitcast(builder.or_(builder.bitcast(result, integers), sign), vector)

    def loop(self, count, values, body):
        """Emit ``for i in range(count): values = body(i, values)``, the values in registers; return them."""
        builder = self.builder
        before = builder.block
        inside = builder.append_basic_block("loop")
        after = builder.append_basic_block("after_loop")
        builder.cbranch(builder.icmp_signed(">", count, INDEX(0)), inside, after)

        builder.position_at_end(inside)
        i = builder.phi(INDEX)
        current = [builder.phi(value.type) for value in values]
        results = body(i, current)
        end = builder.block
        next_i = builder.add(i, INDEX(1))
        for phi, first, later in zip([i, *current], [INDEX(0), *values], [next_i, *results], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, end)
        builder.cbranch(builder.icmp_signed("<", next_i, count), inside, after)

        builder.position_at_end(after)
        final = [builder.phi(value.type) for value in values]
        for phi, first, later in zip(final, values, results, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, end)
        return final

    def if_else(self, condition, emit_if, emit_else):
        """Return the values of ``emit_if()`` if ``condition`` holds, those of ``emit_else()`` if not."""
        builder = self.builder
        branches = []
        with builder.if_else(builder.trunc(condition, ir.IntType(1))) as ways:
            for way, emit in zip(ways, (emit_if, emit_else), strict=True):
                with way:
                    branches.append((emit(), builder.block))
        values = [builder.phi(value.type) for value in branches[0][0]]
        for results, block in branches:
            for value, result in zip(values, results, strict=True):
                value.add_incoming(result, block)
        return values

    def switch(self, value, cases, emit):
        """Emit ``emit(*arguments)`` for each case; run the one whose key is ``value``, if there is one."""
        builder = self.builder
        after = builder.append_basic_block("after_switch")
        switch = builder.switch(value, after)
        for key, arguments in cases.items():
            block = builder.append_basic_block(f"case{key}")
            switch.add_case(INDEX(key), block)
            builder.position_at_end(block)
            emit(*arguments)
            builder.branch(after)
        builder.position_at_end(after)

    def switch_up_to(self, limit, value, emit):
        """Run ``emit(n)`` for the n in 1..limit that ``value`` is, if it is one."""
        self.switch(value, {n: (n,) for n in range(1, limit + 1)}, emit)
