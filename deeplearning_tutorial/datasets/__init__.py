"""Find or download MNIST, read it, and return it as shared variables."""

import os
from pathlib import Path

import numpy as np
import platformdirs
import pytensor

from deeplearning_tutorial.datasets import formats
from deeplearning_tutorial.files.streams import stderr, stdout

MNIST = "mnist.pkl.gz"
SAMPLE = "mnist_5k.npz"
FOLDER_VARIABLE = "DEEPLEARNING_TUTORIAL_DATA"

_PACKAGE = Path(__file__).resolve().parents[1]


class DatasetNotFoundError(FileNotFoundError):
    """A data set was not found and could not be downloaded; the message says what was tried."""


def _own_folder():
    """Return ``data/`` of the checkout, or the user's cache folder if the package is not in a checkout."""
    checkout = _PACKAGE.parent
    if (checkout / "setup.cfg").is_file() and (checkout / "data").is_dir():
        return checkout / "data"
    return platformdirs.user_cache_path("deeplearning_tutorial")


def _search_folders():
    variable = os.environ.get(FOLDER_VARIABLE)
    from_variable = [Path(os.path.expanduser(variable))] if variable else []
    # A wheel contains the sample inside the package.
    in_package = [_PACKAGE / "data"] if (_PACKAGE / "data").is_dir() else []
    return [*_working_directory(), *from_variable, _own_folder(), *in_package]


def _working_directory():
    try:
        return [Path.cwd()]
    except OSError:  # it was removed, or cannot be accessed
        return []


def sample_path():
    """Return the path of the MNIST sample that ships with the project.

    Returns
    -------
    pathlib.Path
        3,000 images to train, 1,000 to validate and 1,000 to test; see ``data/README.md``.

    Raises
    ------
    DatasetNotFoundError
        If the installation lacks it.
    """
    places = [_PACKAGE / "data" / SAMPLE, _PACKAGE.parent / "data" / SAMPLE]
    for place in places:
        if os.path.isfile(place):  # also False if the folder cannot be read
            return place
    raise DatasetNotFoundError(
        f"the sample {SAMPLE} is in neither {places[0].parent} nor {places[1].parent}; reinstall the package"
    )


def _mnist_in(folder):
    """Find MNIST under its other names: return ``folder`` for the IDX files, its ``mnist.npz``, or None."""
    found, missing = [], formats.IDX_FILES
    try:
        found, missing = formats.find_idx(folder)
    except OSError as error:
        print(f"Skipping {error.filename or folder}: {error.strerror or error}", file=stderr)
    others = [copies[0] for copies in found if not any(map(formats.is_idx, copies))]
    if not missing and not others:
        return folder
    if not missing:
        print(f"Skipping {folder}: {others[0].name} is not an IDX file", file=stderr)
    npz = folder / "mnist.npz"
    return npz if os.path.isfile(npz) else None


def _folder_lines(folders):
    lines = (f"  {folder}{'' if os.path.isdir(folder) else ' (no such folder)'}" for folder in folders)
    return "\n".join(lines)


def locate(dataset):
    """Find a data set; download it if it is MNIST and not found.

    Parameters
    ----------
    dataset : str or path
        A path, or a bare name, which is searched for in the working directory, in the folder that the
        environment variable ``DEEPLEARNING_TUTORIAL_DATA`` names, and in the project's ``data/`` (the user's
        cache folder if the package was installed from a wheel). For ``"mnist.pkl.gz"``, the four IDX files,
        torchvision's ``MNIST/raw`` or ``mnist.npz`` in these folders also count; if there are none, the four
        IDX files are downloaded into the last folder.

    Returns
    -------
    pathlib.Path
        The file, or the folder that holds the four IDX files.

    Raises
    ------
    DatasetNotFoundError
        If it is not found. The message lists the folders searched, says why each mirror failed, and how to
        supply the file.
    """
    name = os.fspath(dataset)
    if os.path.split(name)[0]:
        path = Path(os.path.expanduser(name))
        if not path.exists():
            raise DatasetNotFoundError(f"dataset={name!r} does not exist; give the path of a file that does")
        return path
    if not name:
        raise ValueError(f"dataset={name!r} is empty; use e.g. dataset={MNIST!r}")
    folders, readable = _search_folders(), []
    for folder in folders:
        try:
            if (folder / name).exists():
                return folder / name
        except OSError as error:
            print(f"Skipping {folder}: {error.strerror or error}", file=stderr)
        else:
            readable.append(folder)
    if name != MNIST:
        raise DatasetNotFoundError(
            f"dataset={name!r} is in none of the folders\n{_folder_lines(folders)}\n"
            f"give its path, set {FOLDER_VARIABLE} to its folder, or use dataset={MNIST!r} to download MNIST"
        )
    for folder in readable:
        found = _mnist_in(folder)
        if found is not None:
            return found
    # Imported here, because requests is slow to import and rarely needed.
    from deeplearning_tutorial.datasets.download import download

    own = _own_folder()
    try:
        download(own)
    except OSError as error:
        failures = "\n".join(f"  {line}" for line in str(error).splitlines())
        raise DatasetNotFoundError(
            f"MNIST is not on this machine and its download into {own} failed:\n{failures}\n"
            f"No {MNIST}, no mnist.npz and no four IDX files are in\n{_folder_lines(folders)}\n"
            f"Put one of them into one of these folders, set {FOLDER_VARIABLE} to the folder that holds it, "
            f"or use dataset={SAMPLE!r}, the sample that ships with the project"
        ) from error
    return own


def _shared(x, y):
    x = np.asarray(x, dtype=pytensor.config.floatX)
    y = y if y.dtype == np.int32 else np.asarray(y, dtype=pytensor.config.floatX)
    # The tutorial stored labels as floatX and cast them to int32 in the graph, because its GPUs stored only
    # floats. Static shapes spare the compiled functions run-time checks and slices of unknown length.
    return tuple(pytensor.shared(value, shape=value.shape, borrow=True) for value in (x, y))


def load_data(dataset):
    """Load a data set into shared variables.

    Parameters
    ----------
    dataset : str or path
        Found by `locate`: the tutorial's ``mnist.pkl.gz``, an ``.npz``, or a folder with the four IDX files.
        Any pickled triple of pairs of arrays is accepted, e.g. from ``pickle.dump(((train_x, train_y),
        (valid_x, valid_y), (test_x, test_y)), file)``; a pickle of anything else is rejected.

    Returns
    -------
    list of (x, y)
        For training, validation and test: ``x`` of dtype floatX; ``y`` int32 if all targets are whole
        numbers, otherwise floatX. MNIST has 50,000, 10,000 and 10,000 images of shape ``(784,)``, every pixel
        ``byte / 256``, and one label each.

    Raises
    ------
    DatasetNotFoundError
        If it is not found.
    ValueError
        If the file is damaged, or holds anything but pairs of arrays of equal length.
    """
    path = locate(dataset)
    print("... loading data", file=stdout)
    return [_shared(x, y) for x, y in formats.read_pairs(path)]


def check_mnist(dataset, datasets):
    """Raise ValueError unless `load_data` returned 28 x 28 images and labels 0 to 9 for ``dataset``."""
    for name, split in zip(formats.SPLITS, datasets, strict=True):
        formats.check_pair(*(v.get_value(borrow=True) for v in split), f"dataset={dataset!r}, {name} set")
