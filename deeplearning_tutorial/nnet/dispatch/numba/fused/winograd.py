"""Convolution with filters of 5 x 5 by Winograd's minimal filtering: 36 products for 4 outputs, not 100.

A tile of 2 x 2 outputs comes of 6 x 6 pixels. Taken as polynomials, pixels and filter are evaluated at six
points along each axis and multiplied there, the channels are added up, and the values brought back. Lavin and
Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), describe it.

With the points 0, 1, -1, 2, -1/2 and infinity the error is about twice that of a plain sum, with -2 in place
of -1/2 three times; Barabasz, Anderson, Soodhalter and Gregg, "Error analysis and improving the accuracy of
Winograd convolution for deep neural networks" (2020), compare them. What ties in a plain sum because pixels
repeat along an axis ties here, bit by bit, and so does what is exact, such as small integers.
"""

from functools import reduce

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from deeplearning_tutorial.nnet.dispatch.numba.conv import correlate_tiles
from deeplearning_tutorial.nnet.dispatch.numba.conv_layout import (
    Layout,
    filter_blocks,
    filters_of_block,
    in_halves,
    padded_positions,
)
from deeplearning_tutorial.nnet.dispatch.numba.kernel import kernel_inline, kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import INDEX, Emitter
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import TILE_COLUMNS
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, zeros

TILE = 2
"""Rows and columns of output in a tile."""

FILTER_LENGTH = 5
"""Rows and columns of a filter."""

POINTS = TILE + FILTER_LENGTH - 1
"""Points that the polynomials are evaluated at, and rows and columns of pixels that a tile comes of."""

# With fewer channels the products do not outweigh the work before and after them.
MIN_CHANNELS = 16

# Tiles whose products are kept: enough to read the filters rarely, few enough to stay in the cache.
BAND_TILES = 32

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

    @intrinsic
    def transform(typingctx, out, out_at, out_step, x, x_at, x_step, halves):
        """Transform lists of elements ``step`` apart.

        For i in 0..halves * half - 1, all flat offsets counted in elements::

            out[out_at + i + o * out_step for o in ...] = function(x[x_at + i + v * x_step for v in ...])
        """
        signature = types.void(out, types.intp, types.intp, x, types.intp, types.intp, types.intp)

        def codegen(context, builder, signature, arguments):
            out_, out_at, out_step, x_, x_at, x_step, halves = arguments
            emitter = Emitter(context, builder, out.dtype)
            target, source = emitter.pointer(out, out_, out_at), emitter.pointer(x, x_, x_at)
            sources = [emitter.step(source, builder.mul(x_step, INDEX(v))) for v in range(n_values)]

            def transform_at(at, vector):
                results = function(emitter, [emitter.load(emitter.step(s, at), vector) for s in sources])
                for o, result in enumerate(results):
                    place = emitter.step(target, builder.mul(out_step, INDEX(o)))
                    emitter.store(result, emitter.step(place, at))

            def one_vector(i, _sums):
                [(vector, _)] = emitter.vectors(2)
                transform_at(builder.mul(i, INDEX(vector.count)), vector)
                return []

            emitter.accumulate(builder.udiv(halves, INDEX(2)), [], one_vector)
            # The rest is half a vector, not a masked one: some processors store those slowly.
            with builder.if_then(builder.trunc(halves, ir.IntType(1))):
                [(vector, _)] = emitter.vectors(1)
                transform_at(builder.mul(builder.sub(halves, INDEX(1)), INDEX(emitter.half)), vector)
            return context.get_dummy_value()

        return signature, codegen

    return transform


transform_taps = _transform(_values_of_taps, FILTER_LENGTH)
transform_pixels = _transform(_values_of_pixels, POINTS)
transform_products = _transform(_sums, POINTS)
transform_sums = _transform(_outputs, POINTS)


@kernel_njit
def suits_winograd(layout, filter_shape):
    """Tell whether a plain convolution, all of whose tiles are wanted, is faster this way."""
    return filter_shape == (FILTER_LENGTH, FILTER_LENGTH) and layout.channels >= MIN_CHANNELS


