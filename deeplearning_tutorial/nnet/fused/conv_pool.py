"""Convolution and max-pooling as one Op, with which a rewrite replaces the two.

The full output of the convolution is never written. For each position of each pooling window a mask records
which filters have their maximum there, so the gradients visit only those.
"""

from math import prod

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.tensor import tensor

from deeplearning_tutorial.nnet.conv import Conv2d, Conv2dGradFilters, Conv2dGradInput
from deeplearning_tutorial.nnet.pool import pool_output_length
from deeplearning_tutorial.nnet.sizes import check_shape

MAX_POSITIONS = 16
"""The largest number of positions in a window: the kernels hold them all in registers."""

WORD_BITS = 64
"""Number of filters in a word of the mask."""


def plain_conv2d(op_class, filter_flip):
    """Return the Op for border_mode 'valid', stride 1, no dilation, one group."""
    return op_class(((0, 0), (0, 0)), (1, 1), filter_flip, (1, 1), 1)


class _ConvMaxPoolOp(Op):
    def _output_shape(self, input_shape, filters_shape):
        lengths = [
            None if None in (n, k) else pool_output_length(n - k + 1, window, window, 0, True)
            for n, k, window in zip(input_shape[2:], filters_shape[2:], self.ws, strict=True)
        ]
        return (input_shape[0], filters_shape[0], *lengths)

    def _windows(self, maps, lengths):
        """Return (batch, filters, rows, cols) as (batch, filters, rows', cols', positions of a window)."""
        (window_rows, window_cols), (rows, cols) = self.ws, lengths
        whole = maps[:, :, : rows * window_rows, : cols * window_cols]
        split = whole.reshape(*maps.shape[:2], rows, window_rows, cols, window_cols)
        positions = window_rows * window_cols
        return split.transpose(0, 1, 2, 4, 3, 5).reshape(*maps.shape[:2], rows, cols, positions)


class ConvMaxPool(_ConvMaxPoolOp):
    """Compute ``pool_2d(conv2d(input, filters), ws, ignore_border=True)``, plus bias, through tanh.

    Outputs the pooled maps, ``(batch, filters, rows', cols')``, and the masks of the maxima, ``(batch, rows',
    cols', ws[0] * ws[1], words)`` of uint64: position ``r * ws[1] + c`` is row r, column c of the window, and
    bit f of word w stands for filter ``64 * w + f``.
    """

    __props__ = ("filter_flip", "ws", "bias", "tanh")

    def __init__(self, filter_flip, ws, bias=False, tanh=False):
        self.filter_flip = filter_flip
        self.ws = ws
        self.bias = bias
        self.tanh = tanh

    def make_node(self, input, filters, *bias):
        batch, n_filters, *lengths = self._output_shape(input.type.shape, filters.type.shape)
        words = None if n_filters is None else mask_words(n_filters)
        return Apply(
            self,
            [input, filters, *bias],
            [
                tensor(dtype=input.dtype, shape=(batch, n_filters, *lengths)),
                tensor(dtype="uint64", shape=(batch, *lengths, prod(self.ws), words)),
            ],
        )

    def infer_shape(self, *args):
        *_, node, [input_shape, filters_shape, *_bias] = args
        rows, cols = (
            (n - k + 1) // window
            for n, k, window in zip(input_shape[2:], filters_shape[2:], self.ws, strict=True)
        )
        batch, n_filters = input_shape[0], filters_shape[0]
        return [(batch, n_filters, rows, cols), (batch, rows, cols, prod(self.ws), mask_words(n_filters))]

    def perform(self, node, inputs, outputs):
        input, filters, *bias = inputs
        maps = _performed(plain_conv2d(Conv2d, self.filter_flip), input, filters)
        windows = self._windows(maps, self._output_shape(input.shape, filters.shape)[2:])
        maxima = windows.max(axis=-1)
        is_maximum = (windows == maxima[..., np.newaxis]).transpose(0, 2, 3, 4, 1)
        if self.bias:
            check_shape("bias", bias[0].shape, filters.shape[:1])
            maxima = maxima + bias[0][:, np.newaxis, np.newaxis]
        outputs[0][0] = np.tanh(maxima) if self.tanh else maxima
        outputs[1][0] = _as_words(is_maximum)


