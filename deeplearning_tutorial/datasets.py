"""MNIST as shared variables: find it or fetch it, parse it, hand it over.

::

    python -m deeplearning_tutorial.datasets                 # download ahead of time, verify, show the splits
    python -m deeplearning_tutorial.datasets mnist_5k.npz    # the sample that comes with the project
    python -m deeplearning_tutorial.datasets --show 8        # training digit 8, a "1", as a picture
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import platformdirs
import pytensor

from deeplearning_tutorial import formats
from deeplearning_tutorial.streams import command, stderr, stdout

MNIST = "mnist.pkl.gz"
SAMPLE = "mnist_5k.npz"
FOLDER_VARIABLE = "DEEPLEARNING_TUTORIAL_DATA"

_PACKAGE = Path(__file__).resolve().parent


class DatasetNotFoundError(FileNotFoundError):
    """A data set is neither on this machine nor to be had; the message says what was tried."""


def _own_folder():
    """Return ``data/`` of the checkout, or the user's cache where the package is installed without one."""
    checkout = _PACKAGE.parent
    if (checkout / "setup.cfg").is_file() and (checkout / "data").is_dir():
        return checkout / "data"
    return platformdirs.user_cache_path("deeplearning_tutorial")


def _search_folders():
    named = os.environ.get(FOLDER_VARIABLE)
    named = [Path(os.path.expanduser(named))] if named else []
    # A wheel carries the sample in the package.
    inside = [_PACKAGE / "data"] if (_PACKAGE / "data").is_dir() else []
    return [*_working_directory(), *named, _own_folder(), *inside]


def _working_directory():
    try:
        return [Path.cwd()]
    except OSError:  # It has been removed, or is out of reach.
        return []


def sample_path():
    """Return the path of the sample of MNIST that comes with the project.

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
        if os.path.isfile(place):  # False also where its folder cannot be read
            return place
    raise DatasetNotFoundError(
        f"the sample {SAMPLE} is in neither {places[0].parent} nor {places[1].parent}; reinstall the package"
    )


def _mnist_in(folder):
    """Return what is MNIST under another name in ``folder``: the folder itself, an ``.npz``, or None."""
    found, missing = formats.find_idx(folder)
    others = [copies[0] for copies in found if not any(map(formats.is_idx, copies))]
    if not missing and not others:
        return folder
    if not missing:
        print(f"Passing over {folder}: {others[0].name} is no IDX file", file=stderr)
    npz = folder / "mnist.npz"
    return npz if npz.is_file() else None


def _listed(folders):
    lines = (f"  {folder}{'' if os.path.isdir(folder) else ' (no such folder)'}" for folder in folders)
    return "\n".join(lines)


def locate(dataset):
    """Find a data set, or fetch it if it is MNIST.

    Parameters
    ----------
    dataset : str or path
        A path, or a bare name, which is looked for in the working directory, in the folder that the
        environment variable ``DEEPLEARNING_TUTORIAL_DATA`` names, and in the project's ``data/`` (a cache
        folder of the user's where the package was installed from a wheel). For ``"mnist.pkl.gz"`` the four
        IDX files, torchvision's ``MNIST/raw`` or ``mnist.npz`` in these folders do as well, and where there
        is nothing the four files are downloaded into the last one.

    Returns
    -------
    pathlib.Path
        The file, or the folder that holds the four IDX files.

    Raises
    ------
    DatasetNotFoundError
        If it is nowhere; the message says where it was looked for, which mirrors failed and how, and how to
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
    folders, within_reach = _search_folders(), []
    for folder in folders:
        try:
            if (folder / name).exists():
                return folder / name
        except OSError as error:
            print(f"Passing over {folder}: {error.strerror or error}", file=stderr)
        else:
            within_reach.append(folder)
    if name != MNIST:
        raise DatasetNotFoundError(
            f"dataset={name!r} is in none of the folders\n{_listed(folders)}\n"
            f"give its path, set {FOLDER_VARIABLE} to its folder, or use dataset={MNIST!r} to download MNIST"
        )
    for folder in within_reach:
        found = _mnist_in(folder)
        if found is not None:
            return found
    # Only now: most starts need no download, and requests takes a while to import.
    from deeplearning_tutorial.download import download

    own = _own_folder()
    try:
        download(own)
    except OSError as error:
        failures = "\n".join(f"  {line}" for line in str(error).splitlines())
        raise DatasetNotFoundError(
            f"MNIST is not on this machine and its download into {own} failed:\n{failures}\n"
            f"No {MNIST}, no mnist.npz and no four IDX files are in\n{_listed(folders)}\n"
            f"Put one of them into one of these folders, set {FOLDER_VARIABLE} to the folder that holds it, "
            f"or use dataset={SAMPLE!r}, the sample that comes with the project"
        ) from error
    return own


