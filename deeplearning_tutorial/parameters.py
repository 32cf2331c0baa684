"""Model parameters in ``.npz`` files: named arrays, no pickle."""

import os
import secrets
from pathlib import Path

import numpy as np

from deeplearning_tutorial.npz import NpzReader


def named_parameters(**layers):
    """Name the parameters of several layers ``layer.parameter``.

    Parameters
    ----------
    **layers
        Objects with ``params``, a list of named shared variables.

    Returns
    -------
    dict of str to shared variable
        In the order given, e.g. ``{"layer0.W": ..., "layer0.b": ...}``.
    """
    return {f"{name}.{param.name}": param for name, layer in layers.items() for param in layer.params}


def copy_parameters(parameters):
    """Copy the present values of shared variables: a dict of str to numpy.ndarray."""
    return {name: param.get_value() for name, param in parameters.items()}


def save_parameters(path, parameters):
    """Write parameters to a ``.npz`` file, which is either replaced whole or left as it was.

    Parameters
    ----------
    path : path
        The file; its folder must exist.
    parameters : dict of str to (shared variable or numpy.ndarray)

    Raises
    ------
    ValueError
        If ``path`` does not end in ``.npz``.
    OSError
        If the folder is missing or cannot be written.
    """
    path = check_save_path(path)
    values = {
        name: getattr(param, "get_value", lambda param=param: param)() for name, param in parameters.items()
    }
    # In the same folder, for only a rename within one file system is atomic.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        # Not by tempfile, whose files none but their owner may read.
        with open(temporary, "xb") as file:
            np.savez(file, **values)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_parameters(path, parameters):
    """Set shared variables to the values stored in a ``.npz`` file.

    Nothing is set unless everything fits.

    Parameters
    ----------
    path : path
        A file written by `save_parameters`.
    parameters : dict of str to shared variable
        What the model needs, as `named_parameters` gives it. Values are cast to each variable's dtype.

    Raises
    ------
    ValueError
        If the file is no ``.npz``, or holds other names or shapes than the model has.
    FileNotFoundError
        If there is no such file.
    """
    expected = {name: param.get_value(borrow=True).shape for name, param in parameters.items()}
    try:
        with NpzReader(path) as archive:
            stored = {name: archive.header(name) for name in archive.names}
            # Nothing is unpacked before it is known to be as large as the model.
            misfit = _misfit(stored, expected)
            values = {} if misfit else {name: archive.array(name) for name in expected}
    except ValueError as error:
        raise ValueError(
            f"{path} is not a saved model: {error}; use a .npz file that a script saved"
        ) from error
    if misfit:
        raise ValueError(f"{path} does not fit this model: {misfit}")
    for name, param in parameters.items():
        param.set_value(values[name].astype(param.dtype))


def _misfit(stored, expected):
    """Say how the headers of a file differ from the shapes of a model; None where they do not."""
    if stored.keys() != expected.keys():
        names = f"it holds {_list(stored)}, the model has {_list(expected)}"
        return f"{names}; use a file that the same script saved"
    for name, shape in expected.items():
        header = stored[name]
        if header.shape != shape or header.dtype.kind != "f":
            return (
                f"{name} is {header.dtype} of shape {header.shape}, the model's is floating point of shape "
                f"{shape}; build the model with the sizes that the file was saved with"
            )
    return None


def check_save_path(path):
    """Return ``path`` as a Path if a model can be saved there; raise before any work is done if not."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(
            f"save={str(path)!r} does not end in .npz, the format of saved models; add the ending"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"save={str(path)!r}: there is no folder {str(path.parent)!r}; create it first"
        )
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise PermissionError(f"save={str(path)!r} cannot be written; choose another place")
    return path


def _list(names):
    listed = ", ".join(names) or "nothing"
    return listed if len(listed) <= 1000 else f"{listed[:1000]} ..."
