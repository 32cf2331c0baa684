"""Convolution and max-pooling as one Op, which the rewrites put in place of the two.

The full output of the convolution is never written. For each pooling window a mask remembers which positions
held the maximum, so the gradients visit just those.
"""

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.tensor import tensor

from deeplearning_tutorial.nnet.conv import Conv2d, Conv2dGradFilters, Conv2dGradInput
from deeplearning_tutorial.nnet.pool import pool_output_length

MASK_BITS = 16
"""Positions that a window may have at most: one bit of the mask each."""


def plain_conv2d(op_class, filter_flip):
    """Return the Op for border_mode 'valid', stride 1, no dilation, one group."""
    return op_class(((0, 0), (0, 0)), (1, 1), filter_flip, (1, 1), 1)


class _ConvMaxPoolOp(Op):
    def _windows(self, maps, lengths):
        """View (batch, filters, rows, cols) as (batch, filters, rows', cols', positions of a window)."""
        (window_rows, window_cols), (rows, cols) = self.ws, lengths
        whole = maps[:, :, : rows * window_rows, : cols * window_cols]
        split = whole.reshape(*maps.shape[:2], rows, window_rows, cols, window_cols)
        positions = window_rows * window_cols
        return split.transpose(0, 1, 2, 4, 3, 5).reshape(*maps.shape[:2], rows, cols, positions)


class ConvMaxPool(_ConvMaxPoolOp):
    """Compute ``pool_2d(conv2d(input, filters), ws, ignore_border=True)``, plus bias, through tanh.

    Outputs the pooled maps, ``(batch, filters, rows', cols')``, and the masks of the maxima, ``(batch, rows',
    cols', filters)`` of uint16: bit ``r * ws[1] + c`` stands for row r, column c of the window.
    """

    __props__ = ("filter_flip", "ws", "bias", "tanh")

    def __init__(self, filter_flip, ws, bias=False, tanh=False):
        self.filter_flip = filter_flip
        self.ws = ws
        self.bias = bias
        self.tanh = tanh

    def make_node(self, input, filters, *bias):
        batch, n_filters, *lengths = self._output_shape(input.type.shape, filters.type.shape)
        return Apply(
            self,
            [input, filters, *bias],
            [
                tensor(dtype=input.dtype, shape=(batch, n_filters, *lengths)),
                tensor(dtype="uint16", shape=(batch, *lengths, n_filters)),
            ],
        )

    def _output_shape(self, input_shape, filters_shape):
        lengths = [
            None if None in (n, k) else pool_output_length(n - k + 1, window, window, 0, True)
            for n, k, window in zip(input_shape[2:], filters_shape[2:], self.ws, strict=True)
        ]
        return (input_shape[0], filters_shape[0], *lengths)

    def infer_shape(self, *args):
        *_, node, [input_shape, filters_shape, *_bias] = args
        rows, cols = (
            (n - k + 1) // window
            for n, k, window in zip(input_shape[2:], filters_shape[2:], self.ws, strict=True)
        )
        batch, n_filters = input_shape[0], filters_shape[0]
        return [(batch, n_filters, rows, cols), (batch, rows, cols, n_filters)]

    def perform(self, node, inputs, outputs):
        input, filters, *bias = inputs
        maps = _performed(plain_conv2d(Conv2d, self.filter_flip), input, filters)
        windows = self._windows(maps, self._output_shape(input.shape, filters.shape)[2:])
        maxima = windows.max(axis=-1)
        bits = (windows == maxima[..., np.newaxis]) << np.arange(windows.shape[-1])
        if self.bias:
            maxima = maxima + bias[0][:, np.newaxis, np.newaxis]
        outputs[0][0] = np.tanh(maxima) if self.tanh else maxima
        outputs[1][0] = np.ascontiguousarray(bits.sum(axis=-1).astype("uint16").transpose(0, 2, 3, 1))


class _ConvMaxPoolGrad(_ConvMaxPoolOp):
    __props__ = ("filter_flip", "ws")

    def __init__(self, filter_flip, ws):
        self.filter_flip = filter_flip
        self.ws = ws

    def _conv_gradient(self, input, filters, mask, output_gradient):
        """Gradient of the convolution's output: that of each window at the window's maxima, else zero."""
        lengths = [n - k + 1 for n, k in zip(input.shape[2:], filters.shape[2:], strict=True)]
        gradient = np.zeros((len(input), len(filters), *lengths), input.dtype)
        for position, (row, col) in enumerate(np.ndindex(*self.ws)):
            chosen = (mask.transpose(0, 3, 1, 2) >> position) & 1
            rows, cols = mask.shape[1:3]
            here = gradient[:, :, row :: self.ws[0], col :: self.ws[1]][:, :, :rows, :cols]
            here[:] = np.where(chosen, output_gradient, 0)
        return gradient


class ConvMaxPoolGradFilters(_ConvMaxPoolGrad):
    """Gradients with respect to the filters, of which only the shape is used, and to the bias.

    ``output_gradient`` is that of the pooled maps, before bias and tanh.
    """

    def make_node(self, input, filters, mask, output_gradient):
        bias_gradient = tensor(dtype=filters.dtype, shape=filters.type.shape[:1])
        return Apply(self, [input, filters, mask, output_gradient], [filters.type(), bias_gradient])

    def infer_shape(self, *args):
        filters_shape = args[-1][1]
        return [filters_shape, filters_shape[:1]]

    def perform(self, node, inputs, outputs):
        gradient = self._conv_gradient(*inputs)
        op = plain_conv2d(Conv2dGradFilters, self.filter_flip)
        outputs[0][0] = _performed(op, *inputs[:2], gradient)
        outputs[1][0] = inputs[3].sum(axis=(0, 2, 3))


class ConvMaxPoolGradInput(_ConvMaxPoolGrad):
    """Gradient with respect to the input, of which only the shape is used.

    ``output_gradient`` is that of the pooled maps, before bias and tanh.
    """

    def make_node(self, input, filters, mask, output_gradient):
        return Apply(self, [input, filters, mask, output_gradient], [input.type()])

    def infer_shape(self, *args):
        return [args[-1][0]]

    def perform(self, node, inputs, outputs):
        gradient = self._conv_gradient(*inputs)
        op = plain_conv2d(Conv2dGradInput, self.filter_flip)
        outputs[0][0] = _performed(op, *inputs[:2], gradient)


def _performed(op, *arrays):
    storage = [[None]]
    op.perform(None, arrays, storage)
    return storage[0][0]
