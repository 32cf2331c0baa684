"""The feature maps of an image in the convolutions and poolings of a LeNet."""

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode

from deeplearning_tutorial.convolutional_mlp import LeNetConvPoolLayer
from deeplearning_tutorial.datasets.formats import N_PIXELS
from deeplearning_tutorial.layers.convolution import Convolution
from deeplearning_tutorial.layers.subsampling import Subsampling
from deeplearning_tutorial.lenet_poolings import LeNetPoolingLayer
from deeplearning_tutorial.nnet import conv2d

# Compiling is not worthwhile for one image; each Op runs in NumPy.
_UNCOMPILED = Mode(linker="py", optimizer=None)
# Two convolutions and their poolings; later maps have a single pixel.
_MAX_LAYERS = 4


def feature_maps(model, image):
    """Compute the feature maps of an image in the first two convolutions and poolings of a trained LeNet.

    Parameters
    ----------
    model : Model
    image : numpy.ndarray
        784 values, each pixel ``byte / 256``.

    Returns
    -------
    dict of str to numpy.ndarray
        "C1", "S2", "C3" and "S4", each of shape ``(feature maps, rows, cols)``: before and after each
        pooling. Values are from -1 to 1 if the activation is tanh and the pooling is max or average. Empty if
        the network has no convolutions.
    """
    with pytensor.config.change_flags(floatX=model.floatX):
        x = pt.matrix("x", shape=(1, N_PIXELS))
        pairs = [pair for layer in model.layers(x).values() for pair in _maps_of(layer)][:_MAX_LAYERS]
        if not pairs:
            return {}
        values = pytensor.function([x], [maps for _, maps in pairs], mode=_UNCOMPILED)(
            np.reshape(image, (1, N_PIXELS)).astype(model.floatX)
        )
    return {f"{kind}{n}": value[0] for n, ((kind, _), value) in enumerate(zip(pairs, values, strict=True), 1)}


def _maps_of(layer):
    """List the maps of a layer: "C" for a convolution, "S" for a pooling."""
    if isinstance(layer, Convolution):
        return [("C", layer.output)]
    if isinstance(layer, Subsampling):
        return [("S", layer.output)]
    if isinstance(layer, LeNetPoolingLayer):
        return [("C", layer.maps), ("S", layer.output)]
    if isinstance(layer, LeNetConvPoolLayer):
        # The layer pools before the bias and tanh, which gives the same values.
        maps = pt.tanh(conv2d(layer.input, layer.W) + layer.b.dimshuffle("x", 0, "x", "x"))
        return [("C", maps), ("S", layer.output)]
    return []
