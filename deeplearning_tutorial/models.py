"""Saved models, built again from their files.

A file tells its script and holds every parameter by name, so the shapes give the sizes; what they do not give
is among the script's arguments, which it tells, too. A new script is a new entry in `ARCHITECTURES`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial import convolutional_mlp, lenet5, logistic_sgd, mlp
from deeplearning_tutorial.bounded import listed, shown
from deeplearning_tutorial.checkpoint import checkpoint_of, is_checkpoint
from deeplearning_tutorial.convolutional_mlp import LeNetConvPoolLayer
from deeplearning_tutorial.formats import N_PIXELS
from deeplearning_tutorial.lenet_poolings import check_choices, pooled_sides
from deeplearning_tutorial.logistic_sgd import LogisticRegression
from deeplearning_tutorial.mlp import MLP, HiddenLayer
from deeplearning_tutorial.parameters import ABOUT, about_of, named_parameters, read_npz

N_CLASSES = 10
# LeNet's graph is built for one size of minibatch. With that of its script, compiled kernels are found again.
BATCH_SIZE = 500


@dataclass(frozen=True)
class Architecture:
    """How a script's model is built again.

    Attributes
    ----------
    layers : tuple of str
        Names of the layers whose units are free to choose, each with a vector ``b`` of as many elements; the
        last layer's units are the classes.
    shapes : callable
        Takes the units of each layer, and the ``settings`` by keyword; returns the shape of every parameter
        by name, or raises ValueError.
    build : callable
        Takes a random number generator for initial weights, the images as a matrix, whose number of rows is
        known, the units of each layer, and the ``settings`` by keyword; returns the layers by name.
    published : dict
        The tutorial's or the paper's figures, as the script has them.
    settings : tuple of str
        Arguments of the script that the parameters' shapes do not tell; one that a file lacks keeps its
        default.
    """

    layers: tuple[str, ...]
    shapes: Callable
    build: Callable
    published: dict
    settings: tuple[str, ...] = ()

    def settings_in(self, arguments):
        """Pick the ``settings`` from a script's arguments."""
        return {name: arguments[name] for name in self.settings if name in arguments}


def _logistic_sgd_shapes(n_out):
    return {"classifier.W": (N_PIXELS, n_out), "classifier.b": (n_out,)}


def _build_logistic_sgd(rng, x, n_out):
    return {"classifier": LogisticRegression(x, N_PIXELS, n_out)}


def _mlp_shapes(n_hidden, n_out):
    return {
        "hiddenLayer.W": (N_PIXELS, n_hidden),
        "hiddenLayer.b": (n_hidden,),
        "logRegressionLayer.W": (n_hidden, n_out),
        "logRegressionLayer.b": (n_out,),
    }


def _build_mlp(rng, x, n_hidden, n_out):
    classifier = MLP(rng, x, N_PIXELS, n_hidden, n_out)
    return {
        "hiddenLayer": classifier.hiddenLayer,
        "logRegressionLayer": classifier.logRegressionLayer,
    }


# What the tutorial's LeNet has unless its file says otherwise.
_LENET = {
    name: inspect.signature(convolutional_mlp.evaluate_lenet5).parameters[name].default
    for name in ("pooling", "pool_sizes", "pool_strides", "activation", "normalisation")
}


def _lenet_sides(settings):
    """Check the settings; return them with the defaults of those that are missing, and the maps' sides."""
    settings = _LENET | settings
    check_choices(*(settings[name] for name in ("pooling", "activation", "normalisation")))
    return settings, pooled_sides(settings["pool_sizes"], settings["pool_strides"])


def _convolutional_mlp_shapes(nkerns0, nkerns1, n_hidden, n_out, **settings):
    settings, (_, side1) = _lenet_sides(settings)
    shapes = {"layer0.W": (nkerns0, 1, 5, 5), "layer0.b": (nkerns0,)}
    if settings["pooling"] == "deformation":
        shapes["layer0.deformation"] = (nkerns0, 4)
    shapes |= {"layer1.W": (nkerns1, nkerns0, 5, 5), "layer1.b": (nkerns1,)}
    if settings["pooling"] == "deformation":
        shapes["layer1.deformation"] = (nkerns1, 4)
    return shapes | {
        "layer2.W": (nkerns1 * side1 * side1, n_hidden),
        "layer2.b": (n_hidden,),
        "layer3.W": (n_hidden, n_out),
        "layer3.b": (n_out,),
    }


