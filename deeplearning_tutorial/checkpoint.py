"""Checkpoints: the complete state of a training run in one ``.npz`` file, no pickle.

::

    from deeplearning_tutorial.checkpoint import read_checkpoint

    checkpoint = read_checkpoint("lenet-checkpoint.npz")
    print(checkpoint.script, checkpoint.arguments, checkpoint.result.history[-1])
"""

import hashlib
import math
from dataclasses import asdict, dataclass, field, fields

import numba
import numpy as np
import pytensor
import scipy

import deeplearning_tutorial
from deeplearning_tutorial.bounded import cut, shown
from deeplearning_tutorial.parameters import json_array, json_value, read_npz, write_npz
from deeplearning_tutorial.results import TrainingResult, Validation

# Other versions of these may round differently.
VERSIONS = {
    module.__name__: module.__version__ for module in (numba, np, pytensor, scipy, deeplearning_tutorial)
}

# What `data_fingerprint` says of MNIST, whatever its files.
MNIST_FINGERPRINT = (
    "50000 + 10000 + 10000 examples, SHA-256 bbc26b5072a34f34928c6f14a76fec800be07b4eb18f2cc574102640053e0560"
)

_STATE = "state"
_PARAMETERS, _BEST, _OPTIMISER = "parameters/", "best/", "optimiser/"
_PIECE_ELEMENTS = 1 << 20
_USE = "use a file that a script wrote with checkpoint="
_TYPES = {
    "script": str,
    "arguments": dict,
    "data": str,
    "iteration": int,
    "patience": int | float,
    "seconds": float,
    "minibatches": list,
    "history": list,
    "versions": dict,
}
_VALIDATION_TYPES = {f.name: f.type for f in fields(Validation)}


@dataclass(frozen=True)
class Checkpoint:
    """The complete state of a training run between two minibatches.

    Attributes
    ----------
    script : str
        The script that trains, e.g. ``"convolutional_mlp"``.
    arguments : dict
        Its arguments by name, as JSON has them (tuples are lists), with ``floatX`` and ``mode``; without what
        does not shape the result, such as file names.
    data : str
        Size and SHA-256 of the data set, see `data_fingerprint`.
    iteration : int
        Minibatches trained.
    patience : int or float
        Minibatches to train at least.
    parameters : dict of str to numpy.ndarray
        Present values by name.
    result : TrainingResult
        What was reached, with ``history`` and ``best_parameters``.
    versions : dict of str to str
        Versions of the libraries that computed it, and of this package.
    optimiser : dict of str to numpy.ndarray
        Present values by name of what the optimiser keeps from step to step; empty for gradient descent.
    """

    script: str
    arguments: dict
    data: str
    iteration: int
    patience: float
    parameters: dict[str, np.ndarray]
    result: TrainingResult
    versions: dict = field(default_factory=lambda: dict(VERSIONS))
    optimiser: dict[str, np.ndarray] = field(default_factory=dict)


