"""A small convolution, with an input, for the tests of layers."""

import numpy as np
import pytensor.tensor as pt
from pytensor.compile.mode import Mode

from deeplearning_tutorial.layers.activations import ACTIVATIONS
from deeplearning_tutorial.layers.convolution import Convolution

# Small graphs are evaluated Op by Op, without compiling.
PLAIN = Mode(linker="py", optimizer=None)
FILTER_SHAPE, IMAGE_SHAPE = (3, 2, 3, 4), (5, 2, 9, 11)


def windows(maps, size, stride):
    """Every window's elements on the last axis: (batch, maps, rows', cols', elements)."""
    view = np.lib.stride_tricks.sliding_window_view(maps, size, axis=(2, 3))
    view = view[:, :, :: stride[0], :: stride[1]]
    return view.reshape(*view.shape[:4], -1)


def layer(activation="tanh", **options):
    x = pt.tensor4("x")
    made = Convolution(
        np.random.RandomState(5), x, FILTER_SHAPE, IMAGE_SHAPE, ACTIVATIONS[activation], **options
    )
    made.b.set_value(np.array([0.3, -0.2, 0.1]))
    return x, made


def images(seed=6):
    return np.random.default_rng(seed).normal(size=IMAGE_SHAPE)