def _build_convolutional_mlp(rng, x, nkerns0, nkerns1, n_hidden, n_out, **settings):
    settings, sides = _lenet_sides(settings)
    choices = {name: settings[name] for name in ("pooling", "activation", "normalisation")}
    batch_size = x.type.shape[0]
    output, maps, side, layers = x.reshape((batch_size, 1, 28, 28)), 1, 28, {}
    for index, (filters, pooled) in enumerate(zip((nkerns0, nkerns1), sides, strict=True)):
        size, stride = settings["pool_sizes"][index], settings["pool_strides"][index]
        layers[f"layer{index}"] = layer = LeNetConvPoolLayer(
            rng,
            output,
            (filters, maps, 5, 5),
            (batch_size, maps, side, side),
            (size, size),
            stride=(stride, stride),
            **choices,
        )
        output, maps, side = layer.output, filters, pooled
    n_in = maps * side * side
    layers["layer2"] = HiddenLayer(rng, output.reshape((batch_size, n_in)), n_in, n_hidden)
    layers["layer3"] = LogisticRegression(layers["layer2"].output, n_hidden, n_out)
    return layers


def _lenet5(nkerns0, nkerns1, nkerns2, n_hidden, _n_out, **settings):
    sizes = {"nkerns": (nkerns0, nkerns1, nkerns2), "n_hidden": n_hidden}
    return lenet5.architecture_of(settings | sizes)


def _lenet5_shapes(*units, **settings):
    return _lenet5(*units, **settings).parameter_shapes()


def _build_lenet5(rng, x, *units, **settings):
    return _lenet5(*units, **settings).build(rng, x, x.type.shape[0])


ARCHITECTURES = {
    "logistic_sgd": Architecture(
        ("classifier",), _logistic_sgd_shapes, _build_logistic_sgd, logistic_sgd.PUBLISHED
    ),
    "mlp": Architecture(("hiddenLayer", "logRegressionLayer"), _mlp_shapes, _build_mlp, mlp.PUBLISHED),
    "convolutional_mlp": Architecture(
        ("layer0", "layer1", "layer2", "layer3"),
        _convolutional_mlp_shapes,
        _build_convolutional_mlp,
        convolutional_mlp.PUBLISHED,
        tuple(_LENET),
    ),
    "lenet5": Architecture(
        ("C1", "C3", "C5", "F6", "output"),
        _lenet5_shapes,
        _build_lenet5,
        lenet5.PUBLISHED,
        ("filter_sizes", "pool_sizes", "pool_strides", "pooling", "activation", "connection"),
    ),
}


@dataclass(frozen=True)
class Model:
    """A trained model, read from its file.

    Attributes
    ----------
    script : str
        The script that trained it, e.g. "convolutional_mlp".
    parameters : dict of str to numpy.ndarray
        By name, in the order of the layers.
    arguments : dict
        Those of the training function, as far as the file tells them.
    """

    script: str
    parameters: dict[str, np.ndarray]
    arguments: dict

    @property
    def units(self):
        """Units of each layer, a list of int."""
        return [len(self.parameters[f"{layer}.b"]) for layer in ARCHITECTURES[self.script].layers]

    @property
    def floatX(self):
        """Precision that holds every parameter: "float32" or "float64"."""
        return "float64" if np.result_type(*self.parameters.values()).itemsize > 4 else "float32"

    def probabilities(self, images):
        """Compute the probability of each class.

        Parameters
        ----------
        images : array_like
            Shape ``(n, 784)``, every pixel ``byte / 256``.

        Returns
        -------
        numpy.ndarray
            Shape ``(n, 10)``, of dtype `floatX`.
        """
        images = np.asarray(images, self.floatX)
        if images.ndim != 2 or images.shape[1] != N_PIXELS:
            raise ValueError(f"images has shape {images.shape}; use (n, {N_PIXELS})")
        found = np.empty((len(images), N_CLASSES), self.floatX)
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            padded = np.zeros((BATCH_SIZE, N_PIXELS), self.floatX)
            padded[: len(batch)] = batch
            found[start : start + BATCH_SIZE] = self._function(padded)[: len(batch)]
        return found

    def layers(self, x):
        """Build the layers over ``x``, a matrix of the known shape ``(batch, 784)``; return them by name."""
        architecture = ARCHITECTURES[self.script]
        with pytensor.config.change_flags(floatX=self.floatX):
            settings = architecture.settings_in(self.arguments)
            layers = architecture.build(np.random.RandomState(0), x, *self.units, **settings)
            for name, variable in named_parameters(**layers).items():
                variable.set_value(self.parameters[name].astype(self.floatX))
        return layers

    @cached_property
    def _function(self):
        with pytensor.config.change_flags(floatX=self.floatX):
            x = pt.matrix("x", shape=(BATCH_SIZE, N_PIXELS))
            *_, classifier = self.layers(x).values()
            return pytensor.function([x], classifier.p_y_given_x)


