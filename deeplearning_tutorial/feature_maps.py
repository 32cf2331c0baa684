"""An image on its way through a LeNet: what the convolutions and poolings make of it."""

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode

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
        "C1", "S2", "C3" and "S4", each of shape ``(feature maps, rows, cols)``: what is pooled, and what
        comes of it. Values go from -1 to 1 where the activation is tanh and pooling takes maxima or averages.
    """
    with pytensor.config.change_flags(floatX=model.floatX):
        x = pt.matrix("x", shape=(1, N_PIXELS))
        maps_of = _lenet5_maps if model.script == "lenet5" else _lenet_maps
        maps = maps_of(model.layers(x))
        values = pytensor.function([x], list(maps.values()), mode=_UNCOMPILED)(
            np.reshape(image, (1, N_PIXELS)).astype(model.floatX)
        )
    return {name: value[0] for name, value in zip(maps, values, strict=True)}


def _lenet5_maps(layers):
    return {name: layers[name].output for name in ("C1", "S2", "C3", "S4")}


def _lenet_maps(layers):
    layer0, layer1 = layers["layer0"], layers["layer1"]
    return {"C1": layer0.maps, "S2": layer0.output, "C3": layer1.maps, "S4": layer1.output}
