"""Pooling over the last two axes: the Ops, their gradients and ``pool_2d``.

The Ops' ``perform`` methods are the reference implementation, in NumPy.
"""

import warnings

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import disconnected_type
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.op import Op
from pytensor.tensor import as_tensor_variable, tensor

MODES = ("max", "sum", "average_inc_pad", "average_exc_pad")


def pool_output_length(length, window, stride, pad, ignore_border):
    """Windows along one axis of ``length`` elements; all arguments are ints."""
    if ignore_border:
        return max(0, (length + 2 * pad - window) // stride + 1)
    if stride >= window:
        return (length - 1) // stride + 1
    return max(0, (length - 1 - window + stride) // stride) + 1


class _PoolOp(Op):
    """What pooling and its gradients share: window, stride and padding, fixed or given as inputs.

    ``ws``, ``stride`` and ``pad`` are pairs of ints, or all None: then they are the last three inputs,
    int64 vectors of two elements.
    """

    def _geometry(self, inputs):
        """(window, stride, pad) per axis."""
        ws, stride, pad = (self.ws, self.stride, self.pad) if self.ws is not None else inputs[-3:]
        return [tuple(int(n) for n in values) for values in zip(ws, stride, pad, strict=True)]

    def _disconnected_geometry(self):
        return [] if self.ws is not None else [disconnected_type() for _ in range(3)]

    def _connection(self, *connected):
        return [[value] for value in connected] + ([] if self.ws is not None else [[False]] * 3)

    def _output_lengths(self, lengths, inputs):
        return tuple(
            pool_output_length(length, *geometry, self.ignore_border)
            for length, geometry in zip(lengths, self._geometry(inputs), strict=True)
        )

    def _elements(self, x, fill, inputs, out_lengths):
        """Yield, for each element of the window, the slice of padded x that holds it for every window.

        Yields (slices into ``padded``, padded); ``padded`` is x with ``fill`` around it, wide enough that the
        last windows are whole. Adding to a slice of it walks back along the same path.
        """
        geometry = self._geometry(inputs)
        widths = [
            (pad, max(0, (n - 1) * stride + window - length - pad))
            for length, n, (window, stride, pad) in zip(x.shape[-2:], out_lengths, geometry, strict=True)
        ]
        padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + widths, constant_values=fill)
        slices = [
            (
                ...,
                *(
                    slice(first, first + (n - 1) * stride + 1, stride) if n else slice(0)
                    for first, n, (_, stride, _) in zip(element, out_lengths, geometry, strict=True)
                ),
            )
            for element in np.ndindex(*(window for window, _, _ in geometry))
        ]
        inside = (..., *(slice(p, p + n) for (p, _), n in zip(widths, x.shape[-2:], strict=True)))
        return padded, slices, inside


class Pool(_PoolOp):
    """Pool ``(..., rows, cols)`` to ``(..., rows', cols')``."""

    __props__ = ("mode", "ignore_border", "ws", "stride", "pad")

    def __init__(self, mode, ignore_border, ws=None, stride=None, pad=None):
        self.mode = mode
        self.ignore_border = ignore_border
        self.ws = ws
        self.stride = stride
        self.pad = pad

    def make_node(self, x, *geometry):
        lengths = (None, None)
        if self.ws is not None:
            lengths = [
                None if n is None else pool_output_length(n, *values, self.ignore_border)
                for n, values in zip(x.type.shape[-2:], self._geometry(()), strict=True)
            ]
        return Apply(self, [x, *geometry], [tensor(dtype=x.dtype, shape=(*x.type.shape[:-2], *lengths))])

    def infer_shape(self, *args):
        *_, node, shapes = args
        lengths = [
            _symbolic_output_length(length, *geometry, self.ignore_border)
            for length, geometry in zip(
                shapes[0][-2:],
                self._geometry(())
                if self.ws is not None
                else [[v[axis] for v in node.inputs[1:]] for axis in (0, 1)],
                strict=True,
            )
        ]
        return [(*shapes[0][:-2], *lengths)]

    def connection_pattern(self, node):
        return self._connection(True)

    def pullback(self, inputs, outputs, cotangents):
        x, *geometry = inputs
        if self.mode == "max":
            op = MaxPoolGrad(self.ignore_border, self.ws, self.stride, self.pad)
            gradient = op(x, outputs[0], cotangents[0], *geometry)
        else:
            op = AveragePoolGrad(self.mode, self.ignore_border, self.ws, self.stride, self.pad)
            gradient = op(x, cotangents[0], *geometry)
        return [gradient, *self._disconnected_geometry()]

    def perform(self, node, inputs, outputs):
        x = inputs[0]
        lengths = self._output_lengths(x.shape[-2:], inputs)
        fill = -np.inf if self.mode == "max" else 0
        padded, elements, _ = self._elements(x, fill, inputs, lengths)
        pooled = np.full((*x.shape[:-2], *lengths), fill, x.dtype)
        combine = np.maximum if self.mode == "max" else np.add
        for element in elements:
            pooled = combine(pooled, padded[element])
        if self.mode.startswith("average"):
            pooled /= self._window_sizes(x, inputs, lengths)
        outputs[0][0] = pooled

    def _window_sizes(self, x, inputs, lengths):
        """Elements by which each window's sum is divided: (rows', cols')."""
        return _window_sizes(self, x, inputs, lengths)


def _window_sizes(op, x, inputs, lengths):
    if op.mode == "average_inc_pad" and op.ignore_border:
        return np.asarray(np.prod([window for window, _, _ in op._geometry(inputs)]), x.dtype)
    padded, elements, _ = op._elements(np.ones(x.shape[-2:], x.dtype), 0, inputs, lengths)
    return sum(padded[element] for element in elements)


class AveragePoolGrad(_PoolOp):
    """Gradient of `Pool` in the modes that sum, with respect to x, of which only the shape is used."""

    __props__ = ("mode", "ignore_border", "ws", "stride", "pad")

    def __init__(self, mode, ignore_border, ws=None, stride=None, pad=None):
        self.mode = mode
        self.ignore_border = ignore_border
        self.ws = ws
        self.stride = stride
        self.pad = pad

    def make_node(self, x, output_gradient, *geometry):
        return Apply(self, [x, output_gradient, *geometry], [x.type()])

    def infer_shape(self, *args):
        *_, node, shapes = args
        return [shapes[0]]

    def connection_pattern(self, node):
        return self._connection(False, True)

    def pullback(self, inputs, outputs, cotangents):
        _x, _output_gradient, *geometry = inputs
        op = Pool(self.mode, self.ignore_border, self.ws, self.stride, self.pad)
        return [disconnected_type(), op(cotangents[0], *geometry), *self._disconnected_geometry()]

    def perform(self, node, inputs, outputs):
        x, output_gradient = inputs[:2]
        lengths = output_gradient.shape[-2:]
        if self.mode.startswith("average"):
            output_gradient = output_gradient / _window_sizes(self, x, inputs, lengths)
        padded, elements, inside = self._elements(np.zeros_like(x), 0, inputs, lengths)
        for element in elements:
            padded[element] += output_gradient
        outputs[0][0] = np.ascontiguousarray(padded[inside])


class MaxPoolGrad(_PoolOp):
    """Gradient of max-pooling: each element equal to its window's maximum receives the window's gradient.

    Where windows overlap the gradients add up. A NaN equals nothing, so a window with a NaN passes none on.
    """

    __props__ = ("ignore_border", "ws", "stride", "pad")

    def __init__(self, ignore_border, ws=None, stride=None, pad=None):
        self.ignore_border = ignore_border
        self.ws = ws
        self.stride = stride
        self.pad = pad

    def make_node(self, x, maxima, output_gradient, *geometry):
        return Apply(self, [x, maxima, output_gradient, *geometry], [x.type()])

    def infer_shape(self, *args):
        *_, node, shapes = args
        return [shapes[0]]

    def connection_pattern(self, node):
        # The choice of the maxima does not change with x or with their values, but at ties.
        return self._connection(True, True, True)

    def pullback(self, inputs, outputs, cotangents):
        x, maxima, _output_gradient, *geometry = inputs
        op = MaxPoolGradGrad(self.ignore_border, self.ws, self.stride, self.pad)
        return [
            x.zeros_like(),
            maxima.zeros_like(),
            op(x, maxima, cotangents[0], *geometry),
            *self._disconnected_geometry(),
        ]

    def perform(self, node, inputs, outputs):
        x, maxima, output_gradient = inputs[:3]
        lengths = maxima.shape[-2:]
        padded, elements, inside = self._elements(x, np.nan, inputs, lengths)
        gradient = np.zeros_like(padded)
        for element in elements:
            gradient[element] += np.where(padded[element] == maxima, output_gradient, 0)
        outputs[0][0] = np.ascontiguousarray(gradient[inside])


class MaxPoolGradGrad(_PoolOp):
    """Gradient of `MaxPoolGrad` with respect to its output_gradient: sum over each window's maxima."""

    __props__ = ("ignore_border", "ws", "stride", "pad")

    def __init__(self, ignore_border, ws=None, stride=None, pad=None):
        self.ignore_border = ignore_border
        self.ws = ws
        self.stride = stride
        self.pad = pad

    def make_node(self, x, maxima, cotangent, *geometry):
        return Apply(self, [x, maxima, cotangent, *geometry], [maxima.type()])

    def infer_shape(self, *args):
        *_, node, shapes = args
        return [shapes[1]]

    def connection_pattern(self, node):
        return self._connection(True, True, True)

    def pullback(self, inputs, outputs, cotangents):
        x, maxima, _cotangent, *geometry = inputs
        op = MaxPoolGrad(self.ignore_border, self.ws, self.stride, self.pad)
        return [
            x.zeros_like(),
            maxima.zeros_like(),
            op(x, maxima, cotangents[0], *geometry),
            *self._disconnected_geometry(),
        ]

    def perform(self, node, inputs, outputs):
        x, maxima, cotangent = inputs[:3]
        padded, elements, _ = self._elements(x, np.nan, inputs, maxima.shape[-2:])
        padded_cotangent, _, _ = self._elements(cotangent, 0, inputs, maxima.shape[-2:])
        total = np.zeros_like(maxima)
        for element in elements:
            total += np.where(padded[element] == maxima, padded_cotangent[element], 0)
        outputs[0][0] = total


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
    ws : tuple of int, or integer vector
        Rows and columns of the window.
    ignore_border : bool
        True drops a rest that is smaller than the window, False pools it too. None means False, and warns.
    stride : tuple of int, or integer vector, optional
        Distance between windows, by rows and columns; ``ws`` if not given, so that windows do not overlap.
    pad : tuple of int, or integer vector
        Rows above and below and columns left and right that are added to ``input``. They never are a
        maximum, and only 'average_inc_pad' counts them.
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
        If there is no window, an old and a new name are given together, ``mode`` is unknown, or a window or
        stride is smaller than 1 or padding smaller than 0.
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
    ws = _one_name("ws", ws, None, "ds", ds)
    stride = _one_name("stride", stride, None, "st", st)
    pad = _one_name("pad", pad, (0, 0), "padding", padding)
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
            "ignore_border=None means False: the rest at the border is pooled; say which you want",
            UserWarning,
            stacklevel=2,
        )
        ignore_border = False
    ignore_border = bool(ignore_border)
    ws = _parameter("ws", ws, 1)
    stride = ws if stride is None else _parameter("stride", stride, 1)
    pad = _parameter("pad", pad, 0)
    if any(isinstance(value, Variable) for value in (ws, stride, pad)):
        return Pool(mode, ignore_border)(
            x, *(pt.cast(as_tensor_variable(v), "int64") for v in (ws, stride, pad))
        )
    if pad != (0, 0) and not ignore_border:
        raise NotImplementedError(
            f"pad={pad} with ignore_border=False is not supported; use ignore_border=True"
        )
    if any(p >= w for p, w in zip(pad, ws, strict=True)):
        raise NotImplementedError(f"pad={pad} is not smaller than the window ws={ws}; use less padding")
    return Pool(mode, ignore_border, ws, stride, pad)(x)


