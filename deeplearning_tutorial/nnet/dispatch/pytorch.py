"""PyTorch implementations of the Ops."""

import warnings
from functools import reduce

import numpy as np
import torch
from pytensor.link.pytorch.dispatch.basic import pytorch_funcify
from pytensor.scalar.basic import EQ
from pytensor.tensor.math import Argmax
from torch.nn.functional import conv2d as torch_conv2d
from torch.nn.functional import pad as torch_pad
from torch.nn.grad import conv2d_input, conv2d_weight

from deeplearning_tutorial.nnet.conv import (
    Conv2d,
    Conv2dGradFilters,
    Conv2dGradInput,
    check_conv2d_shapes,
    conv2d_output_shape,
    conv_pads,
)
from deeplearning_tutorial.nnet.pool import (
    AveragePoolGrad,
    MaxPoolGrad,
    MaxPoolGradGrad,
    Pool,
    window_layout,
)
from deeplearning_tutorial.nnet.shape_hint import ShapeHint
from deeplearning_tutorial.nnet.sizes import check_shape

with warnings.catch_warnings():
    # PyTensor 3.0 passes constants to PyTorch that are not writable. PyTorch warns of the first one in a
    # process, which is this one.
    warnings.simplefilter("ignore", UserWarning)
    torch.as_tensor(np.broadcast_to(0.0, 1))


def padded(x, widths, value=0):
    """Pad the last two axes with ``value``, by (before, after) elements each."""
    return torch_pad(x, (*widths[1], *widths[0]), value=value) if any(map(any, widths)) else x


def flipped(op, filters):
    """Convert filters to those that PyTorch correlates with, or back."""
    return filters.flip(2, 3) if op.filter_flip else filters


def is_empty(input, filters):
    """Tell whether there is no image, channel or filter, which PyTorch does not accept."""
    return 0 in (*input.shape[:2], *filters.shape[:2])


def convolution_options(op):
    """Return stride, padding, dilation and groups, in the order of PyTorch's parameters."""
    return op.subsample, 0, op.filter_dilation, op.num_groups


def conv2d(op, input, filters):
    """Compute `Conv2d`."""
    check_conv2d_shapes(op, input.shape, filters.shape)
    if is_empty(input, filters):
        return input.new_zeros(conv2d_output_shape(op, input.shape, filters.shape))
    pads = conv_pads(op.border_mode, filters.shape[2:], op.filter_dilation)
    return torch_conv2d(padded(input, pads), flipped(op, filters), None, *convolution_options(op))


def conv2d_grad_filters(op, input, filters, output_gradient):
    """Compute `Conv2dGradFilters`."""
    check_conv2d_shapes(op, input.shape, filters.shape, output_gradient.shape)
    if is_empty(input, filters):
        return torch.zeros_like(filters)
    pads = conv_pads(op.border_mode, filters.shape[2:], op.filter_dilation)
    options = convolution_options(op)
    return flipped(op, conv2d_weight(padded(input, pads), filters.shape, output_gradient, *options))


def conv2d_grad_input(op, input, filters, output_gradient):
    """Compute `Conv2dGradInput`."""
    check_conv2d_shapes(op, input.shape, filters.shape, output_gradient.shape)
    if is_empty(input, filters):
        return torch.zeros_like(input)
    (top, bottom), (left, right) = conv_pads(op.border_mode, filters.shape[2:], op.filter_dilation)
    *counts, rows, cols = input.shape
    shape = (*counts, top + rows + bottom, left + cols + right)
    gradient = conv2d_input(shape, flipped(op, filters), output_gradient, *convolution_options(op))
    return gradient[:, :, top : top + rows, left : left + cols]


def pool(op, geometry, x):
    """Compute `Pool`."""
    out_lengths = op.output_shape(x.shape, geometry)[-2:]
    widths, elements, _ = window_layout(x.shape[-2:], out_lengths, geometry)
    if op.mode == "max":
        whole = padded(x, widths, -np.inf)
        return reduce(torch.maximum, [whole[element] for element in elements])
    whole = padded(x, widths)
    return sum(whole[element] for element in elements) / window_sizes(op, x, geometry, out_lengths)