def _shared(x, y):
    x = np.asarray(x, dtype=pytensor.config.floatX)
    y = y if y.dtype == np.int32 else np.asarray(y, dtype=pytensor.config.floatX)
    # The tutorial kept labels as floatX and cast them to int32 in the graph: its GPUs stored floats only.
    # Static shapes let the compiled functions do without run-time checks and slices of unknown length.
    return tuple(pytensor.shared(value, shape=value.shape, borrow=True) for value in (x, y))


def load_data(dataset):
    """Load a data set into shared variables.

    Parameters
    ----------
    dataset : str or path
        What to load, found as `locate` does: the tutorial's ``mnist.pkl.gz``, an ``.npz``, or a folder with
        the four IDX files. Any pickled triple of pairs of arrays will do, such as ``pickle.dump(((train_x,
        train_y), (valid_x, valid_y), (test_x, test_y)), file)`` writes; nothing else in a pickle is read.

    Returns
    -------
    list of (x, y)
        For training, validation and test: ``x`` of dtype floatX; ``y`` int32 where all targets are whole
        numbers, else floatX. MNIST has 50,000, 10,000 and 10,000 images of shape ``(784,)``, every pixel
        ``byte / 256``, and one label each.

    Raises
    ------
    DatasetNotFoundError
        If it is nowhere.
    ValueError
        If the file is damaged, or holds anything but pairs of arrays that fit each other.
    """
    path = locate(dataset)
    print("... loading data", file=stdout)
    return [_shared(x, y) for x, y in formats.read_pairs(path)]


def check_mnist(dataset, datasets):
    """Raise ValueError unless `load_data` gave images of 28 x 28 and labels 0 to 9 for ``dataset``."""
    for name, split in zip(formats.SPLITS, datasets, strict=True):
        formats.check_pair(*(v.get_value(borrow=True) for v in split), f"dataset={dataset!r}, {name} set")


@command
def main(argv=None):
    """Find or download a data set, verify it and print its splits."""
    parser = argparse.ArgumentParser(
        prog="python -m deeplearning_tutorial.datasets",
        description="Find MNIST or download it, verify it, print the size of each split and where it lies.",
    )
    help_ = "file, folder or bare name (default: %(default)s)"
    parser.add_argument("dataset", nargs="?", default=MNIST, help=help_)
    parser.add_argument("--show", type=int, metavar="N", help="show training digit N, counted from 0")
    parser.add_argument("--output", metavar="PNG", help="where --show writes it (default: digit-N.png)")
    args = parser.parse_args(argv)
    try:
        path = locate(args.dataset)
        splits = formats.read_splits(path)
        if args.show is not None:
            _show_digit(*splits[0], args.show, args.output or f"digit-{args.show}.png")
            return 0
    except (OSError, ValueError, ImportError) as error:
        print(error, file=stderr)
        return 1
    print(path, file=stdout)
    for name, (x, _y) in zip(formats.SPLITS, splits, strict=True):
        print(f"  {name:<5} {len(x):>6} images", file=stdout)
    if path.is_dir():
        from deeplearning_tutorial.download import EXPECTED, is_original

        files = [copies[0] for copies in formats.find_idx(path)[0]]
        if all(file.name in EXPECTED for file in files):
            original = all(map(is_original, files))
            told = f"  the files' SHA-256 are {'' if original else 'not '}those of the original MNIST"
            print(told, file=stdout)
    return 0


def _show_digit(x, y, index, output):
    """Print a digit and its label, write it as a picture, and open that where somebody can see it."""
    from deeplearning_tutorial import pictures

    if not 0 <= index < len(y):
        raise ValueError(f"--show {index} is not in the training set; use a number from 0 to {len(y) - 1}")
    pictures.write_picture(output, x[index])
    print(pictures.as_text(x[index]), file=stdout)
    print(f"training digit {index}, label {y[index]}", file=stdout)
    print(output, file=stdout)
    # What is written to a file or a pipe nobody looks at; a terminal may be one without a display.
    has_display = sys.platform in ("darwin", "win32") or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}
    if stdout.isatty() and has_display:
        with pictures.require_pillow().open(output) as picture:
            picture.show()


if __name__ == "__main__":
    sys.exit(main())
