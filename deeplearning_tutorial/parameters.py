"""Model parameters in ``.npz`` files: named arrays, no pickle."""

import os
import secrets
from pathlib import Path

import numpy as np

from deeplearning_tutorial.npz import read_uncompressed


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
    stored = _read(path)
    expected = {name: param.get_value(borrow=True).shape for name, param in parameters.items()}
    if stored.keys() != expected.keys():
        raise ValueError(
            f"{path} does not fit this model: it holds {_list(stored)}, the model has {_list(expected)}; "
            "use a file that the same script saved"
        )
    for name, shape in expected.items():
        if stored[name].shape != shape or stored[name].dtype.kind != "f":
            raise ValueError(
                f"{path} does not fit this model: {name} is {stored[name].dtype} of shape "
                f"{stored[name].shape}, the model's is floating point of shape {shape}; "
                "build the model with the sizes that the file was saved with"
            )
    for name, param in parameters.items():
        param.set_value(stored[name].astype(param.dtype))


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


def _read(path):
    try:
        return read_uncompressed(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a saved model ({error}); use a .npz file that a script saved"
        ) from error


def _list(names):
    listed = ", ".join(names) or "nothing"
    return listed if len(listed) <= 1000 else f"{listed[:1000]} ..."
