"""An image on its way through a LeNet: what the convolutions and poolings make of it."""

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode

from deeplearning_tutorial.convolutional_mlp import LeNetConvPoolLayer
from deeplearning_tutorial.formats import N_PIXELS

# One image is not worth compiling for: each Op computes in NumPy.
_UNCOMPILED = Mode(linker="py", optimizer=None)


def feature_maps(model, image):
    """Follow an image through the first two convolutions of a trained LeNet, and their poolings.

    Parameters
    ----------
    model : Model
        Of the script ``convolutional_mlp`` or ``lenet5``.
    image : numpy.ndarray
        784 values, every pixel ``byte / 256``.

    Returns
    -------
    dict of str to numpy.ndarray
        "C1", "S2", "C3" and "S4", each of shape ``(feature maps, rows, cols)``. Values go from -1 to 1 where
        the activation is tanh and pooling takes maxima or averages.

    Notes
    -----
    `LeNetConvPoolLayer` pools first and adds bias and tanh then, which gives S2 and S4. Since tanh rises
    throughout, they equally are the maxima of C1 and C3, which are the same layer without pooling.
    """
    with pytensor.config.change_flags(floatX=model.floatX):
        x = pt.matrix("x", shape=(1, N_PIXELS))
        maps = _lenet5_maps(model, x) if model.script == "lenet5" else _lenet_maps(model, x)
        values = pytensor.function([x], list(maps.values()), mode=_UNCOMPILED)(
            np.reshape(image, (1, N_PIXELS)).astype(model.floatX)
        )
    return {name: value[0] for name, value in zip(maps, values, strict=True)}


def _lenet5_maps(model, x):
    layers = model.layers(x)
    return {name: layers[name].output for name in ("C1", "S2", "C3", "S4")}


def _lenet_maps(model, x):
    maps, below = {}, x.reshape((1, 1, 28, 28))
    for layer, convolved, pooled in (("layer0", "C1", "S2"), ("layer1", "C3", "S4")):
        for name, poolsize in ((convolved, (1, 1)), (pooled, (2, 2))):
            maps[name] = _layer(model, layer, below, poolsize).output
        below = maps[pooled]
    return maps


def _layer(model, name, input, poolsize):
    W, b = (model.parameters[f"{name}.{param}"].astype(model.floatX) for param in "Wb")
    layer = LeNetConvPoolLayer(np.random.RandomState(0), input, W.shape, input.type.shape, poolsize)
    layer.W.set_value(W)
    layer.b.set_value(b)
    return layer
