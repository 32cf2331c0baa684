"""Convolution with filters of 5 x 5 by Winograd's minimal filtering: 36 products for 4 outputs, not 100.

`deeplearning_tutorial.nnet.dispatch.numba.llvm.winograd_transforms` says how. The products of a band of tiles
are computed at a time, those of each point as a convolution with filters of one pixel.
"""

from typing import Any, NamedTuple

import numpy as np

from deeplearning_tutorial.nnet.dispatch.numba.conv import correlate_tiles
from deeplearning_tutorial.nnet.dispatch.numba.conv_layout import (
    ConvLayout,
    filter_blocks,
    filters_of_block,
    padded_positions,
)
from deeplearning_tutorial.nnet.dispatch.numba.jit import exact_njit, kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import Rows
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import TILE_COLUMNS, in_halves
from deeplearning_tutorial.nnet.dispatch.numba.llvm.winograd_transforms import (
    FILTER_LENGTH,
    POINTS,
    TILE,
    transform_pixels,
    transform_products,
    transform_sums,
    transform_taps,
)
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, zeros

# With fewer channels the products do not outweigh the work before and after them.
MIN_CHANNELS = 16

# Tiles whose products are kept: enough to read the filters rarely, few enough to stay in the cache.
BAND_TILES = 32


class Band(NamedTuple):
    """The memory of `multiply_band` and `convolution_of_row`, for some rows of tiles."""

    columns: Any
    """The pixels under a row of tiles, transformed along their columns; shape (points, elements of a row)."""
    pixels: Any
    """The pixels transformed along both axes, flat; shape (points, tiles, channels)."""
    tile_mask: Any
    """Which tiles of `correlate_tiles`, of TILE_COLUMNS positions, there are."""
    sums: Any
    """The sums of products over the channels; shape (points, tiles, filters)."""
    rows_of_sums: Any
    """Those of a row of tiles, transformed along their columns; shape (outputs, points, tiles * filters)."""


@kernel_njit
def suits_winograd(layout):
    """Tell whether a plain convolution, all of whose tiles are computed, is faster this way."""
    return layout.filter_rows == layout.filter_cols == FILTER_LENGTH and layout.channels >= MIN_CHANNELS


@kernel_njit
def layout_of_products(layout, rows, cols):
    """Return the layout for `correlate_tiles` to take each point for a row, and each tile for a pixel.

    The tiles are ``rows`` times ``cols``; of fewer rows, if these would be more than `BAND_TILES`.
    """
    rows = max(1, min(rows, BAND_TILES // max(1, cols)))
    channels = in_halves(layout.channels, layout.half) * layout.half
    return ConvLayout(
        POINTS**2, channels, layout.filters, POINTS**2, padded_positions(rows * cols), 0, 0,
        rows, cols, 1, 1, 1, 1, 1, 1, 0, channels, layout.half,
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
            taps = Rows(weights, first * FILTER_LENGTH**2 + col * step, FILTER_LENGTH * step)
            transform_taps(Rows(columns, col * step, FILTER_LENGTH * step), taps, halves)
        for point in range(POINTS):
            row_of_values = Rows(values, point * POINTS * channels * width + first, channels * width)
            transform_taps(row_of_values, Rows(columns, point * FILTER_LENGTH * step, step), halves)
    return values


@kernel_njit
def empty_band(memory, layout, products, like):
    """Return the memory of a band of tiles, whose pixels beyond the channels are zero."""
    half, width = layout.half, in_halves(layout.filters, layout.half) * layout.half
    return Band(
        empty(memory, (POINTS, in_halves(layout.cols * layout.channels, half) * half + half), like),
        zeros(memory, POINTS**2 * products.cols * products.channels, like),
        empty(memory, products.cols // TILE_COLUMNS, np.bool_),
        empty(memory, (POINTS**2, products.cols, width), like),
        empty(memory, (TILE, POINTS, products.out_cols * width), like),
    )


@exact_njit
def multiply_band(layout, products, image, tile_rows, filter_values, offsets, band):
    """Compute the products of the rows of tiles in ``range(*tile_rows)``."""
    columns, pixels, sums = band.columns, band.pixels, band.sums
    row, rows = tile_rows[0], tile_rows[1] - tile_rows[0]
    cols, length = products.out_cols, layout.cols * layout.channels
    halves, column_step = in_halves(length, layout.half), columns.shape[1]
    for r in range(rows):
        row_of_pixels = Rows(image, (row + r) * TILE * length, length)
        transform_pixels(Rows(columns, 0, column_step), row_of_pixels, halves)
        for point in range(POINTS):
            for col in range(cols):
                tile = point * POINTS * products.cols + r * cols + col
                transform_pixels(
                    Rows(pixels, tile * products.channels, products.cols * products.channels),
                    Rows(columns, point * column_step + col * TILE * layout.channels, layout.channels),
                    products.channels // layout.half,
                )
    for i in range(len(band.tile_mask)):
        band.tile_mask[i] = i * TILE_COLUMNS < rows * cols
    for point in range(POINTS**2):
        sums_of_point = sums[point : point + 1]
        correlate_tiles(products, pixels, point, filter_values, point, offsets, sums_of_point, band.tile_mask)


@exact_njit
def convolution_of_row(products, row, band, lines):
    """Compute `TILE` rows of output, of a row of the band's tiles, as (rows, positions, filters)."""
    sums, rows_of_sums = band.sums, band.rows_of_sums
    _, positions, line_step = lines.shape
    cols, halves = products.out_cols, in_halves(products.filters, products.half)
    width = halves * products.half
    step = cols * width
    for point in range(POINTS):
        of_point = Rows(sums, (point * products.cols + row * cols) * width, POINTS * products.cols * width)
        transform_products(Rows(rows_of_sums, point * step, POINTS * step), of_point, cols * halves)
    for r in range(TILE):
        for col in range(cols):
            of_tile = Rows(rows_of_sums, r * POINTS * step + col * width, step)
            line = Rows(lines, (r * positions + col * TILE) * line_step, line_step)
            transform_sums(line, of_tile, halves)
