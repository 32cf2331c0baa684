"""Read, check and split the files that MNIST comes in.

The three formats, the tutorial's pickle, the four original IDX files and an ``.npz``, give bitwise the same
arrays: every pixel becomes ``byte / 256`` in float32, as in the tutorial's pickle. The decompressed size is
limited while a file is read, not checked afterwards. The pickle and the ``.npz`` may also hold other examples
and targets.
"""

import gzip
import math
import stat
import zlib
from contextlib import contextmanager

import numpy as np

from deeplearning_tutorial.datasets.array_pickle import load_pairs
from deeplearning_tutorial.files.bounded import listed, open_file, read_up_to
from deeplearning_tutorial.files.npz import NpzReader
from deeplearning_tutorial.files.streams import stderr

SPLITS = ("train", "valid", "test")
# Training images and labels, then test images and labels.
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

# Where torchvision puts them, below its root or below that of the data set.
_SUBFOLDERS = ("", "raw", "MNIST/raw")

# Five times MNIST as a float32 pickle: enough for float64 and for protocol 0, but not for a bomb.
MAX_BYTES = 1 << 30
IMAGE_SIDE = 28
N_PIXELS = IMAGE_SIDE**2
# Shapes of images that are not flat, with or without a channel axis.
_IMAGE_SHAPES = ((IMAGE_SIDE, IMAGE_SIDE), (1, IMAGE_SIDE, IMAGE_SIDE), (IMAGE_SIDE, IMAGE_SIDE, 1))
MAX_IMAGES = MAX_BYTES // (4 * N_PIXELS)
N_VALID = 10_000

# What gzip raises for a damaged file.
_DAMAGE = (EOFError, zlib.error, OSError)

_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK"
_IDX_IMAGES = b"\x00\x00\x08\x03"
_IDX_LABELS = b"\x00\x00\x08\x01"


@contextmanager
def _damage_as_value_error(path):
    try:
        yield
    except _DAMAGE as error:
        # An OSError has a filename only if the file could not be opened.
        if getattr(error, "filename", None) is not None:
            raise
        raise ValueError(f"{path} is damaged or cut short ({error}); replace it by a whole copy") from error


