"""An image on its way through LeNet: what the convolutions and poolings make of it."""

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode

from deeplearning_tutorial.convolutional_mlp import LeNetConvPoolLayer

# One image is not worth compiling for: each Op computes in NumPy.
_UNCOMPILED = Mode(linker="py", optimizer=None)


def feature_maps(model, image):
    """Follow an image through both convolutions of a trained LeNet.

    Parameters
    ----------
    model : Model
        Of the script ``convolutional_mlp``.
    image : numpy.ndarray
        784 values, every pixel ``byte / 256``.

    Returns
    -------
    dict of str to numpy.ndarray
        "C1", "S2", "C3" and "S4", each of shape ``(feature maps, rows, cols)`` with values from -1 to 1.

    Notes
    -----
    The layer pools first and adds bias and tanh then, which gives S2 and S4. Since tanh rises throughout,
    they equally are the maxima of C1 and C3, which are the same layer without pooling.
    """
    with pytensor.config.change_flags(floatX=model.floatX):
        x = pt.tensor4("x", shape=(1, 1, 28, 28))
        maps, below = {}, x
        for layer, convolved, pooled in (("layer0", "C1", "S2"), ("layer1", "C3", "S4")):
            for name, poolsize in ((convolved, (1, 1)), (pooled, (2, 2))):
                maps[name] = _layer(model, layer, below, poolsize).output
            below = maps[pooled]
        values = pytensor.function([x], list(maps.values()), mode=_UNCOMPILED)(
            np.reshape(image, (1, 1, 28, 28)).astype(model.floatX)
        )
    return {name: value[0] for name, value in zip(maps, values, strict=True)}


def _layer(model, name, input, poolsize):
    W, b = (model.parameters[f"{name}.{param}"].astype(model.floatX) for param in "Wb")
    layer = LeNetConvPoolLayer(np.random.RandomState(0), input, W.shape, input.type.shape, poolsize)
    layer.W.set_value(W)
    layer.b.set_value(b)
    return layer
