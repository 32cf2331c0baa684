"""Transposed convolution, and the upsampling that is built on it."""

import numpy as np
import pytensor.tensor as pt

from deeplearning_tutorial.nnet.conv import conv2d_inputs, conv2d_op
from deeplearning_tutorial.nnet.integers import (
    check_positive_integer,
    division_note,
    folded,
    folded_tuple,
    is_integer,
)
from deeplearning_tutorial.nnet.shape_hint import apply_shape_hint, lengths_of
from deeplearning_tutorial.nnet.sizes import check_sizes


def conv2d_transpose(
    input,
    filters,
    output_shape,
    filter_shape=None,
    border_mode="valid",
    input_dilation=(1, 1),
    filter_flip=True,
    filter_dilation=(1, 1),
    num_groups=1,
    unshared=False,
):
    """Apply the transpose of a convolution, which maps the gradient of its output to that of its input.

    Parameters
    ----------
    input : tensor_like
        Shape ``(batch, channels, rows, cols)``, that of the output of the convolution that is transposed.
    filters : tensor_like
        Shape ``(channels, output channels / num_groups, filter rows, filter cols)``.
    output_shape : tuple of (int, scalar or None)
        ``(batch, output channels, rows', cols')``; the first two may be None. The last two must be given,
        because with an ``input_dilation`` above 1 several lengths are possible for one ``input``.
    filter_shape : tuple of (int, constant or None), optional
        The filters' lengths, as far as they are known beforehand; checked when the function runs.
    border_mode, filter_flip, filter_dilation, num_groups
        Those of the convolution; see `deeplearning_tutorial.nnet.conv2d`.
    input_dilation : tuple of int
        Strides of the convolution: distance between the input's pixels on the output, by rows and columns.
    unshared : bool
        Only False is supported.

    Returns
    -------
    TensorVariable
        Shape ``output_shape``; float64 if either argument is, else float32.

    Raises
    ------
    ValueError
        If an argument is not of the form above, or the shapes do not fit.
    TypeError
        If ``input`` or ``filters`` does not have four dimensions or is not floating point.
    NotImplementedError
        If ``unshared`` is True.

    Notes
    -----
    As ``theano.tensor.nnet.conv2d_transpose``. See Dumoulin and Visin, 2016, "A guide to convolution
    arithmetic for deep learning", chapter 4.
    """
    if unshared:
        raise NotImplementedError("unshared=True is not supported for the transpose; use unshared=False")
    output_shape = folded_tuple(output_shape)
    if not isinstance(output_shape, tuple) or len(output_shape) != 4 or None in output_shape[2:]:
        raise ValueError(
            f"output_shape={output_shape!r} is not a tuple of 4 lengths; only the first two may be None"
        )
    check_sizes("output_shape", output_shape, [n for n in output_shape if is_integer(n)])
    if note := division_note(output_shape):
        raise ValueError(f"output_shape={output_shape!r} holds something other than integers{note}")
    input, filters = conv2d_inputs(input, filters, None, filter_shape)
    op = conv2d_op(
        filters, border_mode, input_dilation, filter_flip, filter_dilation, num_groups, "input_dilation"
    )
    batch, channels, *lengths = output_shape
    if batch is None:
        batch = lengths_of(input)[0]
    if channels is None:
        channels = lengths_of(filters)[1] * op.num_groups
    like = pt.zeros((batch, channels, *lengths), dtype=input.dtype)
    expected = op.make_node(like, filters).out.type.shape
    if any(None not in pair and pair[0] != pair[1] for pair in zip(expected, input.type.shape, strict=True)):
        raise ValueError(
            f"output_shape={output_shape} does not belong to input of shape {input.type.shape}: the "
            f"convolution of an array of that shape has shape {expected}; change output_shape or border_mode"
        )
    return op.transpose()(like, filters, input)


def bilinear_upsampling(
    input, ratio=None, frac_ratio=None, batch_size=None, num_input_channels=None, use_1D_kernel=True
):
    """Enlarge feature maps by an integer, interpolating linearly between their pixels.

    Parameters
    ----------
    input : tensor_like
        Shape ``(batch, channels, rows, cols)``; float32 or float64.
    ratio : int, or constant
        Factor by which the numbers of rows and columns grow.
    frac_ratio : None
        Theano's ratio of two integers; not supported.
    batch_size, num_input_channels : int or constant, optional
        The first two lengths, as far as they are known beforehand; checked when the function runs.
    use_1D_kernel : bool
        True enlarges the rows and then the columns, which is faster; False both at once. The result is the
        same.

    Returns
    -------
    TensorVariable
        Shape ``(batch, channels, ratio * rows, ratio * cols)``. Pixel i moves to ``ratio * i + (ratio - 1)
        // 2``; the values of the first and the last pixel continue to the border.

    Raises
    ------
    ValueError
        If ``ratio`` is not a positive integer, or a known length contradicts ``input``.
    NotImplementedError
        If ``frac_ratio`` is given.
    """
    if frac_ratio is not None:
        raise NotImplementedError(f"frac_ratio={frac_ratio!r} is not supported; use an integer ratio")
    ratio = folded(ratio)
    check_positive_integer("ratio", ratio, 2)
    check_sizes("ratio", ratio, [ratio])
    input = pt.as_tensor_variable(input)
    hint = (batch_size, num_input_channels, None, None)
    input = apply_shape_hint("(batch_size, num_input_channels)", input, hint)
    batch, channels, rows, cols = lengths_of(input)
    # From 1 / ratio up to 1 and down again, in steps of 1 / ratio.
    kernel = 1 - np.abs(np.arange(1 - ratio, ratio)) / ratio
    kernel = kernel.astype(input.dtype)
    maps = input.reshape((batch * channels, 1, rows, cols))
    if use_1D_kernel:
        maps = _enlarge(maps, kernel[:, np.newaxis], (ratio, 1), (rows * ratio, cols))
        maps = _enlarge(maps, kernel[np.newaxis], (1, ratio), (rows * ratio, cols * ratio))
    else:
        maps = _enlarge(maps, np.outer(kernel, kernel), (ratio, ratio), (rows * ratio, cols * ratio))
    return maps.reshape((batch, channels, rows * ratio, cols * ratio))


def _enlarge(maps, kernel, ratios, lengths):
    # Repeat the pixels at the borders beyond them.
    for axis, ratio in ((2, ratios[0]), (3, ratios[1])):
        if ratio > 1:
            before = maps[:, :, :1] if axis == 2 else maps[:, :, :, :1]
            after = maps[:, :, -1:] if axis == 2 else maps[:, :, :, -1:]
            maps = pt.concatenate([before, maps, after], axis=axis)
    pads = tuple(2 * ratio - 1 - (ratio - 1) // 2 if ratio > 1 else 0 for ratio in ratios)
    return conv2d_transpose(
        maps,
        kernel[np.newaxis, np.newaxis],
        (None, 1, *lengths),
        border_mode=pads,
        input_dilation=ratios,
    )