@contextmanager
def _opened(path):
    """Open ``path`` for reading, and name it in errors."""
    try:
        file = open_file(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; give a file") from error
    with file, _damage_as_value_error(path):
        yield file


def _decompressed(file):
    """Rewind a file; wrap it in gzip if its first bytes say so."""
    file.seek(0)
    is_gzip = file.read(2) == _GZIP_MAGIC
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if is_gzip else file


def first_bytes(path, n=4):
    """Return the first ``n`` bytes of a file, decompressed."""
    with _opened(path) as file:
        return _decompressed(file).read(n)


def find_idx(folder):
    """Find the four IDX files in a folder, in the layout of LeCun, torchvision or Kaggle.

    Parameters
    ----------
    folder : pathlib.Path

    Returns
    -------
    found : list of list of pathlib.Path
        The copies of each file that exists, in the order of `IDX_FILES`; compressed copies come first.
    missing : list of str
        Names of the files that do not exist.

    Raises
    ------
    OSError
        If a subfolder cannot be read, and the others lack a file.
    """
    copies, errors = [[] for _ in IDX_FILES], []
    for subfolder in _SUBFOLDERS:
        try:
            # Never mix files of two data sets.
            copies = max(copies, _copies_in(folder / subfolder), key=lambda copies: sum(map(bool, copies)))
        except OSError as error:
            errors.append(error)
    missing = [name for name, paths in zip(IDX_FILES, copies, strict=True) if not paths]
    if missing and errors:
        raise errors[0]
    return [paths for paths in copies if paths], missing


def _copies_in(folder):
    copies = []
    for name in IDX_FILES:
        spellings = name, name.replace("-idx", ".idx")
        paths = [folder / f"{each}{suffix}" for suffix in (".gz", "") for each in spellings]
        paths += [folder / each / each for each in spellings]
        copies.append([path for path in paths if _is_file(path)])
    return copies


def _is_file(path):
    """Like `Path.is_file`, which raises PermissionError only until Python 3.13."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_idx(path):
    """Whether a file begins like IDX images or labels of bytes."""
    try:
        return first_bytes(path) in (_IDX_IMAGES, _IDX_LABELS)
    except (OSError, ValueError):
        return False


def _read_idx(path, magic):
    n_sizes = magic[3]
    with _opened(path) as compressed:
        file = _decompressed(compressed)
        header = file.read(4 + 4 * n_sizes)
        if not magic.startswith(header[:4]):
            raise ValueError(
                f"{path} begins with 0x{header[:4].hex()}, not 0x{magic.hex()} as IDX "
                f"{'images' if n_sizes == 3 else 'labels'} do; replace it by the original file"
            )
        if len(header) < 4 + 4 * n_sizes:
            raise EOFError("it ends within its header")
        shape = tuple(int(n) for n in np.frombuffer(header, ">u4", offset=4))
        if shape[0] > MAX_IMAGES or math.prod(shape[1:]) not in (1, N_PIXELS):
            raise ValueError(f"{path} claims shape {shape}; use (n, 28, 28) with n at most {MAX_IMAGES}")
        size = math.prod(shape)
        data = read_up_to(file, size + 1)
        if len(data) < size:
            raise EOFError(f"{len(data)} bytes where its header says {size}")
        if len(data) > size:
            raise ValueError(f"{path} has more than the {size} bytes its header claims; download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_idx_folder(folder, check):
    found, missing = find_idx(folder)
    if missing:
        contents = listed(sorted(path.name for path in folder.iterdir()))
        raise ValueError(
            f"{folder} lacks {', '.join(missing)} (.gz or not); put all four IDX files into it, or give the "
            f"path of MNIST in another format. It holds: {contents}"
        )
    pairs = []
    for images, labels in (found[:2], found[2:]):
        (x, path), (y, labels_path) = _read_copy(images, _IDX_IMAGES), _read_copy(labels, _IDX_LABELS)
        check(x, y, f"{path} and {labels_path.name}")
        pairs.append((x, y))
    return [*_hold_out(*pairs[0], found[0][0]), pairs[1]]


def _read_copy(copies, magic):
    """Read the first undamaged copy of an IDX file; return the array and its path."""
    errors = []
    for path in copies:
        try:
            array = _read_idx(path, magic)
        except ValueError as error:
            errors.append(error)
            continue
        for error in errors:
            print(f"Reading {path} instead: {error}", file=stderr)
        return array, path
    raise errors[0]


def _hold_out(x, y, path):
    """Split off the last 10,000 training images for validation, or the last sixth of fewer than 60,000."""
    if len(x) < 6:
        raise ValueError(f"{path} holds {len(x)} training images; give 6 or more, to validate on a sixth")
    n_train = len(x) - min(N_VALID, len(x) // 6)
    return (x[:n_train], y[:n_train]), (x[n_train:], y[n_train:])


def _read_npz(path, file, check):
    try:
        with NpzReader(file) as archive:
            splits = SPLITS if "x_valid" in archive.names else ("train", "test")
            names = [f"{kind}_{split}" for split in splits for kind in "xy"]
            missing = [name for name in names if name not in archive.names]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}; it needs the arrays {', '.join(names)}")
            total = sum(archive.header(name).nbytes for name in names)
            if total > MAX_BYTES:
                raise ValueError(f"it unpacks to {total} bytes; at most {MAX_BYTES} are read")
            arrays = [archive.array(name) for name in names]
    except ValueError as error:
        raise ValueError(f"{path}: {error}; replace it by one that numpy.savez wrote") from error
    pairs = list(zip(arrays[::2], arrays[1::2], strict=True))
    if splits == SPLITS:
        return pairs
    check(*pairs[0], f"{path}, training set")
    return [*_hold_out(*pairs[0], path), pairs[1]]


def _read_pickle(path, compressed):
    if _decompressed(compressed).read(4) in (_IDX_IMAGES, _IDX_LABELS):
        raise ValueError(f"{path} is one of the four IDX files; give their folder, {path.parent}")
    try:
        pairs = load_pairs(_decompressed(compressed), MAX_BYTES)
    except ValueError as error:
        unsupported = path.suffix.lower() in (".csv", ".parquet")
        reason = f"{path.suffix[1:]} is not supported" if unsupported else error
        raise ValueError(
            f"{path}: {reason}; replace it by the tutorial's mnist.pkl.gz, or a pickle of the same structure"
        ) from error
    if len(pairs) != len(SPLITS):
        raise ValueError(f"{path} holds {len(pairs)} pairs of arrays; it needs three: train, valid, test")
    return pairs


def _read(path, check):
    """Return three pairs of arrays as stored; ``check`` validates a pair before it is split."""
    if path.is_dir():
        return _read_idx_folder(path, check)
    # Open it only once, because a pipe cannot be opened again.
    with _opened(path) as file:
        if file.read(2) == _ZIP_MAGIC:
            return _read_npz(path, file, check)
        return _read_pickle(path, file)


def _check_fit(x, y, where):
    """Raise ValueError unless ``x`` can hold examples and ``y`` their targets."""
    for name, array in (("x", x), ("y", y)):
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{where}: {name} is {array.dtype}; store real numbers")
        if array.ndim == 0 or array.size == 0:
            raise ValueError(f"{where}: {name} has shape {array.shape}; give at least one example")
    if len(x) != len(y):
        raise ValueError(f"{where}: {len(x)} examples but {len(y)} targets; give one target per example")


def check_pair(x, y, where):
    """Raise ValueError unless ``x`` can hold MNIST images and ``y`` their labels."""
    if x.shape[1:] != (N_PIXELS,) and x.shape[1:] not in _IMAGE_SHAPES:
        raise ValueError(f"{where}: images have shape {x.shape}; use (n, 784) or (n, 28, 28)")
    if y.ndim != 1:
        raise ValueError(f"{where}: labels have shape {y.shape}; use one label per image, shape (n,)")
    if len(x) != len(y):
        raise ValueError(f"{where}: {len(x)} images but {len(y)} labels; give one label per image")
    if len(x) == 0:
        raise ValueError(f"{where}: it has no images; give at least one")
    if y.dtype.kind not in "iu":
        raise ValueError(f"{where}: labels are {y.dtype}; store them as integers")
    if y.min() < 0 or y.max() > 9:
        wrong = y[(y < 0) | (y > 9)][0]
        raise ValueError(f"{where}: it has the label {wrong}; labels are digits 0 to 9")
    if x.dtype == np.uint8:
        return
    if x.dtype.kind != "f":
        raise ValueError(f"{where}: pixels are {x.dtype}; store bytes (uint8) or floats from 0 to 1")
    if not (x.min() >= 0 and x.max() <= 1):  # False for NaN, which min and max propagate
        wrong = x[~((x >= 0) & (x <= 1))][0]
        raise ValueError(f"{where}: it has the pixel {wrong}; float pixels must be finite and from 0 to 1")


def _writable(array, dtype):
    # A view of a file's bytes is read-only, and Numba compiles every function again for read-only arrays.
    return np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED", "OWNDATA", "WRITEABLE"])


def _as_images(x):
    x = x.reshape(len(x), N_PIXELS)
    if x.dtype == np.uint8:
        return np.divide(x, np.float32(256), dtype=np.float32)
    return _writable(x, np.float32)


def _has_whole_numbers(y):
    if y.dtype.kind in "biu":
        return True
    with np.errstate(invalid="ignore"):
        y = y.astype(np.float64)
        return bool(((y == np.floor(y)) & (abs(y) < 2**31)).all())


def read_splits(path):
    """Read the training, validation and test set.

    Parameters
    ----------
    path : pathlib.Path
        The tutorial's pickle (compressed or not), an ``.npz``, or a folder with the four IDX files as LeCun,
        torchvision or Kaggle distribute them. The first bytes decide, not the name.

    Returns
    -------
    list of (x, y)
        Three pairs of arrays: ``x`` float32 of shape ``(n, 784)`` within 0 and 1, ``y`` int32 of shape
        ``(n,)`` within 0 and 9.

    Raises
    ------
    ValueError
        If the file is damaged or in another format, unpacks to more than `MAX_BYTES`, or does not hold images
        of digits and their labels.

    Notes
    -----
    The IDX files, and an ``.npz`` without ``x_valid`` and ``y_valid``, have no validation set. The last
    10,000 training images are used, or the last sixth if there are fewer than 60,000.
    """
    pairs = _read(path, check_pair)
    for name, (x, y) in zip(SPLITS, pairs, strict=True):
        check_pair(x, y, f"{path}, {name} set")
    n_images = sum(len(x) for x, _y in pairs)
    if n_images > MAX_IMAGES:
        raise ValueError(f"{path} holds {n_images} images; at most {MAX_IMAGES} are read")
    return [(_as_images(x), y.astype(np.int32)) for x, y in pairs]


def read_pairs(path):
    """Read three pairs of examples and targets, of MNIST or any other data set.

    Parameters
    ----------
    path : pathlib.Path
        As for `read_splits`.

    Returns
    -------
    list of (x, y)
        For training, validation and test, each with one target per example: ``x`` as stored, except that
        28 x 28 images are flattened and their bytes become float32, ``byte / 256``; ``y`` int32 if all three
        hold whole numbers, otherwise as stored.

    Raises
    ------
    ValueError
        If the file is damaged or in another format, unpacks to more than `MAX_BYTES`, or holds pairs whose
        shapes do not match.
    """
    pairs = [(_flat_images(x), y) for x, y in _read(path, _check_fit)]
    for name, (x, y) in zip(SPLITS, pairs, strict=True):
        where = f"{path}, {name} set"
        _check_fit(x, y, where)
        for kind, array, first in zip("xy", (x, y), pairs[0], strict=True):
            if array.shape[1:] != first.shape[1:]:
                raise ValueError(
                    f"{where}: {kind} has shape {array.shape}, that of the training set {first.shape}; only "
                    "the first length may differ"
                )
        if y.dtype.kind in "iu" and not -(2**31) <= y.min() <= y.max() < 2**31:
            raise ValueError(f"{where}: y has whole numbers outside int32; store them as floats")
    whole = all(_has_whole_numbers(y) for _x, y in pairs)
    return [
        (_as_examples(x), y.astype(np.int32) if whole else _writable(y, y.dtype.newbyteorder("=")))
        for x, y in pairs
    ]


def _flat_images(x):
    return x.reshape(len(x), N_PIXELS) if x.shape[1:] in _IMAGE_SHAPES else x


def _as_examples(x):
    is_mnist = x.shape[1:] == (N_PIXELS,) and x.dtype == np.uint8
    return _as_images(x) if is_mnist else _writable(x, x.dtype.newbyteorder("="))