@kernel_njit
def layout_of_products(layout, rows, cols):
    """Return the layout for `correlate_tiles` to take each point for a row, and each tile for a pixel.

    They are those of ``rows`` and ``cols`` of tiles; fewer rows, if that would be more than `BAND_TILES`.
    """
    rows = max(1, min(rows, BAND_TILES // max(1, cols)))
    channels = in_halves(layout.channels, layout.half) * layout.half
    return Layout(
        POINTS**2, channels, layout.filters, POINTS**2, padded_positions(rows * cols), 0, 0,
        rows, cols, 1, 1, channels, layout.half,
    )  # fmt: skip


@kernel_njit
def filter_values(memory, layout, weights):
    """Evaluate filters, as `tap_weights` gives them, at all points: (points, channels * filters)."""
    channels, width = layout.channels, in_halves(layout.filters, layout.half) * layout.half
    values = empty(memory, (POINTS**2, channels * width), weights)
    columns = empty(memory, POINTS * FILTER_LENGTH * channels * width, weights)
    for filter_block in range(filter_blocks(layout, width)):
        lane, halves = filters_of_block(layout, width, filter_block)
        halves, first = halves * channels, lane * channels
        step = halves * layout.half
        for col in range(FILTER_LENGTH):
            transform_taps(
                columns, col * step, FILTER_LENGTH * step,
                weights, first * FILTER_LENGTH**2 + col * step, FILTER_LENGTH * step, halves,
            )  # fmt: skip
        for point in range(POINTS):
            transform_taps(
                values, point * POINTS * channels * width + first, channels * width,
                columns, point * FILTER_LENGTH * step, step, halves,
            )  # fmt: skip
    return values


@kernel_njit
def empty_band(memory, layout, products, like):
    """Room for what `multiply_band` and `convolution_of_row` compute, and for what they need."""
    half, width = layout.half, in_halves(layout.filters, layout.half) * layout.half
    return (
        empty(memory, (POINTS, in_halves(layout.cols * layout.channels, half) * half + half), like),
        zeros(memory, POINTS**2 * products.cols * products.channels, like),
        empty(memory, products.cols // TILE_COLUMNS, np.bool_),
        empty(memory, (POINTS**2, products.cols, width), like),
        empty(memory, (TILE, POINTS, products.out_cols * width), like),
    )


@kernel_inline
def multiply_band(layout, products, image, row, rows, filter_values, offsets, band):
    """Compute the products of ``rows`` rows of tiles, from ``row`` on."""
    columns, pixels, wanted, sums, _ = band
    cols, length = products.out_cols, layout.cols * layout.channels
    halves, column_step = in_halves(length, layout.half), columns.shape[1]
    for r in range(rows):
        transform_pixels(columns, 0, column_step, image, (row + r) * TILE * length, length, halves)
        for point in range(POINTS):
            for col in range(cols):
                transform_pixels(
                    pixels, (point * POINTS * products.cols + r * cols + col) * products.channels,
                    products.cols * products.channels,
                    columns, point * column_step + col * TILE * layout.channels, layout.channels,
                    products.channels // layout.half,
                )  # fmt: skip
    for i in range(len(wanted)):
        wanted[i] = i * TILE_COLUMNS < rows * cols
    for point in range(POINTS**2):
        correlate_tiles(
            products, pixels, point, filter_values, point, offsets, sums[point : point + 1], wanted
        )


@kernel_inline
def convolution_of_row(products, row, band, lines):
    """Compute `TILE` rows of output, of a row of the band's tiles, as (rows, positions, filters)."""
    _, _, _, sums, rows_of_sums = band
    _, positions, line_step = lines.shape
    cols, halves = products.out_cols, in_halves(products.filters, products.half)
    width = halves * products.half
    step = cols * width
    for point in range(POINTS):
        transform_products(
            rows_of_sums, point * step, POINTS * step,
            sums, (point * products.cols + row * cols) * width, POINTS * products.cols * width,
            cols * halves,
        )  # fmt: skip
    for r in range(TILE):
        for col in range(cols):
            transform_sums(
                lines, (r * positions + col * TILE) * line_step, line_step,
                rows_of_sums, r * POINTS * step + col * width, step, halves,
            )  # fmt: skip
