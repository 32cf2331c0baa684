"""JAX implementations of the Ops.

The gradients are transposes of linear functions, which JAX derives, so that only the convolution and the
pooling of a window are written here. JAX compiles for each shape separately, so lengths are ints.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from pytensor.graph.basic import Constant
from pytensor.link.jax.dispatch.basic import jax_funcify

from deeplearning_tutorial.nnet.conv import (
    Conv2d,
    Conv2dGradFilters,
    Conv2dGradInput,
    check_conv2d_shapes,
    conv_pads,
)
from deeplearning_tutorial.nnet.dispatch.known_lengths import LengthOfLengths
from deeplearning_tutorial.nnet.pool import (
    AveragePoolGrad,
    MaxPoolGrad,
    MaxPoolGradGrad,
    Pool,
    window_layout,
)
from deeplearning_tutorial.nnet.shape_hint import ShapeHint
from deeplearning_tutorial.nnet.sizes import check_shape


def transpose(function, like, output_gradient):
    """Return the gradient of ``(output_gradient * function(x)).sum()`` for a linear function of x."""
    [gradient] = jax.linear_transpose(function, jax.ShapeDtypeStruct(like.shape, like.dtype))(output_gradient)
    return gradient


def convolution(op, input, filters):
    """Convolve with the parameters of any of the three Ops."""
    check_conv2d_shapes(op, input.shape, filters.shape)
    return jax.lax.conv_general_dilated(
        input,
        filters[:, :, ::-1, ::-1] if op.filter_flip else filters,
        window_strides=op.subsample,
        padding=conv_pads(op.border_mode, filters.shape[2:], op.filter_dilation),
        rhs_dilation=op.filter_dilation,
        feature_group_count=op.num_groups,
        # On a GPU the default precision is lower than float32.
        precision=jax.lax.Precision.HIGHEST,
    )


def conv2d_grad_filters(op, input, filters, output_gradient):
    """Compute `Conv2dGradFilters`."""
    check_conv2d_shapes(op, input.shape, filters.shape, output_gradient.shape)
    return transpose(partial(convolution, op, input), filters, output_gradient)


def conv2d_grad_input(op, input, filters, output_gradient):
    """Compute `Conv2dGradInput`."""
    check_conv2d_shapes(op, input.shape, filters.shape, output_gradient.shape)
    return transpose(lambda input: convolution(op, input, filters), input, output_gradient)


def elements_of_windows(op, geometry, x, fill, out_lengths):
    """Return element k of every window, for each k: arrays of shape (..., rows', cols')."""
    widths, elements, _ = window_layout(x.shape[-2:], out_lengths, op._geometry(geometry))
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + widths, constant_values=fill)
    return [padded[element] for element in elements]


def window_means(op, geometry, out_lengths, x):
    """Return the sum or the average of each window."""
    elements = elements_of_windows(op, geometry, x, 0, out_lengths)
    return sum(elements) / op._window_sizes(x, geometry, out_lengths)


def pool(op, geometry, x):
    """Compute `Pool`."""
    out_lengths = op.output_shape(x.shape, op._geometry(geometry))[-2:]
    if op.mode != "max":
        return window_means(op, geometry, out_lengths, x)
    return reduce(jnp.maximum, elements_of_windows(op, geometry, x, -np.inf, out_lengths))


def average_pool_grad(op, geometry, x, output_gradient):
    """Compute `AveragePoolGrad`."""
    check_shape("output_gradient", output_gradient.shape, op.output_shape(x.shape, op._geometry(geometry)))
    means = partial(window_means, op, geometry, output_gradient.shape[-2:])
    return transpose(means, x, output_gradient)


def max_pool_grad_grad(op, geometry, x, maxima, cotangent):
    """Compute `MaxPoolGradGrad`."""
    check_shape("maxima", maxima.shape, op.output_shape(x.shape, op._geometry(geometry)))
    check_shape("cotangent", cotangent.shape, x.shape)
    out_lengths = maxima.shape[-2:]
    return sum(
        jnp.where(element == maxima, cotangent_element, 0)
        for element, cotangent_element in zip(
            elements_of_windows(op, geometry, x, np.nan, out_lengths),
            elements_of_windows(op, geometry, cotangent, 0, out_lengths),
            strict=True,
        )
    )


def max_pool_grad(op, geometry, x, maxima, output_gradient):
    """Compute `MaxPoolGrad`."""
    shape = op.output_shape(x.shape, op._geometry(geometry))
    check_shape("maxima", maxima.shape, shape)
    check_shape("output_gradient", output_gradient.shape, shape)
    return transpose(partial(max_pool_grad_grad, op, geometry, x, maxima), x, output_gradient)


def shape_hint(op, x):
    """Check the shape, once for each shape that JAX compiles."""
    if any(hint not in (None, n) for n, hint in zip(x.shape, op.shape, strict=True)):
        raise ValueError(op.message(), x.shape)
    return x


def constant_geometry(op, node):
    """Return the values of window, stride and padding if they are inputs, which must be constants."""
    if op.ws is not None:
        return []
    for name, vector in zip(("ws", "stride", "pad"), node.inputs[-3:], strict=True):
        if not isinstance(vector, Constant):
            raise NotImplementedError(
                f"{name}={vector} becomes known only when the function runs, too late for JAX; use a tuple "
                "of ints, or, where it follows from a shape, make that static, e.g. by conv2d's input_shape"
            )
    values = [vector.data for vector in node.inputs[-3:]]
    op._geometry(values)
    return values


def convert(op_class, function, is_pooling=False):
    """Register ``function(op, *arrays)``, for pooling ``function(op, geometry, *arrays)``, for an Op."""

    @jax_funcify.register(op_class)
    def jax_funcify_op(op, node, **kwargs):
        dtype = node.outputs[0].dtype
        if dtype == "float64" and not jax.config.jax_enable_x64:
            raise TypeError(
                f"{op} has dtype float64, which PyTensor switches off in JAX where floatX is float32; call "
                'jax.config.update("jax_enable_x64", True), or use float32'
            )
        options = (op, constant_geometry(op, node)) if is_pooling else (op,)
        n_arrays = sum(variable.dtype == dtype for variable in node.inputs)

        def function_of_dtype(*inputs):
            # PyTensor's sums of float32 are float64 in JAX.
            return function(*options, *(array.astype(dtype) for array in inputs[:n_arrays]))

        return function_of_dtype


convert(Conv2d, convolution)
convert(Conv2dGradFilters, conv2d_grad_filters)
convert(Conv2dGradInput, conv2d_grad_input)
convert(Pool, pool, is_pooling=True)
convert(AveragePoolGrad, average_pool_grad, is_pooling=True)
convert(MaxPoolGrad, max_pool_grad, is_pooling=True)
convert(MaxPoolGradGrad, max_pool_grad_grad, is_pooling=True)
convert(ShapeHint, shape_hint)


@jax_funcify.register(LengthOfLengths)
def jax_funcify_LengthOfLengths(op, **kwargs):
    """Convert `LengthOfLengths`: compute it while JAX compiles."""
    compute = jax_funcify(op.fgraph)

    def length_of_lengths(*lengths):
        with jax.ensure_compile_time_eval():
            [length] = compute(*lengths)
        return int(length)

    return length_of_lengths
