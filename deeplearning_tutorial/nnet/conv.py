"""Two-dimensional convolution: the Ops, their gradients, and ``conv.conv2d`` with its signature of 2015.

The Ops' ``perform`` methods are the reference implementation, in NumPy. New code should call
`deeplearning_tutorial.nnet.conv2d`.
"""

import warnings

import numpy as np
from pytensor.gradient import DisconnectedType, disconnected_type
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.tensor import as_tensor_variable, cast, tensor

from deeplearning_tutorial.nnet.integers import check_positive_integer, division_note, is_integer
from deeplearning_tutorial.nnet.shape_hint import apply_shape_hint
from deeplearning_tutorial.nnet.sizes import MAX_ELEMENTS, MAX_SIZE, check_sizes, has_too_many


def conv_output_length(length, filter_length, pad, stride, dilation):
    """Return the number of positions of a dilated filter along one axis; None where a length is unknown.

    Lengths may be ints or symbolic; ``pad`` is the pair (before, after).
    """
    if length is None or filter_length is None:
        return None
    return (length + pad[0] + pad[1] - dilated_length(filter_length, dilation)) // stride + 1


def dilated_length(filter_length, dilation):
    """Return the number of elements that a filter spans."""
    return (filter_length - 1) * dilation + 1


def conv_pads(border_mode, filter_lengths, filter_dilation):
    """Return one (before, after) pair per axis; None where it depends on an unknown filter length."""
    if not isinstance(border_mode, str):
        return border_mode
    pads = []
    for length, dilation in zip(filter_lengths, filter_dilation, strict=True):
        if length is None:
            pads.append(None)
            continue
        span = dilated_length(length, dilation)
        pads.append((span // 2, span // 2) if border_mode == "half" else (span - 1, span - 1))
    return tuple(pads)


def conv2d_output_shape(op, input_shape, filters_shape):
    """Return the shape of ``Conv2d``'s output, ``(batch, filters, rows, cols)``: ints, symbolic or None."""
    pads = conv_pads(op.border_mode, filters_shape[2:], op.filter_dilation)
    lengths = [
        None if pad is None else conv_output_length(length, filter_length, pad, stride, dilation)
        for length, filter_length, pad, stride, dilation in zip(
            input_shape[2:], filters_shape[2:], pads, op.subsample, op.filter_dilation, strict=True
        )
    ]
    return (input_shape[0], filters_shape[0], *lengths)


def check_conv2d_shapes(op, input_shape, filters_shape, gradient_shape=None):
    """Raise ValueError if known lengths do not fit each other; an unknown length is None."""
    channels, per_filter = input_shape[1], filters_shape[1]
    if channels is not None and per_filter is not None and channels != per_filter * op.num_groups:
        raise ValueError(
            f"input has {channels} channels, filters of shape {tuple(filters_shape)} take "
            f"{per_filter} x num_groups={op.num_groups}; make them equal"
        )
    if filters_shape[0] is not None and filters_shape[0] % op.num_groups:
        raise ValueError(
            f"filters has {filters_shape[0]} filters, which num_groups={op.num_groups} does not divide; "
            "change one of them"
        )
    output_shape = conv2d_output_shape(op, input_shape, filters_shape)
    lengths = zip(("rows", "cols"), filters_shape[2:], output_shape[2:], strict=True)
    for axis, filter_length, length in lengths:
        if filter_length == 0:
            raise ValueError(
                f"filters of shape {tuple(filters_shape)} have no {axis}; use filters of at least 1 x 1"
            )
        if length is not None and length < 1:
            raise ValueError(
                f"the output would have no {axis}: input is {tuple(input_shape)}, filters are "
                f"{tuple(filters_shape)}; use smaller filters, a larger input or padding"
            )
    pads = conv_pads(op.border_mode, filters_shape[2:], op.filter_dilation)
    if None not in (per_filter, *pads, *input_shape[2:]):
        rows, cols = (n + sum(pad) for n, pad in zip(input_shape[2:], pads, strict=True))
        if has_too_many(rows, cols, per_filter):
            raise ValueError(
                f"border_mode={op.border_mode!r} makes {rows} x {cols} pixels of {per_filter} channels, more "
                "than memory holds; use less padding"
            )
    if gradient_shape is not None and tuple(gradient_shape) != output_shape:
        raise ValueError(
            f"the convolution's output has shape {output_shape}, its gradient, or what is transposed, has "
            f"{tuple(gradient_shape)}; make them equal"
        )


class _ConvOp(Op):
    """What convolution and its two gradients share: parameters, windows of the padded input, groups.

    Each is linear in two of its inputs; of a third, only the shape is used.

    ``border_mode`` is a pair of (before, after) pairs, or 'half' or 'full' where the filters' rows and cols
    become known when the function runs. ``subsample`` and ``filter_dilation`` are pairs of ints.
    """

    __props__ = ("border_mode", "subsample", "filter_flip", "filter_dilation", "num_groups")
    linear_in = (0, 1)

    def __init__(self, border_mode, subsample, filter_flip, filter_dilation, num_groups):
        self.border_mode = border_mode
        self.subsample = subsample
        self.filter_flip = filter_flip
        self.filter_dilation = filter_dilation
        self.num_groups = num_groups

    def connection_pattern(self, node):
        return [[position in self.linear_in] for position in range(len(node.inputs))]

    def pushforward(self, inputs, outputs, tangents):
        terms = [
            self(*inputs[:position], tangents[position], *inputs[position + 1 :])
            for position in self.linear_in
            if not isinstance(tangents[position].type, DisconnectedType)
        ]
        return [sum(terms[1:], terms[0]) if terms else disconnected_type()]

    def _like(self, op_class):
        return op_class(*(getattr(self, name) for name in self.__props__))

    def _pads(self, filters):
        return conv_pads(self.border_mode, filters.shape[2:], self.filter_dilation)

    def _windows(self, input, filters):
        """Return the pixels under the filter: (batch, channels, out rows, out cols, rows, cols)."""
        (stride_rows, stride_cols), (step_rows, step_cols) = self.subsample, self.filter_dilation
        padded = np.pad(input, ((0, 0), (0, 0), *self._pads(filters)))
        spans = [dilated_length(n, d) for n, d in zip(filters.shape[2:], self.filter_dilation, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
        return windows[:, :, ::stride_rows, ::stride_cols, ::step_rows, ::step_cols]

    def _flipped(self, filters):
        return filters[:, :, ::-1, ::-1] if self.filter_flip else filters

    def _groups(self, array, axis):
        return np.split(array, self.num_groups, axis=axis)


class Conv2d(_ConvOp):
    """Convolve ``(batch, channels, rows, cols)`` with ``(filters, channels / groups, rows, cols)``."""

    def make_node(self, input, filters):
        shapes = input.type.shape, filters.type.shape
        check_conv2d_shapes(self, *shapes)
        out = tensor(dtype=input.dtype, shape=conv2d_output_shape(self, *shapes))
        return Apply(self, [input, filters], [out])

    def infer_shape(self, *args):
        *_, node, [input_shape, filters_shape] = args
        return [conv2d_output_shape(self, input_shape, filters_shape)]

    def transpose(self):
        """Return the Op of the gradient with respect to the input, with the same parameters."""
        return self._like(Conv2dGradInput)

    def pullback(self, inputs, outputs, cotangents):
        input, filters = inputs
        [output_gradient] = cotangents
        return [
            self.transpose()(input, filters, output_gradient),
            self._like(Conv2dGradFilters)(input, filters, output_gradient),
        ]

    def perform(self, node, inputs, outputs):
        input, filters = inputs
        check_conv2d_shapes(self, input.shape, filters.shape)
        maps = [
            np.tensordot(windows, group, axes=([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)
            for windows, group in zip(
                self._groups(self._windows(input, filters), 1),
                self._groups(self._flipped(filters), 0),
                strict=True,
            )
        ]
        outputs[0][0] = np.ascontiguousarray(np.concatenate(maps, axis=1))


class Conv2dGradFilters(_ConvOp):
    """Gradient of `Conv2d` with respect to the filters, of which only the shape is used."""

    linear_in = (0, 2)

    def make_node(self, input, filters, output_gradient):
        return Apply(self, [input, filters, output_gradient], [filters.type()])

    def infer_shape(self, *args):
        *_, node, [_input_shape, filters_shape, _output_shape] = args
        return [filters_shape]

    def pullback(self, inputs, outputs, cotangents):
        input, _filters, output_gradient = inputs
        [filters_cotangent] = cotangents
        return [
            self._like(Conv2dGradInput)(input, filters_cotangent, output_gradient),
            disconnected_type(),
            self._like(Conv2d)(input, filters_cotangent),
        ]

    def perform(self, node, inputs, outputs):
        input, filters, output_gradient = inputs
        check_conv2d_shapes(self, input.shape, filters.shape, output_gradient.shape)
        gradients = [
            np.tensordot(gradient, windows, axes=([0, 2, 3], [0, 2, 3]))
            for gradient, windows in zip(
                self._groups(output_gradient, 1), self._groups(self._windows(input, filters), 1), strict=True
            )
        ]
        outputs[0][0] = np.ascontiguousarray(self._flipped(np.concatenate(gradients)))


class Conv2dGradInput(_ConvOp):
    """Gradient of `Conv2d` with respect to the input, of which only the shape is used."""

    linear_in = (1, 2)

    def make_node(self, input, filters, output_gradient):
        return Apply(self, [input, filters, output_gradient], [input.type()])

    def infer_shape(self, *args):
        *_, node, [input_shape, _filters_shape, _output_shape] = args
        return [input_shape]

    def pullback(self, inputs, outputs, cotangents):
        _input, filters, output_gradient = inputs
        [input_cotangent] = cotangents
        return [
            disconnected_type(),
            self._like(Conv2dGradFilters)(input_cotangent, filters, output_gradient),
            self._like(Conv2d)(input_cotangent, filters),
        ]

    def perform(self, node, inputs, outputs):
        input, filters, output_gradient = inputs
        check_conv2d_shapes(self, input.shape, filters.shape, output_gradient.shape)
        pads = self._pads(filters)
        padded = np.zeros(
            (*input.shape[:2], *(n + sum(p) for n, p in zip(input.shape[2:], pads, strict=True))), input.dtype
        )
        weights = self._groups(self._flipped(filters), 0)
        gradients = self._groups(output_gradient, 1)
        for row, col in np.ndindex(filters.shape[2:]):
            # The pixels that this weight is multiplied by, over all output positions.
            pixels = (slice(None), slice(None)) + tuple(
                slice(first * dilation, first * dilation + (n - 1) * stride + 1, stride)
                for first, dilation, n, stride in zip(
                    (row, col), self.filter_dilation, output_gradient.shape[2:], self.subsample, strict=True
                )
            )
            padded[pixels] += np.concatenate(
                [
                    np.tensordot(gradient, group[:, :, row, col], axes=([1], [0])).transpose(0, 3, 1, 2)
                    for gradient, group in zip(gradients, weights, strict=True)
                ],
                axis=1,
            )
        inside = tuple(slice(p[0], p[0] + n) for p, n in zip(pads, input.shape[2:], strict=True))
        outputs[0][0] = np.ascontiguousarray(padded[:, :, *inside])


def conv2d_inputs(input, filters, input_shape, filter_shape, shape_name="input_shape", unshared=False):
    """Check the arrays of ``conv2d``, whose docstring describes them; return them in their common data type.

    Messages call ``input_shape`` by its name in the caller, ``shape_name``.
    """
    axes = ("filters", *(("output rows", "output cols") if unshared else ()), "channels", "rows", "cols")
    input = _floating("input", input, ("batch", "channels", "rows", "cols"))
    filters = _floating("filters", filters, axes)
    input = apply_shape_hint(shape_name, input, input_shape)
    filters = apply_shape_hint("filter_shape", filters, filter_shape)
    dtype = np.promote_types(input.dtype, filters.dtype).name
    return cast(input, dtype), cast(filters, dtype)


def conv2d_op(
    filters,
    border_mode,
    subsample,
    filter_flip=True,
    filter_dilation=(1, 1),
    num_groups=1,
    stride_name="subsample",
):
    """Check the parameters of ``conv2d``, whose docstring describes them; return the Op for these filters.

    Messages call ``subsample`` by its name in the caller, ``stride_name``.
    """
    border_mode = _normal_border_mode(border_mode)
    subsample = _pair_of_ints(stride_name, subsample)
    filter_dilation = _pair_of_ints("filter_dilation", filter_dilation, MAX_ELEMENTS)
    check_positive_integer("num_groups", num_groups, 1)
    check_sizes("num_groups", num_groups, [num_groups])
    pads = conv_pads(border_mode, filters.type.shape[-2:], filter_dilation)
    if None not in pads:
        border_mode = pads
    return Conv2d(border_mode, subsample, bool(filter_flip), filter_dilation, int(num_groups))


def conv2d(
    input, filters, image_shape=None, filter_shape=None, border_mode="valid", subsample=(1, 1), **kwargs
):
    """Convolve, with the signature of ``theano.tensor.nnet.conv``, which the 2015 tutorial imports.

    Parameters
    ----------
    input, filters, filter_shape, border_mode, subsample
        As for `deeplearning_tutorial.nnet.conv2d`.
    image_shape : tuple of (int, constant or None), optional
        The ``input_shape`` of that function.
    **kwargs
        ``unroll_batch`` and others by which Theano chose its algorithm; ignored, with a warning.

    Returns
    -------
    TensorVariable
        Shape ``(batch, filters, rows', cols')``; float64 if either argument is, else float32.

    Raises
    ------
    ValueError, TypeError
        As `deeplearning_tutorial.nnet.conv2d`.

    Warns
    -----
    UserWarning
        If ``kwargs`` are given.
    """
    ignore_old_arguments(kwargs)
    input, filters = conv2d_inputs(input, filters, image_shape, filter_shape, shape_name="image_shape")
    return conv2d_op(filters, border_mode, subsample)(input, filters)


def ignore_old_arguments(arguments):
    """Warn of Theano's arguments that only said how to compute; raise TypeError for unknown ones."""
    for name, value in arguments.items():
        if name in _UNSUPPORTED and value is not None:
            raise ValueError(f"{name}={value!r} is not supported; see input_dilation of conv2d_transpose")
        if name not in _IGNORED | _UNSUPPORTED:
            raise TypeError(f"conv2d() got an unexpected keyword argument {name!r}")
    if arguments:
        warnings.warn(
            f"{', '.join(arguments)}: conv2d chooses how to compute by itself and ignores it; leave it out",
            UserWarning,
            stacklevel=3,
        )


_UNSUPPORTED = {"imshp_logical", "kshp_logical"}
_IGNORED = {
    *("unroll_batch", "unroll_kern", "unroll_patch", "kshp_logical_top_aligned"),
    *("verbose", "version", "direction_hint", "openmp"),
}


def _floating(name, x, axes):
    x = as_tensor_variable(x)
    if x.type.ndim != len(axes):
        raise TypeError(f"{name} has {x.type.ndim} dimensions; conv2d takes {len(axes)}, ({', '.join(axes)})")
    if x.dtype not in ("float32", "float64"):
        raise TypeError(
            f"{name} has dtype {x.dtype}; conv2d takes float32 and float64, so cast {name} to one"
        )
    return x


def _normal_border_mode(border_mode):
    if isinstance(border_mode, str):
        if border_mode in ("half", "full"):
            return border_mode
        if border_mode == "valid":
            border_mode = 0
    pads = (border_mode, border_mode) if is_integer(border_mode) else border_mode
    if isinstance(pads, tuple) and len(pads) == 2:
        pads = tuple((pad, pad) if is_integer(pad) else pad for pad in pads)
        if all(
            isinstance(pad, tuple) and len(pad) == 2 and all(is_integer(n) and n >= 0 for n in pad)
            for pad in pads
        ):
            pads = tuple((int(before), int(after)) for before, after in pads)
            check_sizes("border_mode", border_mode, sum(pads, ()), MAX_ELEMENTS)
            return pads
    raise ValueError(
        f"border_mode={border_mode!r} is not understood; use 'valid', 'half', 'full', an int of at least 0, "
        f"a tuple of two ints, or a tuple of two (before, after) tuples{division_note(border_mode)}"
    )


def _pair_of_ints(name, value, largest=MAX_SIZE):
    if (
        not isinstance(value, (tuple, list))
        or len(value) != 2
        or not all(is_integer(n) and n >= 1 for n in value)
    ):
        raise ValueError(
            f"{name}={value!r} is not a pair of positive integers; use e.g. {name}=(1, 1)"
            f"{division_note(value)}"
        )
    check_sizes(name, value, value, largest)
    return tuple(int(n) for n in value)
