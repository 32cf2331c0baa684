"""Rebuild saved models from their files.

A file names its page and holds every parameter by name. Layer sizes come from the shapes; other settings come
from the page's arguments, which the file also holds.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytensor
import pytensor.tensor as pt

from deeplearning_tutorial.datasets.formats import N_PIXELS
from deeplearning_tutorial.files.bounded import listed, short_repr
from deeplearning_tutorial.training.checkpoint import checkpoint_of, current_names, is_checkpoint
from deeplearning_tutorial.training.page import find_pages
from deeplearning_tutorial.training.parameters import METADATA, metadata_of, named_parameters, read_npz

# Imported here, so that reading a file imports nothing.
PAGES = {name: page for name, page in find_pages().items() if page.build is not None}
N_CLASSES = 10
# LeNet's graph has a fixed minibatch size. With the size of its page, cached kernels are reused.
BATCH_SIZE = 500


@dataclass(frozen=True)
class Model:
    """A trained model, read from its file.

    Attributes
    ----------
    script : str
        The page that trained it, e.g. "convolutional_mlp".
    parameters : dict of str to numpy.ndarray
        By name, in the order of the layers.
    arguments : dict
        Those arguments of the training function that the file holds.
    """

    script: str
    parameters: dict[str, np.ndarray]
    arguments: dict

    @property
    def page(self):
        """The page that trained it, a `Page`."""
        return PAGES[self.script]

    @property
    def floatX(self):
        """Precision of the parameters: "float32" or "float64"."""
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
        probabilities = np.empty((len(images), N_CLASSES), self.floatX)
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            padded = np.zeros((BATCH_SIZE, N_PIXELS), self.floatX)
            padded[: len(batch)] = batch
            probabilities[start : start + BATCH_SIZE] = self._function(padded)[: len(batch)]
        return probabilities

    def layers(self, x):
        """Build the layers for ``x``, a matrix of static shape ``(batch, 784)``; return them by name."""
        with pytensor.config.change_flags(floatX=self.floatX):
            layers = _build(self.page, self.parameters, self.arguments, x)
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
    """Read a model that a page saved.

    Parameters
    ----------
    path : path
        An ``.npz`` file that ``--save`` wrote, or a checkpoint, from which the best model is read.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If the file is not a saved model, or its parameters are not those of a page's model, have shapes that
        do not match, or are not finite.
    FileNotFoundError
        If the file does not exist.
    """
    stored = read_npz(path)
    if is_checkpoint(stored):
        checkpoint = checkpoint_of(path, stored)
        script, arguments = checkpoint.script, checkpoint.arguments
        parameters = checkpoint.result.best_parameters or checkpoint.parameters
    else:
        metadata = metadata_of(path, stored) or {}
        script, arguments = metadata.get("script"), metadata.get("arguments")
        parameters = {name: value for name, value in stored.items() if name != METADATA}
    try:
        return model_of(script or _script_of(parameters), parameters, arguments)
    except ValueError as error:
        raise ValueError(f"{path} does not fit: {error}") from error


def model_of(script, parameters, arguments=None):
    """Create a model from a page's parameters.

    Parameters
    ----------
    script : str
        The page's name.
    parameters : dict of str to numpy.ndarray
    arguments : dict, optional
        The known arguments of the training function.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If the parameters are not those of the page's model, have shapes that do not match, or are not finite.
    """
    if not isinstance(script, str) or script not in PAGES:
        raise ValueError(f"it is a model of the script {short_repr(script)}; known are {', '.join(PAGES)}")
    if arguments is not None and not isinstance(arguments, dict):
        raise ValueError(f"its arguments are {short_repr(arguments)}; use a file that a script saved")
    script, arguments = current_names(script, arguments or {})
    expected = _expected_shapes(PAGES[script], parameters, arguments)
    if parameters.keys() != expected.keys():
        raise ValueError(
            f"it holds {listed(parameters)}, a model of {script} has {', '.join(expected)}; "
            "use a file that a script saved with --save"
        )
    for name, shape in expected.items():
        value = parameters[name]
        if value.shape != shape or value.dtype.kind != "f":
            raise ValueError(
                f"{name} is {value.dtype} of shape {value.shape}; with these biases it must be "
                f"floating point of shape {shape}; the file was not saved by a script, train again"
            )
        if not np.isfinite(value).all():
            raise ValueError(f"{name} has values that are not finite; train again at a lower learning rate")
    return Model(script, {name: parameters[name] for name in expected}, arguments)


class _ZeroGenerator:
    """Stands in for a random number generator; its arrays take no memory, whatever sizes a file claims."""

    def uniform(self, low, high, size):
        return np.broadcast_to(np.zeros((), pytensor.config.floatX), size)

    def normal(self, loc=0.0, scale=1.0, size=None):
        return self.uniform(loc, scale, size)

    def randint(self, high, dtype):
        return 0


def _build(page, parameters, arguments, x):
    """Build a network with the sizes of the parameters."""
    sizes = {name: arguments[name] for name in page.choices if name in arguments}
    for name, layers in page.units.items():
        # A missing or empty bias counts as one unit; a later check of names or shapes rejects it.
        has_many = not isinstance(layers, str)
        units = [
            max(np.size(parameters.get(f"{layer}.b", 0)), 1) for layer in (layers if has_many else [layers])
        ]
        sizes[name] = tuple(units) if has_many else units[0]
    for name, values in page.by_name.items():
        if name in sizes and (not isinstance(sizes[name], str) or sizes[name] not in values):
            raise ValueError(f"{name}={short_repr(sizes[name])} is unknown; known are {', '.join(values)}")
    return page.build(_ZeroGenerator(), x, x.type.shape[0], **page.with_values(sizes))


def _expected_shapes(page, parameters, arguments):
    """Return the shape of each parameter by its name."""
    x = pt.matrix("x", shape=(1, N_PIXELS))
    try:
        layers = _build(page, parameters, arguments, x)
    except MemoryError as error:
        raise ValueError("its layers would not fit in memory") from error
    return {name: variable.type.shape for name, variable in named_parameters(**layers).items()}


def _script_of(parameters):
    """Return the page whose model has parameters of these names."""
    for script, page in PAGES.items():
        if _expected_shapes(page, parameters, {}).keys() == parameters.keys():
            return script
    raise ValueError(
        f"it holds {listed(parameters)}, which are not the parameters of any of "
        f"{', '.join(PAGES)}; use a file that a script saved with --save"
    )
