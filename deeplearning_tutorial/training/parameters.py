"""Model parameters in ``.npz`` files: named arrays, no pickle."""

import errno
import io
import json
from pathlib import Path

import numpy as np

from deeplearning_tutorial.files.atomic import try_writing, write_atomically
from deeplearning_tutorial.files.bounded import listed, short_repr
from deeplearning_tutorial.files.npz import read_uncompressed

# Key of the metadata in saved files; it must not change.
METADATA = "about"


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


def save_parameters(path, parameters, *, metadata=None):
    """Write parameters to a ``.npz`` file, which is either replaced whole or left as it was.

    Parameters
    ----------
    path : path
        The file; its folder must exist.
    parameters : dict of str to (shared variable or numpy.ndarray)
    metadata : dict, optional
        How the model was made, for `read_metadata`. Only what JSON can express.

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
    write_npz(path, values if metadata is None else values | {METADATA: json_array(metadata)})


def write_npz(path, arrays):
    """Write arrays to ``path``, a Path, which is either replaced whole or left as it was."""
    archive = io.BytesIO()
    np.savez(archive, **arrays)
    write_atomically(path, archive.getbuffer())


def json_array(value):
    """Return ``value`` as the bytes of JSON text, which a ``.npz`` file holds without a pickle."""
    return np.frombuffer(json.dumps(value, allow_nan=False).encode(), np.uint8)


def json_value(array):
    """Return what `json_array` was given; raise ValueError if ``array`` is something else."""
    if array.dtype != np.uint8 or array.ndim != 1:
        raise ValueError(f"bytes of JSON text are expected, not {array.dtype} of shape {array.shape}")
    try:
        return json.loads(array.tobytes(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("its JSON text is nested too deeply") from error


def _refuse_constant(name):
    raise ValueError(f"{name} is not a number in JSON")


def read_metadata(path):
    """Read how a saved model was made.

    Parameters
    ----------
    path : path
        A file written by `save_parameters`.

    Returns
    -------
    dict or None
        ``{"script": ..., "arguments": {...}}`` where a training script saved the model: the script's name,
        and the arguments by name, with ``floatX`` and ``mode``. None if the file says nothing about it.

    Raises
    ------
    ValueError
        If the file is no ``.npz``, or what it says is damaged.
    FileNotFoundError
        If there is no such file.
    """
    return metadata_of(path, read_npz(path))


def metadata_of(path, stored):
    """Return what `read_metadata` does, from the arrays ``stored`` in ``path``."""
    if METADATA not in stored:
        return None
    try:
        metadata = json_value(stored[METADATA])
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); use a file that a script saved") from error
    if not isinstance(metadata, dict):
        what = f"{METADATA} is {short_repr(metadata)}"
        raise ValueError(f"{path} is damaged ({what}); use a file that a script saved")
    return metadata


def load_parameters(path, parameters):
    """Set shared variables to the values stored in a ``.npz`` file.

    If anything does not fit, nothing is set.

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
    stored = read_npz(path)
    stored.pop(METADATA, None)
    check_fit(path, stored, parameters)
    for name, param in parameters.items():
        param.set_value(stored[name].astype(param.dtype))


def check_fit(path, stored, parameters):
    """Raise ValueError unless the arrays ``stored`` in ``path`` have the names and shapes of the model's."""
    expected = {name: param.get_value(borrow=True).shape for name, param in parameters.items()}
    if stored.keys() != expected.keys():
        raise ValueError(
            f"{path} does not fit this model: it holds {listed(stored)}, the model has {listed(expected)}; "
            "use a file that the same script saved"
        )
    for name, shape in expected.items():
        if stored[name].shape != shape or stored[name].dtype.kind != "f":
            raise ValueError(
                f"{path} does not fit this model: {name} is {stored[name].dtype} of shape "
                f"{stored[name].shape}, the model's is floating point of shape {shape}; "
                "build the model with the sizes that the file was saved with"
            )


def check_save_path(path, name="save"):
    """Return ``path`` as a Path; raise OSError or ValueError unless a ``.npz`` can be written there."""
    if Path(path).suffix != ".npz":
        raise ValueError(
            f"{name}={str(path)!r} does not end in .npz, the format of saved models; add the ending"
        )
    return check_writable(path, name)


def check_writable(path, name, *, appended=False):
    """Return ``path`` as a Path; raise OSError or ValueError unless a file can be written there.

    A file that is ``appended`` to is written in place; others may be replaced.
    """
    given = f"{name}={str(path)!r}"
    path = Path(path)
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no folder", str(path))
        is_there = path.exists()
        if is_there and not path.is_file():
            raise PermissionError(errno.EPERM, "it is not a file")
        if is_there and appended:
            open(path, "r+b").close()
        else:
            try_writing(path)
    except FileNotFoundError as error:
        # A link may name a file in a folder that is missing.
        folder = str(Path(error.filename or path).parent)
        raise FileNotFoundError(f"{given}: there is no folder {folder!r}; create it first") from error
    except (OSError, ValueError) as error:
        kind = type(error) if isinstance(error, OSError) else ValueError
        # Python's own message differs from version to version.
        null = "its name holds a null character" if "\0" in str(path) else None
        reason = null or getattr(error, "strerror", None) or error
        raise kind(f"{given} cannot be written: {reason}; choose another place") from error
    return path


def read_npz(path, kind="saved model"):
    """Read all arrays of a ``.npz`` file; raise ValueError if it is damaged or holds pickles."""
    try:
        return read_uncompressed(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a {kind} ({error}); use a .npz file that a script saved") from error