def read_model(path):
    """Read a model that a script saved.

    Parameters
    ----------
    path : path
        ``.npz`` file, as ``--save`` writes it; or a checkpoint, whose best model is taken.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If the file is no saved model, or its parameters are not those of a script's model, do not fit
        together, or are not finite.
    FileNotFoundError
        If there is no such file.
    """
    stored = read_npz(path)
    if is_checkpoint(stored):
        checkpoint = checkpoint_of(path, stored)
        script, arguments = checkpoint.script, checkpoint.arguments
        parameters = checkpoint.result.best_parameters or checkpoint.parameters
    else:
        about = about_of(path, stored) or {}
        script, arguments = about.get("script"), about.get("arguments")
        parameters = {name: value for name, value in stored.items() if name != ABOUT}
    try:
        return model_of(script or _script_of(parameters), parameters, arguments)
    except ValueError as error:
        raise ValueError(f"{path} does not fit: {error}") from error


def model_of(script, parameters, arguments=None):
    """Make a model of a script's parameters.

    Parameters
    ----------
    script : str
        A key of `ARCHITECTURES`.
    parameters : dict of str to numpy.ndarray
    arguments : dict, optional
        Those of the training function, as far as they are known.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If the parameters are not those of the script's model, do not fit together, or are not finite.
    """
    if not isinstance(script, str) or script not in ARCHITECTURES:
        raise ValueError(f"it is a model of the script {shown(script)}; known are {', '.join(ARCHITECTURES)}")
    if arguments is not None and not isinstance(arguments, dict):
        raise ValueError(f"its arguments are {shown(arguments)}; use a file that a script saved")
    expected = _expected_shapes(ARCHITECTURES[script], parameters, arguments or {})
    if parameters.keys() != expected.keys():
        raise ValueError(
            f"it holds {listed(parameters)}, a model of {script} has {', '.join(expected)}; "
            "use a file that a script saved with --save"
        )
    for name, shape in expected.items():
        value = parameters[name]
        if value.shape != shape or value.dtype.kind != "f":
            raise ValueError(
                f"{name} is {value.dtype} of shape {value.shape}; beside these biases it has to be "
                f"floating point of shape {shape}; the file is not one that a script saved, train anew"
            )
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds values that are not finite; train anew at a lower learning rate")
    return Model(script, {name: parameters[name] for name in expected}, arguments or {})


def _expected_shapes(architecture, parameters, arguments):
    # A bias that is missing or empty stands for one unit: the names or the shape will not fit.
    units = [max(np.size(parameters.get(f"{layer}.b", 0)), 1) for layer in architecture.layers[:-1]]
    return architecture.shapes(*units, N_CLASSES, **architecture.settings_in(arguments))


def _script_of(parameters):
    """Tell from the parameters' names which script saved them."""
    for script, architecture in ARCHITECTURES.items():
        if _expected_shapes(architecture, parameters, {}).keys() == parameters.keys():
            return script
    raise ValueError(
        f"it holds {listed(parameters)}, which are the parameters of none of "
        f"{', '.join(ARCHITECTURES)}; use a file that a script saved with --save"
    )
