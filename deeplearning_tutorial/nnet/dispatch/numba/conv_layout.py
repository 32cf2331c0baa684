"""What the kernels of convolution and its gradients share: sizes, and the layout of images and filters.

An image is copied channels-last, with its padding, so that the pixels under a row of a filter, of all
channels, are neighbours. An element of a filter is called a *tap*; its offset is the distance of its pixel
from the pixel under the filter's first tap. Taps with neighbouring pixels form a *run*: a row of a filter, or
a single position if the filter is dilated.
"""

from typing import NamedTuple

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.conv import dilated_length
from deeplearning_tutorial.nnet.dispatch.numba.jit import kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.kernel import block_of, unliteral
from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import REGISTER_BYTES
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import Rows
from deeplearning_tutorial.nnet.dispatch.numba.llvm.tiles import TILE_COLUMNS, TILE_HALVES, in_halves
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import vector_copy
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, zeros
from deeplearning_tutorial.nnet.dispatch.numba.sizes import has_too_many
from deeplearning_tutorial.nnet.dispatch.numba.transpose import transpose
from deeplearning_tutorial.nnet.sizes import MAX_ELEMENTS

# Enough blocks for many cores; few enough that the partial filter gradients stay small.
BLOCKS = 16

# So few filters in a group would leave most of a tile's vectors empty.
FEW_FILTERS = 2

# Stand for padding that depends on the filter's length.
HALF, FULL = -1, -2

span_of = kernel_njit(dilated_length)


class ConvLayout(NamedTuple):
    """A convolution as its kernels see it: the sizes of one group's padded image and of its filters."""

    groups: int
    channels: int
    filters: int
    rows: int
    cols: int
    top: int
    left: int
    out_rows: int
    out_cols: int
    stride_rows: int
    stride_cols: int
    filter_rows: int
    filter_cols: int
    dilation_rows: int
    dilation_cols: int
    flip: int
    """1 if the filters are flipped, else 0."""
    run: int
    """Taps in a run."""
    half: int
    """Elements in half a vector register."""


CONV_LAYOUT = types.NamedUniTuple(types.int64, len(ConvLayout._fields), ConvLayout)


@kernel_njit
def padding(pad, span):
    """Resolve `HALF` and `FULL`."""
    if pad == HALF:
        return span // 2
    return span - 1 if pad == FULL else pad


@kernel_njit
def conv_layout_of(input, filters, pads, subsample, dilation, num_groups, flip):
    """Return the layout; raise ValueError if the data do not fit."""
    # Not compared as a product, which might wrap around.
    if input.shape[1] % num_groups or input.shape[1] // num_groups != filters.shape[1]:
        raise ValueError("input and filters do not have matching channels", input.shape, filters.shape)
    if filters.shape[0] % num_groups:
        groups = np.int64(num_groups)  # for the reason that `unliteral` gives
        raise ValueError("num_groups does not divide the number of filters", groups, filters.shape)
    if filters.shape[2] < 1 or filters.shape[3] < 1:
        raise ValueError("filters have no rows or no columns", filters.shape)
    rows_apart, cols_apart = filters.shape[2] - 1, filters.shape[3] - 1
    if rows_apart > MAX_ELEMENTS // dilation[0] or cols_apart > MAX_ELEMENTS // dilation[1]:
        raise ValueError("filter_dilation is too large for the filters", unliteral(dilation), filters.shape)
    rows_span, cols_span = span_of(filters.shape[2], dilation[0]), span_of(filters.shape[3], dilation[1])
    top, bottom = padding(pads[0][0], rows_span), padding(pads[0][1], rows_span)
    left, right = padding(pads[1][0], cols_span), padding(pads[1][1], cols_span)
    rows, cols = input.shape[2] + top + bottom, input.shape[3] + left + right
    if rows < rows_span or cols < cols_span:
        raise ValueError("filters are larger than the input: no output is left", input.shape, filters.shape)
    channels = filters.shape[1]
    if has_too_many(rows, cols, channels):
        lengths = unliteral((rows, cols))
        raise ValueError("border_mode pads images to more than memory holds", lengths, input.shape)
    # Longer strides also give a single position, but offsets beyond it would wrap around.
    stride_rows, stride_cols = min(subsample[0], rows), min(subsample[1], cols)
    return ConvLayout(
        num_groups,
        channels,
        filters.shape[0] // num_groups,
        rows,
        cols,
        top,
        left,
        (rows - rows_span) // stride_rows + 1,
        (cols - cols_span) // stride_cols + 1,
        stride_rows,
        stride_cols,
        filters.shape[2],
        filters.shape[3],
        dilation[0],
        dilation[1],
        np.int64(flip),
        channels * filters.shape[3] if dilation[1] == 1 else channels,
        REGISTER_BYTES // input.itemsize // 2,
    )


