"""Locally connected layers: a convolution whose filters differ from position to position."""

import numpy as np
import pytensor.tensor as pt
from pytensor.raise_op import CheckAndRaise

from deeplearning_tutorial.nnet.conv import Conv2d, check_conv2d_shapes, conv2d_output_shape
from deeplearning_tutorial.nnet.shape_hint import lengths_of


def convolve_unshared(op, input, filters):
    """Apply ``op`` with different filters at each output position.

    Parameters
    ----------
    op : Conv2d
        The parameters of the convolution.
    input : TensorVariable
        Shape ``(batch, channels, rows, cols)``.
    filters : TensorVariable
        Shape ``(filters, rows', cols', channels / num_groups, filter rows, filter cols)``.

    Returns
    -------
    TensorVariable
        Shape ``(batch, filters, rows', cols')``.

    Raises
    ------
    ValueError
        If the shapes do not fit: when the graph is built if they are known then, else when the function runs.
    """
    known = filters.type.shape
    _check_lengths(op, input.type.shape, known)
    batch, channels, rows, cols = lengths_of(input)
    n_filters, out_rows, out_cols, per_group, filter_rows, filter_cols = lengths_of(filters)
    groups, positions, taps = op.num_groups, out_rows * out_cols, per_group * filter_rows * filter_cols

    # A filter for each tap, one at the tap and zero elsewhere, separates the pixels under all filters. They
    # are in the order of flipped filters, so that the filters need not be flipped.
    size = filter_rows * filter_cols
    if None in known[4:]:
        tap = pt.arange(size)
        one_hot = pt.eq((size - 1 - tap if op.filter_flip else tap)[:, np.newaxis], tap).astype(input.dtype)
    else:
        one_hot = np.eye(size, dtype=input.dtype)
        one_hot = np.ascontiguousarray(one_hot[::-1]) if op.filter_flip else one_hot
    correlate = Conv2d(op.border_mode, op.subsample, False, op.filter_dilation, 1)
    pixels = correlate(
        input.reshape((batch * channels, 1, rows, cols)),
        pt.as_tensor_variable(one_hot.reshape((size, 1, filter_rows, filter_cols))),
    )
    if None in known or None in input.type.shape:
        pixels = _checked(pixels, channels, per_group * groups, out_rows, out_cols, n_filters, groups)
    pixels = pixels.reshape((batch, groups, taps, positions)).transpose((1, 3, 0, 2))
    weights = filters.reshape((groups, n_filters // groups, positions, taps)).transpose((0, 2, 3, 1))
    maps = pt.matmul(
        pixels.reshape((groups * positions, batch, taps)),
        weights.reshape((groups * positions, taps, n_filters // groups)),
    )
    maps = maps.reshape((groups, positions, batch, n_filters // groups)).transpose((2, 0, 3, 1))
    return maps.reshape((batch, n_filters, out_rows, out_cols))


def _check_lengths(op, input_shape, filters_shape):
    n_filters, *positions, per_group, filter_rows, filter_cols = filters_shape
    # Of filters that all positions share the same is asked.
    shared_shape = (n_filters, per_group, filter_rows, filter_cols)
    check_conv2d_shapes(op, input_shape, shared_shape)
    expected = conv2d_output_shape(op, input_shape, shared_shape)[2:]
    if any(None not in pair and pair[0] != pair[1] for pair in zip(positions, expected, strict=True)):
        raise ValueError(
            f"filters has shape {tuple(filters_shape)}, for {tuple(positions)} output rows and cols, and the "
            f"output has {tuple(expected)}; give it a filter for each position of the output"
        )


def _checked(pixels, channels, needed_channels, out_rows, out_cols, n_filters, groups):
    fits = [
        pt.eq(channels, needed_channels),
        pt.eq(pixels.shape[2], out_rows),
        pt.eq(pixels.shape[3], out_cols),
        pt.eq(n_filters // groups * groups, n_filters),
    ]
    return CheckAndRaise(
        ValueError,
        "the unshared filters do not fit: they need shape (filters, output rows, output cols, channels / "
        "num_groups, rows, cols), and num_groups must divide the filters",
    )(pixels, pt.all(pt.stack(fits)))