class _ConvMaxPoolGrad(_ConvMaxPoolOp):
    """Takes ``output_gradient``, the gradient of the pooled maps before the bias.

    With ``tanh`` it is the gradient of `ConvMaxPool`'s output after tanh; that output is then an input, too.
    """

    __props__ = ("filter_flip", "ws", "tanh")

    def __init__(self, filter_flip, ws, tanh=False):
        self.filter_flip = filter_flip
        self.ws = ws
        self.tanh = tanh

    def _check_shapes(self, input, filters, mask, *outputs):
        batch, n_filters, rows, cols = self._output_shape(input.shape, filters.shape)
        check_shape("mask", mask.shape, (batch, rows, cols, prod(self.ws), mask_words(n_filters)))
        for name, array in zip(("output_gradient", "output"), outputs, strict=False):
            check_shape(name, array.shape, (batch, n_filters, rows, cols))

    def _pooled_gradient(self, output_gradient, output=None):
        return output_gradient * (1 - output**2) if self.tanh else output_gradient

    def _conv_gradient(self, input, filters, mask, pooled_gradient):
        """Return the gradient of the convolution's output: each window's at its maxima, zero elsewhere."""
        lengths = [n - k + 1 for n, k in zip(input.shape[2:], filters.shape[2:], strict=True)]
        gradient = np.zeros((len(input), len(filters), *lengths), input.dtype)
        is_maximum = _from_words(mask, len(filters)).transpose(3, 0, 4, 1, 2)
        rows, cols = mask.shape[1:3]
        for (row, col), selected in zip(np.ndindex(*self.ws), is_maximum, strict=True):
            part = gradient[:, :, row :: self.ws[0], col :: self.ws[1]][:, :, :rows, :cols]
            part[:] = np.where(selected, pooled_gradient, 0)
        return gradient


class ConvMaxPoolGradFilters(_ConvMaxPoolGrad):
    """Gradients with respect to the filters, of which only the shape is used, and to the bias."""

    def make_node(self, input, filters, mask, output_gradient, *output):
        bias_gradient = tensor(dtype=filters.dtype, shape=filters.type.shape[:1])
        return Apply(self, [input, filters, mask, output_gradient, *output], [filters.type(), bias_gradient])

    def infer_shape(self, *args):
        filters_shape = args[-1][1]
        return [filters_shape, filters_shape[:1]]

    def perform(self, node, inputs, outputs):
        self._check_shapes(*inputs)
        input, filters, mask, *output = inputs
        pooled_gradient = self._pooled_gradient(*output)
        gradient = self._conv_gradient(input, filters, mask, pooled_gradient)
        op = plain_conv2d(Conv2dGradFilters, self.filter_flip)
        outputs[0][0] = _performed(op, input, filters, gradient)
        outputs[1][0] = pooled_gradient.sum(axis=(0, 2, 3))


class ConvMaxPoolGradInput(_ConvMaxPoolGrad):
    """Gradient with respect to the input, of which only the shape is used."""

    def make_node(self, input, filters, mask, output_gradient, *output):
        return Apply(self, [input, filters, mask, output_gradient, *output], [input.type()])

    def infer_shape(self, *args):
        return [args[-1][0]]

    def perform(self, node, inputs, outputs):
        self._check_shapes(*inputs)
        input, filters, mask, *output = inputs
        gradient = self._conv_gradient(input, filters, mask, self._pooled_gradient(*output))
        op = plain_conv2d(Conv2dGradInput, self.filter_flip)
        outputs[0][0] = _performed(op, input, filters, gradient)


def mask_words(n_filters):
    """Return the number of words of a mask for ``n_filters``."""
    return (n_filters + WORD_BITS - 1) // WORD_BITS


def _as_words(booleans):
    """Pack booleans, one for each filter in the last axis, into words."""
    n_bytes = mask_words(booleans.shape[-1]) * (WORD_BITS // 8)
    packed = np.packbits(booleans, axis=-1, bitorder="little")
    padded = np.zeros((*booleans.shape[:-1], n_bytes), np.uint8)
    padded[..., : packed.shape[-1]] = packed
    return padded.view("<u8").astype(np.uint64, copy=False)


def _from_words(mask, n_filters):
    words = np.ascontiguousarray(mask, "<u8")
    return np.unpackbits(words.view(np.uint8), axis=-1, count=n_filters, bitorder="little")


def _performed(op, *arrays):
    storage = [[None]]
    op.perform(None, arrays, storage)
    return storage[0][0]
