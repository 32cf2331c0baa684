"""Pooling over the last two axes: the Ops, their gradients and ``pool_2d``.

The Ops' ``perform`` methods are the reference implementation, in NumPy.
"""

import math
import warnings
from itertools import product

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType, disconnected_type
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.op import Op
from pytensor.tensor import as_tensor_variable, tensor

from deeplearning_tutorial.nnet.integers import division_note, folded_tuple, is_integer
from deeplearning_tutorial.nnet.sizes import check_shape, check_sizes

MODES = ("max", "sum", "average_inc_pad", "average_exc_pad")


def pool_output_length(length, window, stride, pad, ignore_border):
    """Return the number of windows along one axis of ``length`` elements; all arguments are ints."""
    if ignore_border:
        # In this order no sum of int64 overflows.
        return max(0, (length - window + pad + pad) // stride + 1)
    if stride >= window:
        return (length - 1) // stride + 1
    return max(0, (length - 1 - window + stride) // stride) + 1


def symbolic_pool_output_length(length, window, stride, pad, ignore_border):
    """Return `pool_output_length`; any argument except ``ignore_border`` may be symbolic."""
    if ignore_border:
        return pt.maximum(0, (length - window + pad + pad) // stride + 1)
    apart = (length - 1) // stride + 1
    overlapping = pt.maximum(0, (length - 1 - window + stride) // stride) + 1
    if isinstance(stride, Variable) or isinstance(window, Variable):
        return pt.switch(pt.ge(stride, window), apart, overlapping)
    return apart if stride >= window else overlapping


def clip_windows(length, n_windows, window, stride, pad):
    """Return the shortest (window, stride, pad) along one axis whose windows cover the same elements.

    All are ints. The end of the first window and the start of the last one do not change. If strides are
    longer than the map, the windows between these two cover all of it.
    """
    if n_windows == 0:
        return 1, 1, 0
    length = max(1, length)
    first_end, last_start = min(length, window - pad), max(0, (n_windows - 1) * stride - pad)
    stride = min(stride, length)
    pad = (n_windows - 1) * stride - last_start
    return first_end + pad, stride, pad


def check_pool_geometry(ignore_border, ws, stride, pad):
    """Raise if window, stride and padding, pairs of ints or None if unknown, do not fit each other."""
    for name, values, least in (("ws", ws, 1), ("stride", stride, 1), ("pad", pad, 0)):
        if values is not None and min(values) < least:
            raise ValueError(f"{name}={values!r} is smaller than {least}; use e.g. {name}=({least}, {least})")
        check_sizes(name, values, values or ())
    if pad is not None and max(pad) > 0 and not ignore_border:
        raise NotImplementedError(
            f"pad={pad} with ignore_border=False is not supported; use ignore_border=True"
        )
    if ws is not None and pad is not None and any(p >= w for p, w in zip(pad, ws, strict=True)):
        raise NotImplementedError(f"pad={pad} is not smaller than the window ws={ws}; use less padding")


def window_layout(lengths, out_lengths, geometry):
    """Locate every window, and the padding that makes each of them whole.

    Parameters
    ----------
    lengths, out_lengths : sequence of two ints
        Rows and columns of x, and of the windows.
    geometry : sequence of two triples of ints
        (window, stride, pad) per axis.

    Returns
    -------
    widths : list of two pairs of ints
        Lengths of the padding before and after x, per axis.
    elements : list of tuple
        ``padded[elements[k]]`` holds element k of every window, shape ``(..., rows', cols')``.
    inside : tuple
        ``padded[inside]`` is x.
    """
    geometry = [
        clip_windows(length, n, *values)
        for length, n, values in zip(lengths, out_lengths, geometry, strict=True)
    ]
    axes = list(zip(lengths, out_lengths, geometry, strict=True))
    widths = [
        (pad, max(0, (n - 1) * stride + window - length - pad)) for length, n, (window, stride, pad) in axes
    ]
    elements = [
        (
            ...,
            *(
                slice(first, first + (n - 1) * stride + 1, stride) if n else slice(0)
                for first, (_, n, (_, stride, _)) in zip(element, axes, strict=True)
            ),
        )
        for element in product(*(range(window) for window, _, _ in geometry))
    ]
    inside = (..., *(slice(before, before + n) for (before, _), n in zip(widths, lengths, strict=True)))
    return widths, elements, inside


class _PoolOp(Op):
    """What pooling and its gradients share: window, stride and padding, as parameters or as inputs.

    ``ws``, ``stride`` and ``pad`` are pairs of ints, or all None: then they are the last three inputs,
    int64 vectors of two elements. The output is linear in the input number ``linear_in``.
    """

    __props__ = ("ignore_border", "ws", "stride", "pad")

    def __init__(self, ignore_border, ws=None, stride=None, pad=None):
        self.ignore_border = ignore_border
        self.ws = ws
        self.stride = stride
        self.pad = pad

    def connection_pattern(self, node):
        return [[position == self.linear_in] for position in range(len(node.inputs))]

    def pushforward(self, inputs, outputs, tangents):
        tangent = tangents[self.linear_in]
        if isinstance(tangent.type, DisconnectedType):
            return [disconnected_type()]
        return [self(*inputs[: self.linear_in], tangent, *inputs[self.linear_in + 1 :])]

    def _like(self, op_class):
        return op_class(*(getattr(self, name) for name in op_class.__props__))

    def _disconnected_geometry(self):
        return [] if self.ws is not None else [disconnected_type() for _ in range(3)]

    def _geometry(self, inputs):
        """Return (window, stride, pad) per axis."""
        geometry = (self.ws, self.stride, self.pad)
        if self.ws is None:
            for name, vector in zip(("ws", "stride", "pad"), inputs[-3:], strict=True):
                if len(vector) != 2:
                    raise ValueError(f"{name}={vector} has {len(vector)} elements; use a vector of two")
            geometry = tuple(tuple(int(n) for n in vector) for vector in inputs[-3:])
            check_pool_geometry(self.ignore_border, *geometry)
        return list(zip(*geometry, strict=True))

    def output_shape(self, shape, geometry):
        """Return the shape of the pooled maps, for a (window, stride, pad) per axis."""
        lengths = [
            pool_output_length(length, *values, self.ignore_border)
            for length, values in zip(shape[-2:], geometry, strict=True)
        ]
        return (*shape[:-2], *lengths)

    def _padded(self, x, fill, inputs, out_lengths):
        """Pad x with ``fill``; return the result with `window_layout`'s ``elements`` and ``inside``."""
        widths, elements, inside = window_layout(x.shape[-2:], out_lengths, self._geometry(inputs))
        padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + widths, constant_values=fill)
        return padded, elements, inside


class _PoolModeOp(_PoolOp):
    __props__ = ("mode", *_PoolOp.__props__)

    def __init__(self, mode, ignore_border, ws=None, stride=None, pad=None):
        super().__init__(ignore_border, ws, stride, pad)
        self.mode = mode

    def _window_sizes(self, x, inputs, out_lengths):
        """Return the divisors of the windows' sums: a scalar, or an array (rows', cols')."""
        if self.mode == "sum":
            return x.dtype.type(1)
        if self.mode == "average_inc_pad" and self.ignore_border:
            return x.dtype.type(math.prod(float(window) for window, _, _ in self._geometry(inputs)))
        padded, elements, _ = self._padded(np.ones(x.shape[-2:], x.dtype), 0, inputs, out_lengths)
        return sum(padded[element] for element in elements)


class Pool(_PoolModeOp):
    """Pool ``(..., rows, cols)`` to ``(..., rows', cols')``. The maximum of a window with a NaN is NaN."""

    linear_in = 0

    def make_node(self, x, *geometry):
        lengths = (None, None)
        if self.ws is not None:
            lengths = [
                None if n is None else pool_output_length(n, *values, self.ignore_border)
                for n, values in zip(x.type.shape[-2:], self._geometry(()), strict=True)
            ]
        return Apply(self, [x, *geometry], [tensor(dtype=x.dtype, shape=(*x.type.shape[:-2], *lengths))])

    def infer_shape(self, *args):
        *_, node, [shape, *_geometry_shapes] = args
        if self.ws is not None:
            geometry = self._geometry(())
        else:
            geometry = [[vector[axis] for vector in node.inputs[1:]] for axis in (0, 1)]
        lengths = [
            symbolic_pool_output_length(length, *values, self.ignore_border)
            for length, values in zip(shape[-2:], geometry, strict=True)
        ]
        return [(*shape[:-2], *lengths)]

    def pullback(self, inputs, outputs, cotangents):
        x, *geometry = inputs
        if self.mode == "max":
            gradient = self._like(MaxPoolGrad)(x, outputs[0], cotangents[0], *geometry)
        else:
            gradient = self._like(AveragePoolGrad)(x, cotangents[0], *geometry)
        return [gradient, *self._disconnected_geometry()]

    def pushforward(self, inputs, outputs, tangents):
        x, *geometry = inputs
        if self.mode != "max" or isinstance(tangents[0].type, DisconnectedType):
            return super().pushforward(inputs, outputs, tangents)
        return [self._like(MaxPoolGradGrad)(x, outputs[0], tangents[0], *geometry)]

    def perform(self, node, inputs, outputs):
        x = inputs[0]
        shape = self.output_shape(x.shape, self._geometry(inputs))
        combine, fill = (np.maximum, -np.inf) if self.mode == "max" else (np.add, 0)
        padded, elements, _ = self._padded(x, fill, inputs, shape[-2:])
        pooled = np.full(shape, fill, x.dtype)
        for element in elements:
            combine(pooled, padded[element], out=pooled)
        if self.mode != "max":
            pooled /= self._window_sizes(x, inputs, shape[-2:])
        outputs[0][0] = pooled


class AveragePoolGrad(_PoolModeOp):
    """Gradient of `Pool` in the modes that sum, with respect to x, of which only the shape is used."""

    linear_in = 1

    def make_node(self, x, output_gradient, *geometry):
        return Apply(self, [x, output_gradient, *geometry], [x.type()])

    def infer_shape(self, *args):
        return [args[-1][0]]

    def pullback(self, inputs, outputs, cotangents):
        _x, _output_gradient, *geometry = inputs
        gradient = self._like(Pool)(cotangents[0], *geometry)
        return [disconnected_type(), gradient, *self._disconnected_geometry()]

    def perform(self, node, inputs, outputs):
        x, output_gradient = inputs[:2]
        shape = self.output_shape(x.shape, self._geometry(inputs))
        check_shape("output_gradient", output_gradient.shape, shape)
        lengths = output_gradient.shape[-2:]
        share = output_gradient / self._window_sizes(x, inputs, lengths)
        gradient, elements, inside = self._padded(np.zeros_like(x), 0, inputs, lengths)
        for element in elements:
            gradient[element] += share
        outputs[0][0] = np.ascontiguousarray(gradient[inside])


class _MaxPoolSelectionOp(_PoolOp):
    """Linear in its third input, of which x selects the elements that are maxima.

    The selection does not change with x, except at ties: x is connected, with a gradient of zero. The maxima
    are a function of x, so nothing is lost by leaving them disconnected.
    """

    linear_in = 2

    def connection_pattern(self, node):
        return [[position in (0, self.linear_in)] for position in range(len(node.inputs))]

    def pullback(self, inputs, outputs, cotangents):
        x, maxima, _linear, *geometry = inputs
        gradient = self._like(self.transposed)(x, maxima, cotangents[0], *geometry)
        return [x.zeros_like(), disconnected_type(), gradient, *self._disconnected_geometry()]

    def pushforward(self, inputs, outputs, tangents):
        if isinstance(tangents[self.linear_in].type, DisconnectedType):
            return [outputs[0].zeros_like()]
        return super().pushforward(inputs, outputs, tangents)


class MaxPoolGrad(_MaxPoolSelectionOp):
    """Gradient of max-pooling: each element equal to its window's maximum receives the window's gradient.

    If windows overlap the gradients add up. A NaN equals nothing, so a window with a NaN has no gradient.
    """

    def make_node(self, x, maxima, output_gradient, *geometry):
        return Apply(self, [x, maxima, output_gradient, *geometry], [x.type()])

    def infer_shape(self, *args):
        return [args[-1][0]]

    def perform(self, node, inputs, outputs):
        x, maxima, output_gradient = inputs[:3]
        shape = self.output_shape(x.shape, self._geometry(inputs))
        check_shape("maxima", maxima.shape, shape)
        check_shape("output_gradient", output_gradient.shape, shape)
        padded, elements, inside = self._padded(x, np.nan, inputs, maxima.shape[-2:])
        gradient = np.zeros_like(padded)
        for element in elements:
            gradient[element] += np.where(padded[element] == maxima, output_gradient, 0)
        outputs[0][0] = np.ascontiguousarray(gradient[inside])


class MaxPoolGradGrad(_MaxPoolSelectionOp):
    """Gradient of `MaxPoolGrad` with respect to its output_gradient: the sum over each window's maxima."""

    def make_node(self, x, maxima, cotangent, *geometry):
        return Apply(self, [x, maxima, cotangent, *geometry], [maxima.type()])

    def infer_shape(self, *args):
        return [args[-1][1]]

    def perform(self, node, inputs, outputs):
        x, maxima, cotangent = inputs[:3]
        check_shape("maxima", maxima.shape, self.output_shape(x.shape, self._geometry(inputs)))
        check_shape("cotangent", cotangent.shape, x.shape)
        padded, elements, _ = self._padded(x, np.nan, inputs, maxima.shape[-2:])
        padded_cotangent, _, _ = self._padded(cotangent, 0, inputs, maxima.shape[-2:])
        total = np.zeros_like(maxima)
        for element in elements:
            total += np.where(padded[element] == maxima, padded_cotangent[element], 0)
        outputs[0][0] = total


MaxPoolGrad.transposed = MaxPoolGradGrad
MaxPoolGradGrad.transposed = MaxPoolGrad


def pool_2d(
    input,
    ws=None,
    ignore_border=None,
    stride=None,
    pad=(0, 0),
    mode="max",
    ds=None,
    st=None,
    padding=None,
):
    """Pool the last two axes.

    Parameters
    ----------
    input : tensor_like
        Two dimensions or more, ``(..., rows, cols)``; float32 or float64.
    ws : tuple of two (int or integer scalar), or integer vector
        Rows and columns of the window.
    ignore_border : bool
        True ignores rows and columns at the border that do not fill a window, False pools them too. None
        means False, with a warning.
    stride : tuple of two (int or integer scalar), or integer vector, optional
        Distance between windows, by rows and columns; ``ws`` if not given, so that windows do not overlap.
    pad : tuple of two (int or integer scalar), or integer vector
        Rows above and below and columns left and right that are added to ``input``; None means none. They
        are never a maximum, and only 'average_inc_pad' counts them.
    mode : {'max', 'sum', 'average_inc_pad', 'average_exc_pad'}
        What to compute of each window.
    ds, st, padding : optional
        Old names of ``ws``, ``stride`` and ``pad``.

    Returns
    -------
    TensorVariable
        Shape ``(..., rows', cols')``, dtype of ``input``; ``rows' = max(0, (rows + 2 * pad - window)
        // stride + 1)`` with ``ignore_border=True``.

    Raises
    ------
    ValueError
        If there is no window, an argument is passed under its old and its new name, ``mode`` is unknown, a
        window or stride is smaller than 1 or padding smaller than 0, or one of them is larger than ``2**62``.
    NotImplementedError
        If ``input`` has fewer than two dimensions, padding comes with ``ignore_border=False``, or padding is
        not smaller than the window.
    TypeError
        If ``input`` is not floating point, or a parameter is not an integer.

    Warns
    -----
    UserWarning
        If ``ignore_border`` is None.

    Notes
    -----
    The semantics are those of Theano 1.0's ``theano.tensor.signal.pool.pool_2d`` on the CPU. The gradient of
    a maximum goes to *every* element of the window that equals it.
    """
    x = as_tensor_variable(input)
    ws = _one_name("ws", ws, "ds", ds)
    stride = _one_name("stride", stride, "st", st)
    pad = _one_name("pad", pad, "padding", padding, default=(0, 0))
    pad = (0, 0) if pad is None else pad
    if ws is None:
        raise ValueError("ws=None: pool_2d needs a window; use e.g. ws=(2, 2)")
    if x.type.ndim < 2:
        raise NotImplementedError(
            f"input has {x.type.ndim} dimensions; pool_2d pools the last two of at least 2"
        )
    if x.dtype not in ("float32", "float64"):
        raise TypeError(f"input has dtype {x.dtype}; pool_2d takes float32 and float64, so cast input to one")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; use one of {', '.join(map(repr, MODES))}")
    if ignore_border is None:
        warnings.warn(
            "ignore_border=None means False: what is left at the border is pooled; use True or False",
            UserWarning,
            stacklevel=2,
        )
        ignore_border = False
    ignore_border = bool(ignore_border)
    ws = _pair("ws", ws)
    stride = ws if stride is None else _pair("stride", stride)
    pad = _pair("pad", pad)
    geometry = (ws, stride, pad)
    known = [None if isinstance(values, Variable) else values for values in geometry]
    check_pool_geometry(ignore_border, *known)
    if None in known:
        return Pool(mode, ignore_border)(x, *(pt.cast(as_tensor_variable(v), "int64") for v in geometry))
    return Pool(mode, ignore_border, *geometry)(x)


def _one_name(name, value, old_name, old_value, default=None):
    if old_value is None:
        return value
    if value is None or (isinstance(value, tuple) and value == default):
        return old_value
    raise ValueError(
        f"{name}={value!r} and {old_name}={old_value!r} are two names of one argument; use {name}"
    )


def _pair(name, value):
    """Return a pair of ints, or an integer vector if ``value`` or one of its elements is symbolic."""
    note = division_note(value)
    if isinstance(value, Variable):
        if value.type.ndim != 1 or value.dtype not in pt.type.integer_dtypes:
            raise TypeError(f"{name} is {value.type}; use a vector of two integers{note}")
        if not isinstance(value, Constant):
            return value
    value = folded_tuple(value)
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"{name}={value!r} is not a pair; use e.g. {name}=(2, 2)")
    symbolic = [_is_symbolic_int(n) for n in value]
    if not all(is_symbolic or is_integer(n) for n, is_symbolic in zip(value, symbolic, strict=True)):
        raise TypeError(f"{name}={value!r} holds something other than integers; use e.g. {name}=(2, 2){note}")
    if any(symbolic):
        return pt.stack([pt.cast(n, "int64") for n in value])
    return tuple(int(n) for n in value)


def _is_symbolic_int(value):
    return isinstance(value, Variable) and value.type.ndim == 0 and value.dtype in pt.type.integer_dtypes