def window_sizes(op, x, geometry, out_lengths):
    """Return the divisors of the windows' sums: a number, or an array (rows', cols')."""
    if op.mode == "sum":
        return 1
    if op.mode == "average_inc_pad" and op.ignore_border:
        return float(geometry[0][0]) * geometry[1][0]
    widths, elements, _ = window_layout(x.shape[-2:], out_lengths, geometry)
    ones = padded(torch.ones(x.shape[-2:], dtype=x.dtype, device=x.device), widths)
    return sum(ones[element] for element in elements)


def average_pool_grad(op, geometry, x, output_gradient):
    """Compute `AveragePoolGrad`."""
    check_shape("output_gradient", output_gradient.shape, op.output_shape(x.shape, geometry))
    out_lengths = output_gradient.shape[-2:]
    widths, elements, inside = window_layout(x.shape[-2:], out_lengths, geometry)
    share = output_gradient / window_sizes(op, x, geometry, out_lengths)
    gradient = padded(torch.zeros_like(x), widths)
    for element in elements:
        gradient[element] += share
    return gradient[inside]


def max_pool_grad(op, geometry, x, maxima, output_gradient):
    """Compute `MaxPoolGrad`."""
    shape = op.output_shape(x.shape, geometry)
    check_shape("maxima", maxima.shape, shape)
    check_shape("output_gradient", output_gradient.shape, shape)
    widths, elements, inside = window_layout(x.shape[-2:], maxima.shape[-2:], geometry)
    whole = padded(x, widths, np.nan)
    gradient = torch.zeros_like(whole)
    for element in elements:
        gradient[element] += torch.where(whole[element] == maxima, output_gradient, 0)
    return gradient[inside]


def max_pool_grad_grad(op, geometry, x, maxima, cotangent):
    """Compute `MaxPoolGradGrad`."""
    check_shape("maxima", maxima.shape, op.output_shape(x.shape, geometry))
    check_shape("cotangent", cotangent.shape, x.shape)
    widths, elements, _ = window_layout(x.shape[-2:], maxima.shape[-2:], geometry)
    whole, whole_cotangent = padded(x, widths, np.nan), padded(cotangent, widths)
    return sum(torch.where(whole[element] == maxima, whole_cotangent[element], 0) for element in elements)


def shape_hint(op, x):
    """Check the shape."""
    shape = tuple(x.shape)
    if any(hint not in (None, n) for n, hint in zip(shape, op.shape, strict=True)):
        raise ValueError(op.message(), shape)
    return x


def convert(op_class, function, is_pooling=False):
    """Register ``function(op, *arrays)``, for pooling ``function(op, geometry, *arrays)``, for an Op.

    PyTorch calls the function and does not compile it: in a convolution there is nothing to compile, and
    slices of windows take minutes to compile and are slower afterwards.
    """

    @pytorch_funcify.register(op_class)
    def pytorch_funcify_op(op, node, **kwargs):
        n_arrays = len(node.inputs) - (3 if is_pooling and op.ws is None else 0)

        @torch.compiler.disable
        def function_of_arrays(*inputs):
            arrays, vectors = inputs[:n_arrays], inputs[n_arrays:]
            if not is_pooling:
                return function(op, *arrays)
            return function(op, op._geometry([vector.numpy(force=True) for vector in vectors]), *arrays)

        return function_of_arrays


convert(Conv2d, conv2d)
convert(Conv2dGradFilters, conv2d_grad_filters)
convert(Conv2dGradInput, conv2d_grad_input)
convert(Pool, pool, is_pooling=True)
convert(AveragePoolGrad, average_pool_grad, is_pooling=True)
convert(MaxPoolGrad, max_pool_grad, is_pooling=True)
convert(MaxPoolGradGrad, max_pool_grad_grad, is_pooling=True)
convert(ShapeHint, shape_hint)


# What the tutorial's networks also need, and PyTensor's own conversions lack or get wrong.

if Argmax not in pytorch_funcify.registry:

    @pytorch_funcify.register(Argmax)
    def pytorch_funcify_Argmax(op, node, **kwargs):
        """Convert PyTensor's `Argmax`."""
        axes = tuple(range(node.inputs[0].type.ndim)) if op.axis is None else op.axis
        other_axes = [axis for axis in range(node.inputs[0].type.ndim) if axis not in axes]

        def argmax(x):
            return x.permute(*other_axes, *axes).flatten(len(other_axes)).argmax(dim=-1)

        return argmax


@pytorch_funcify.register(EQ)
def pytorch_funcify_EQ(op, **kwargs):
    """Compare element by element: ``torch.equal``, which PyTensor uses, compares whole arrays."""
    return torch.eq
