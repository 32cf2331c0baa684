"""The public ``conv2d``, with the signature of ``theano.tensor.nnet.conv2d``."""

import warnings

from deeplearning_tutorial.nnet.conv import conv2d_inputs, conv2d_op, ignore_old_arguments
from deeplearning_tutorial.nnet.unshared import convolve_unshared


def conv2d(
    input,
    filters,
    input_shape=None,
    filter_shape=None,
    border_mode="valid",
    subsample=(1, 1),
    filter_flip=True,
    image_shape=None,
    filter_dilation=(1, 1),
    num_groups=1,
    unshared=False,
    **kwargs,
):
    """Convolve a minibatch of images or feature maps with a bank of filters.

    Parameters
    ----------
    input : tensor_like
        Shape ``(batch, channels, rows, cols)``; float32 or float64.
    filters : tensor_like
        Shape ``(filters, channels / num_groups, filter rows, filter cols)``, or with ``unshared`` ``(filters,
        rows', cols', channels / num_groups, filter rows, filter cols)``; float32 or float64.
    input_shape, filter_shape : tuple of (int, constant or None), optional
        Their lengths, as far as they are known beforehand; checked when the function runs.
    border_mode : {'valid', 'half', 'full'}, int, tuple of two ints, or tuple of two pairs of ints
        Zeros around the input: none, half the (dilated) filter's length, its length less one; or their number
        for both axes, for each axis, or before and after each axis.
    subsample : tuple of int
        Strides over rows and columns.
    filter_flip : bool
        True convolves; False correlates, that is, does not flip the filters.
    image_shape : tuple of (int, constant or None), optional
        Old name of ``input_shape``; deprecated.
    filter_dilation : tuple of int
        Distance between neighbouring filter elements on the input, by rows and columns.
    num_groups : int
        Groups of channels, each convolved with its own share of the filters.
    unshared : bool
        True gives each position of the output filters of its own: a locally connected layer.
    **kwargs
        ``unroll_batch`` and others by which Theano chose its algorithm; ignored, with a warning.

    Returns
    -------
    TensorVariable
        Shape ``(batch, filters, rows', cols')`` with ``rows' = (rows + padding - ((filter rows - 1) *
        dilation + 1)) // stride + 1``, likewise for columns; float64 if either argument is, else float32.

    Raises
    ------
    ValueError
        If an argument is not of the form above, or the shapes do not fit: when the graph is built if they are
        known then, else when the function runs. An output without rows or columns is an error; a batch of no
        images, no channels or no filters are not.
    TypeError
        If ``input`` does not have four dimensions, or ``filters`` four (six with ``unshared``), or either is
        not floating point.

    Warns
    -----
    DeprecationWarning
        If ``image_shape`` is used.
    UserWarning
        If ``kwargs`` are given.

    Notes
    -----
    The semantics are those of Theano 1.0's ``theano.tensor.nnet.conv2d``, except that Theano did not check
    the two hints.

    A hint makes lengths static, here and in all that is computed from the result. PyTensor refuses a
    ``default_update`` with more static lengths than its shared variable has: create that variable with
    ``shape=value.shape``, or give the update to ``pytensor.function``.
    """
    ignore_old_arguments(kwargs)
    if image_shape is not None:
        if input_shape is not None:
            raise ValueError(
                f"input_shape={input_shape!r} and image_shape={image_shape!r} are two names of one argument; "
                "use input_shape alone"
            )
        warnings.warn(
            "image_shape is the old name of input_shape; use input_shape", DeprecationWarning, stacklevel=2
        )
        input_shape = image_shape
    input, filters = conv2d_inputs(input, filters, input_shape, filter_shape, unshared=unshared)
    op = conv2d_op(filters, border_mode, subsample, filter_flip, filter_dilation, num_groups)
    return convolve_unshared(op, input, filters) if unshared else op(input, filters)