def data_fingerprint(datasets):
    """Describe a data set so that any other one is told apart.

    Parameters
    ----------
    datasets : list of (x, y)
        As `load_data` returns them.

    Returns
    -------
    str
        Examples per split, and the SHA-256 of all pixels, as float32 where they are not bytes, and labels. It
        does not depend on floatX, nor on the file format the data came in.
    """
    digest = hashlib.sha256()
    for split in datasets:
        for variable, dtype in zip(split, (np.float32, np.int32), strict=True):
            values = variable.get_value(borrow=True)
            digest.update(str(values.shape).encode())
            dtype = values.dtype if values.dtype == np.uint8 else dtype
            # Piece by piece, for in float64 each piece is converted.
            rows = max(1, _PIECE_ELEMENTS // math.prod(values.shape[1:]))
            for start in range(0, len(values), rows):
                digest.update(np.ascontiguousarray(values[start : start + rows], dtype))
    sizes = " + ".join(str(len(x.get_value(borrow=True))) for x, _y in datasets)
    return f"{sizes} examples, SHA-256 {digest.hexdigest()}"


def write_checkpoint(path, checkpoint):
    """Write a checkpoint; the file is either replaced whole or left as it was.

    Parameters
    ----------
    path : pathlib.Path
        The ``.npz`` file.
    checkpoint : Checkpoint

    Raises
    ------
    OSError
        If the folder is missing or cannot be written, or the disk is full.
    """
    result = checkpoint.result
    # The best errors follow from the history, the epochs from the iteration.
    state = {
        "script": checkpoint.script,
        "arguments": checkpoint.arguments,
        "data": checkpoint.data,
        "iteration": checkpoint.iteration,
        "patience": checkpoint.patience,
        "seconds": result.seconds,
        "minibatches": result.minibatches,
        "history": [asdict(validation) for validation in result.history],
        "versions": checkpoint.versions,
    }
    arrays = {_STATE: json_array(state)}
    arrays |= {_PARAMETERS + name: value for name, value in checkpoint.parameters.items()}
    arrays |= {_BEST + name: value for name, value in result.best_parameters.items()}
    arrays |= {_OPTIMISER + name: value for name, value in checkpoint.optimiser.items()}
    write_npz(path, arrays)


def read_checkpoint(path):
    """Read a checkpoint.

    Parameters
    ----------
    path : path
        A file that a script wrote with ``checkpoint=``.

    Returns
    -------
    Checkpoint

    Raises
    ------
    ValueError
        If the file is damaged, or something else than a checkpoint.
    FileNotFoundError
        If there is no such file.
    """
    return checkpoint_of(path, read_npz(path, "checkpoint"))


def checkpoint_of(path, stored):
    """Return what `read_checkpoint` does, from the arrays ``stored`` in ``path``, which are taken out."""
    try:
        state = json_value(stored.pop(_STATE))
        _check_types(state, _TYPES, "the state")
        parameters = _pop(stored, _PARAMETERS)
        best_parameters = _pop(stored, _BEST)
        optimiser = _pop(stored, _OPTIMISER)
        if stored:
            raise ValueError(f"it holds {cut(next(iter(stored)))}, which no checkpoint has")
        result = _result(state, best_parameters)
    except KeyError as error:
        raise ValueError(f"{path} is not a checkpoint: it lacks {error}; {_USE}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a checkpoint, or damaged: {error}; {_USE}") from error
    names = ("script", "arguments", "data", "iteration", "patience", "versions")
    return Checkpoint(
        parameters=parameters, result=result, optimiser=optimiser, **{name: state[name] for name in names}
    )


def is_checkpoint(stored):
    """Tell whether the arrays of a ``.npz`` file, by name, are a checkpoint's rather than a saved model's."""
    return _STATE in stored


def _check_types(values, types, what):
    if not isinstance(values, dict) or values.keys() != types.keys():
        raise ValueError(f"{what} does not consist of {', '.join(types)}")
    for name, type_ in types.items():
        value = values[name]
        # To isinstance a bool is an int, too.
        good = isinstance(value, type_) and not isinstance(value, bool)
        if good and isinstance(value, int | float):
            good = math.isfinite(value) and (value >= 0 or name == "cost")
        if not good:
            raise ValueError(f"{name} of {what} is {shown(value)}")


def _pop(stored, prefix):
    """Take out the arrays whose names begin with ``prefix``, and name them without it."""
    taken = {name: stored.pop(name) for name in list(stored) if name.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in taken.items()}


def _result(state, best_parameters):
    for row in state["history"]:
        _check_types(row, _VALIDATION_TYPES, "a validation")
    history = [Validation(**row) for row in state["history"]]
    iterations = [0, *(validation.iteration for validation in history), state["iteration"]]
    if iterations[:-1] != sorted(set(iterations[:-1])) or iterations[-1] < iterations[-2]:
        raise ValueError("its validations are in no order")
    minibatches = state["minibatches"]
    if len(minibatches) != 3 or any(type(n) is not int or n < 1 for n in minibatches):
        raise ValueError(f"minibatches of the state is {shown(minibatches)}")
    result = TrainingResult(
        epochs=math.ceil(state["iteration"] / minibatches[0]),
        seconds=state["seconds"],
        history=history,
        best_parameters=best_parameters,
        minibatches=tuple(minibatches),
    )
    improved = [validation for validation in history if validation.test_error is not None]
    if bool(improved) != bool(best_parameters):
        raise ValueError("validations and best parameters contradict each other")
    if improved:
        result.best_validation_error = improved[-1].validation_error
        result.best_iteration = improved[-1].iteration
        result.test_error = improved[-1].test_error
    return result
