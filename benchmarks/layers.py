"""Single layers as real networks have them, forward and both gradients, beside PyTorch.

Each contender computes one thing at a time of the same numbers: the output, or the gradient with respect to
the filters or the input, for a given gradient of the output.
"""

from typing import NamedTuple

import numpy as np

from benchmarks.contenders import CHANNELS_LAST, OURS, PLAIN

BATCH = 32
CONTENDERS = (OURS, PLAIN, CHANNELS_LAST)


class Layer(NamedTuple):
    """A convolution, or with a window instead of filters a pooling, and what to compute of it."""

    input_shape: tuple
    filter_shape: tuple = ()
    border_mode: object = "valid"
    subsample: tuple = (1, 1)
    filter_dilation: tuple = (1, 1)
    num_groups: int = 1
    window: tuple = ()
    pool_mode: str = ""
    what: str = "forward"
    floatX: str = "float32"

    def passes(self):
        """Return the layer once for each thing to compute."""
        what = ("forward", "input") if self.window else ("forward", "filters", "input")
        return [self._replace(what=one) for one in what]

    def arrays(self):
        """Draw input, filters and output gradient; positive, to have no element of a result near zero."""
        rng = np.random.default_rng(1)
        shapes = [self.input_shape, self.filter_shape, self._output_shape()]
        return [rng.uniform(0.5, 1, shape).astype(self.floatX) for shape in shapes]

    def pads(self):
        """Return the padding of rows and columns."""
        if self.border_mode == "valid":
            return (0, 0)
        return tuple(
            ((n - 1) * d + 1) // 2 for n, d in zip(self.filter_shape[2:], self.filter_dilation, strict=True)
        )

    def _output_shape(self):
        if self.window:
            pairs = zip(self.input_shape[2:], self.window, self.subsample, strict=True)
            return (*self.input_shape[:2], *((n - w) // s + 1 for n, w, s in pairs))
        sizes = zip(
            self.input_shape[2:], self.pads(), self.filter_shape[2:], self.filter_dilation, self.subsample,
            strict=True,
        )  # fmt: skip
        lengths = ((n + 2 * p - (k - 1) * d - 1) // s + 1 for n, p, k, d, s in sizes)
        return (self.input_shape[0], self.filter_shape[0], *lengths)


LAYERS = {
    "11 x 11, stride 4": Layer((BATCH, 3, 227, 227), (96, 3, 11, 11), subsample=(4, 4)),
    "3 x 3, half": Layer((BATCH, 64, 56, 56), (64, 64, 3, 3), "half"),
    "1 x 1": Layer((BATCH, 256, 28, 28), (64, 256, 1, 1)),
    "5 x 5, half, 2 groups": Layer((BATCH, 96, 27, 27), (256, 48, 5, 5), "half", num_groups=2),
    "depthwise 3 x 3, half": Layer((BATCH, 128, 28, 28), (128, 1, 3, 3), "half", num_groups=128),
    "3 x 3, half, dilation 2": Layer((BATCH, 64, 28, 28), (64, 64, 3, 3), "half", filter_dilation=(2, 2)),
    "maximum of 3 x 3, stride 2": Layer(
        (BATCH, 96, 55, 55), window=(3, 3), subsample=(2, 2), pool_mode="max"
    ),
    "average of 2 x 2": Layer(
        (BATCH, 64, 56, 56), window=(2, 2), subsample=(2, 2), pool_mode="average_exc_pad"
    ),
}


def task(name, layer):
    """Return a function without arguments that computes what ``layer`` says and returns one element of it."""
    arrays = layer.arrays()
    return _ours(layer, *arrays) if name == OURS else _pytorchs(layer, *arrays, name == CHANNELS_LAST)


def _ours(layer, x, w, g):
    import pytensor
    import pytensor.tensor as pt

    from deeplearning_tutorial.nnet import conv2d, pool_2d

    pytensor.config.floatX = layer.floatX
    symbols = [pt.tensor(dtype=layer.floatX, shape=array.shape) for array in (x, w, g)]
    input, filters, output_gradient = symbols
    if layer.window:
        y = pool_2d(input, layer.window, ignore_border=True, stride=layer.subsample, mode=layer.pool_mode)
    else:
        y = conv2d(
            input, filters, None, None, layer.border_mode, layer.subsample, True, None,
            layer.filter_dilation, layer.num_groups,
        )  # fmt: skip
    wrt = {"filters": filters, "input": input}.get(layer.what)
    result = y if wrt is None else pytensor.grad(None, wrt, known_grads={y: output_gradient})
    inputs = [pytensor.In(symbol, borrow=True) for symbol in symbols]
    f = pytensor.function(inputs, pytensor.Out(result, borrow=True), on_unused_input="ignore")
    return lambda index: f(x, w, g)[0, 0, 0, 0]


def _pytorchs(layer, x, w, g, channels_last):
    import torch
    from torch import nn

    layout = torch.channels_last if channels_last else torch.contiguous_format
    # Not flipped: with filters that are flipped it is a convolution too.
    flipped = w[:, :, ::-1, ::-1].copy() if w.ndim == 4 else w
    x, w, g = (torch.from_numpy(array) for array in (x, flipped, g))
    x, g = (tensor.contiguous(memory_format=layout) for tensor in (x, g))
    wrt = {"filters": w, "input": x}.get(layer.what)
    if wrt is not None:
        wrt.requires_grad_()
    if not layer.window:
        w = w.contiguous(memory_format=layout)

    def output():
        if layer.pool_mode == "max":
            return nn.functional.max_pool2d(x, layer.window, layer.subsample)
        if layer.window:
            return nn.functional.avg_pool2d(x, layer.window, layer.subsample)
        return nn.functional.conv2d(
            x, w, None, layer.subsample, layer.pads(), layer.filter_dilation, layer.num_groups
        )

    if wrt is None:
        return lambda index: output()[0, 0, 0, 0]
    y = output()
    last = (-1, -1) if layer.what == "filters" else (0, 0)
    return lambda index: torch.autograd.grad(y, wrt, g, retain_graph=True)[0][0, 0, *last]
