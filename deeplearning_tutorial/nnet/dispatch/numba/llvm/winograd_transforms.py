"""The transforms of Winograd's minimal filtering, for filters of 5 x 5 and tiles of 2 x 2 outputs.

Along an axis two outputs come of six pixels. Taken as polynomials, pixels and filter are evaluated at six
points and multiplied there; the sums of the products over the channels are brought back. Lavin and Gray,
"Fast algorithms for convolutional neural networks" (CVPR 2016), describe it.

With the points 0, 1, -1, 2, -1/2 and infinity the error is about twice that of a plain sum, with -2 in place
of -1/2 three times; Barabasz, Anderson, Soodhalter and Gregg, "Error analysis and improving the accuracy of
Winograd convolution for deep neural networks" (2020), compare them. What ties in a plain sum because pixels
repeat along an axis ties here, bit by bit, and so does what is exact, such as small integers.
"""

from functools import reduce

from llvmlite import ir

from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import INDEX
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import vector_intrinsic

TILE = 2
"""Rows and columns of output in a tile."""

FILTER_LENGTH = 5
"""Rows and columns of a filter."""

POINTS = TILE + FILTER_LENGTH - 1
"""Points that the polynomials are evaluated at, and rows and columns of pixels that a tile comes of."""

# Rows are points: the powers of 0, 1, -1, 2, -1/2 and infinity, times what makes the pixels' factors simple.
_TAP_FACTORS = (
    (15, 0, 0, 0, 0),
    (5, 5, 5, 5, 5),
    (5, -5, 5, -5, 5),
    (1, 2, 4, 8, 16),
    (16, -8, 4, -2, 1),
    (0, 0, 0, 0, 15),
)
# Rows are outputs: the powers of the points.
_SUM_FACTORS = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -0.5, 1))

# The sums of products are so many times the convolution.
_MULTIPLE = 15**2


def _values_of_taps(emitter, taps):
    return _weighted_sums(emitter, _TAP_FACTORS, taps)


def _values_of_pixels(emitter, pixels):
    """Evaluate six pixels at the points: of equal ones, all values but that at 1 are exactly zero."""
    builder = emitter.builder

    def plus(factor, a, b):
        return emitter.multiply_add(emitter.constant(factor, a.type), a, b)

    a, b, c, d = (builder.fsub(pixels[i], pixels[i + 2]) for i in range(4))
    return [
        plus(1.5, b, builder.fsub(a, c)),
        plus(1.5, builder.fadd(pixels[2], pixels[3]), builder.fadd(b, c)),
        plus(1.5, builder.fsub(pixels[2], pixels[3]), builder.fsub(b, c)),
        plus(-0.5, b, builder.fneg(c)),
        plus(-2, b, c),
        plus(1.5, c, builder.fsub(b, d)),
    ]


def _sums(emitter, values):
    return _weighted_sums(emitter, _SUM_FACTORS, values)


def _outputs(emitter, values):
    divisor = emitter.constant(_MULTIPLE, values[0].type)
    return [emitter.builder.fdiv(total, divisor) for total in _sums(emitter, values)]


def _weighted_sums(emitter, rows, values):
    """Compute ``sum over i of row[i] * values[i]`` for each row."""

    def add(total, term):
        factor, value = term
        return emitter.multiply_add(emitter.constant(factor, value.type), value, total)

    sums = []
    for row in rows:
        (factor, value), *terms = ((f, v) for f, v in zip(row, values, strict=True) if f)
        sums.append(reduce(add, terms, emitter.builder.fmul(emitter.constant(factor, value.type), value)))
    return sums


def _transform(function, n_values):
    """Make an intrinsic of ``function(emitter, values)``, which takes and returns lists of vectors."""

    @vector_intrinsic()
    def transform(emitter, out, x, halves):
        """Transform the columns of some rows; ``out`` and ``x`` are `Rows`.

        For i in 0..halves * half - 1, ``out[:, i] = function(x[:, i])``.
        """
        builder, advance = emitter.builder, emitter.advance
        sources = [x.row(v) for v in range(n_values)]

        def transform_at(at, vector):
            results = function(emitter, [emitter.load(advance(source, at), vector) for source in sources])
            for o, result in enumerate(results):
                emitter.store(result, advance(out.row(o), at))

        def one_vector(i, _values):
            transform_at(emitter.times(i, emitter.vector.count), emitter.vector)
            return []

        emitter.loop(builder.udiv(halves, INDEX(2)), [], one_vector)
        # What remains is half a vector, not a masked one: some processors store those slowly.
        with builder.if_then(builder.trunc(halves, ir.IntType(1))):
            last = emitter.times(builder.sub(halves, INDEX(1)), emitter.half)
            transform_at(last, emitter.half_vector)

    return transform


transform_taps = _transform(_values_of_taps, FILTER_LENGTH)
transform_pixels = _transform(_values_of_pixels, POINTS)
transform_products = _transform(_sums, POINTS)
transform_sums = _transform(_outputs, POINTS)
