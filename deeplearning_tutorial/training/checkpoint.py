"""Checkpoints: the complete state of a training run in one ``.npz`` file, no pickle.

::

    from deeplearning_tutorial.training.checkpoint import read_checkpoint

    checkpoint = read_checkpoint("lenet-checkpoint.npz")
    print(checkpoint.script, checkpoint.arguments, checkpoint.result.history[-1])
"""

import math
from dataclasses import asdict, dataclass, field, fields

import numba
import numpy as np
import pytensor
import scipy

import deeplearning_tutorial
from deeplearning_tutorial.files.bounded import cut, short_repr
from deeplearning_tutorial.training.parameters import json_array, json_value, read_npz, write_npz
from deeplearning_tutorial.training.results import TrainingResult, Validation

# Other versions of these may round differently.
VERSIONS = {
    module.__name__: module.__version__ for module in (numba, np, pytensor, scipy, deeplearning_tutorial)
}

# What convolutional_mlp took before other poolings became a page of their own, with its defaults.
_LENET_POOLINGS = {
    "pooling": "max",
    "pool_sizes": [2, 2],
    "pool_strides": [2, 2],
    "activation": "tanh",
    "normalisation": None,
}
_STATE = "state"
_PARAMETERS, _BEST, _OPTIMISER = "parameters/", "best/", "optimiser/"
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
        If the file is damaged, or not a checkpoint.
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
    script, arguments = current_names(state["script"], state["arguments"])
    names = ("data", "iteration", "patience", "versions")
    return Checkpoint(
        script=script,
        arguments=arguments,
        parameters=parameters,
        result=result,
        optimiser=optimiser,
        **{name: state[name] for name in names},
    )


def current_names(script, arguments):
    """Return what a page and its arguments, as an older file has them, are called now.

    Parameters
    ----------
    script : str
        The page that wrote the file.
    arguments : dict
        Its arguments, as JSON has them.

    Returns
    -------
    script, arguments
    """
    if script == "alexnet" and "deviation" in arguments:
        return script, {"weight_std" if name == "deviation" else name: arguments[name] for name in arguments}
    there = {name: arguments[name] for name in _LENET_POOLINGS.keys() & arguments.keys()}
    if script != "convolutional_mlp" or not there:
        return script, arguments
    if _LENET_POOLINGS | there != _LENET_POOLINGS:
        return "lenet_poolings", _LENET_POOLINGS | arguments
    return script, {name: value for name, value in arguments.items() if name not in _LENET_POOLINGS}


def is_checkpoint(stored):
    """Tell whether the arrays of a ``.npz`` file, by name, are a checkpoint's rather than a saved model's."""
    return _STATE in stored


def _check_types(values, types, what):
    if not isinstance(values, dict) or values.keys() != types.keys():
        raise ValueError(f"{what} does not consist of {', '.join(types)}")
    for name, type_ in types.items():
        value = values[name]
        # isinstance takes a bool for an int.
        good = isinstance(value, type_) and not isinstance(value, bool)
        if good and isinstance(value, int | float):
            good = math.isfinite(value) and (value >= 0 or name == "cost")
        if not good:
            raise ValueError(f"{name} of {what} is {short_repr(value)}")


def _pop(stored, prefix):
    """Remove and return the arrays whose names begin with ``prefix``, by their names without it."""
    taken = {name: stored.pop(name) for name in list(stored) if name.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in taken.items()}


def _result(state, best_parameters):
    for row in state["history"]:
        _check_types(row, _VALIDATION_TYPES, "a validation")
    history = [Validation(**row) for row in state["history"]]
    iterations = [0, *(validation.iteration for validation in history), state["iteration"]]
    if iterations[:-1] != sorted(set(iterations[:-1])) or iterations[-1] < iterations[-2]:
        raise ValueError("its validations are not in order")
    minibatches = state["minibatches"]
    if len(minibatches) != 3 or any(type(n) is not int or n < 1 for n in minibatches):
        raise ValueError(f"minibatches of the state is {short_repr(minibatches)}")
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