def _one_name(name, value, default, old_name, old_value):
    if old_value is None:
        return value
    if value is not default and value != default:
        raise ValueError(
            f"{name}={value!r} and {old_name}={old_value!r} are two names of one argument; use {name}"
        )
    return old_value


def _parameter(name, value, minimum):
    """Return a pair of ints, or an integer vector where ``value`` is symbolic."""
    if isinstance(value, Variable):
        if value.type.ndim != 1 or value.dtype not in pt.type.integer_dtypes:
            raise TypeError(f"{name} is {value.type}; use a vector of two integers")
        return value
    if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != 2:
        raise ValueError(f"{name}={value!r} is not a pair; use e.g. {name}=({minimum}, {minimum})")
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in value):
        raise TypeError(
            f"{name}={value!r} holds something else than integers; use e.g. {name}=({minimum}, {minimum})"
        )
    if any(n < minimum for n in value):
        raise ValueError(
            f"{name}={value!r} is smaller than {minimum}; use e.g. {name}=({minimum}, {minimum})"
        )
    return tuple(int(n) for n in value)


def _symbolic_output_length(length, window, stride, pad, ignore_border):
    """`pool_output_length` where any argument may be symbolic."""
    if all(isinstance(value, int) for value in (length, window, stride, pad)):
        return pool_output_length(length, window, stride, pad, ignore_border)
    if ignore_border:
        return pt.maximum(0, (length + 2 * pad - window) // stride + 1)
    return pt.switch(
        pt.ge(stride, window),
        (length - 1) // stride + 1,
        pt.maximum(0, (length - 1 - window + stride) // stride) + 1,
    )