def conv_layout_function(op):
    """Make ``layout(input, filters)`` for an Op's parameters."""
    symbolic = {"half": ((HALF, HALF), (HALF, HALF)), "full": ((FULL, FULL), (FULL, FULL))}
    pads = symbolic[op.border_mode] if isinstance(op.border_mode, str) else op.border_mode
    subsample, dilation, num_groups, flip = op.subsample, op.filter_dilation, op.num_groups, op.filter_flip

    @kernel_njit
    def layout(input, filters):
        return conv_layout_of(input, filters, pads, subsample, dilation, num_groups, flip)

    return layout


@kernel_njit
def suits_map_vectors(layout):
    """Tell whether vectors of neighbouring positions are faster than vectors of filters."""
    return layout.channels == layout.stride_rows == layout.stride_cols == 1 and layout.filters <= FEW_FILTERS


@kernel_njit
def is_pointwise(layout, input):
    """Tell whether filters have one pixel, without padding or stride: outputs are as many as pixels."""
    return (layout.out_rows, layout.out_cols) == input.shape[2:] == (layout.rows, layout.cols)


@kernel_njit
def filter_blocks(layout, width):
    """Return the number of blocks, each for a tile, into which filters of ``width`` elements are divided."""
    return (width // layout.half + TILE_HALVES - 1) // TILE_HALVES


@kernel_njit
def filters_of_block(layout, width, filter_block):
    """Return the first filter of a block and how many half vectors it has."""
    begin, end = block_of(filter_block, filter_blocks(layout, width), width // layout.half)
    return begin * layout.half, end - begin


@kernel_njit
def tap_offsets(memory, layout):
    """Return the offsets of a filter's taps, in the order (rows, cols, channels)."""
    channels, filter_rows, filter_cols = layout.channels, layout.filter_rows, layout.filter_cols
    offsets = empty(memory, filter_rows * filter_cols * channels, np.int64)
    for row in range(filter_rows):
        for col in range(filter_cols):
            pixel = (row * layout.dilation_rows * layout.cols + col * layout.dilation_cols) * channels
            for channel in range(channels):
                offsets[(row * filter_cols + col) * channels + channel] = pixel + channel
    return offsets


@kernel_njit
def flipped(layout, row, col):
    """Return the row and the column of a tap in the filters."""
    if layout.flip:
        return layout.filter_rows - 1 - row, layout.filter_cols - 1 - col
    return row, col


@kernel_njit
def tap_weights(memory, layout, filters):
    """Copy filters to (groups, taps * filters), the filters padded with zeros to whole half vectors.

    Within a group, each block of filters is stored as (taps, filters).
    """
    _, channels, rows, cols = filters.shape
    n_taps, width = rows * cols * channels, in_halves(layout.filters, layout.half) * layout.half
    weights = zeros(memory, (layout.groups, n_taps * width), filters)
    for group in range(layout.groups):
        for filter_block in range(filter_blocks(layout, width)):
            lane, halves = filters_of_block(layout, width, filter_block)
            lanes = halves * layout.half
            for k in range(lane, min(lane + lanes, layout.filters)):
                for channel in range(channels):
                    for row in range(rows):
                        for col in range(cols):
                            from_row, from_col = flipped(layout, row, col)
                            tap = (row * cols + col) * channels + channel
                            weights[group, lane * n_taps + tap * lanes + k - lane] = filters[
                                group * layout.filters + k, channel, from_row, from_col
                            ]
    return weights


@kernel_njit
def consecutive_offsets(memory, count):
    """Return the offsets of the first ``count`` elements: 0, 1, 2, ..."""
    offsets = empty(memory, count, np.int64)
    for i in range(count):
        offsets[i] = i
    return offsets


@kernel_njit
def padded_positions(positions):
    """Round ``positions`` up to a multiple of TILE_COLUMNS."""
    return (positions + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS


@kernel_njit
def empty_image(memory, layout, extra, like):
    """Return zeros for a padded image, channels-last and flat, and ``extra`` ones for the last vectors."""
    return zeros(memory, layout.rows * layout.cols * layout.channels + extra, like)


@kernel_njit
def load_image(layout, maps, image):
    """Copy (channels, rows, cols) into the flat image, inside its padding."""
    channels, rows, cols = maps.shape
    for row in range(rows):
        first = ((row + layout.top) * layout.cols + layout.left) * channels
        if channels == 1:
            vector_copy(image, first, maps, row * cols, cols)
        else:
            transpose(Rows(image, first, channels), Rows(maps, row * cols, rows * cols), channels, cols)


@kernel_njit
def store_image(layout, image, maps):
    """Copy the flat image, without its padding, back to (channels, rows, cols)."""
    channels, rows, cols = maps.shape
    for row in range(rows):
        first = ((row + layout.top) * layout.cols + layout.left) * channels
        transpose(Rows(maps, row * cols, rows * cols), Rows(image, first, channels), cols, channels)
