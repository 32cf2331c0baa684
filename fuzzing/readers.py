"""The readers of data and models, each as a function of bytes that tells whether it kept its word.

An input's first byte chooses how the rest becomes a file and its second byte which part of it: as it stands,
or as a part of an otherwise whole file, compressed and with true checksums, which mutations would not hit.
"""

import gzip
import importlib
import io
import os
import pickle
import struct
import sys
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytensor

from deeplearning_tutorial.classify.models import read_model
from deeplearning_tutorial.datasets.formats import IDX_FILES, read_pairs, read_splits
from deeplearning_tutorial.datasets.image_sets import read_image_sets
from deeplearning_tutorial.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from deeplearning_tutorial.training.parameters import METADATA, json_array, load_parameters
from deeplearning_tutorial.training.results import TrainingResult, Validation

# What the standard library and NumPy import while they read: later imports are somebody else's.
for _name in ("encodings.cp437", "encodings.raw_unicode_escape", "tokenize", "unicodedata"):
    importlib.import_module(_name)

RNG = np.random.default_rng(7)
SPLITS = {
    "x_train": RNG.integers(256, size=(6, 784), dtype=np.uint8) // 200,
    "y_train": np.arange(6, dtype=np.uint8),
    "x_test": RNG.integers(256, size=(1, 784), dtype=np.uint8) // 200,
    "y_test": np.array([7], np.uint8),
}
IMAGES = {
    f"{split}_{kind}": RNG.integers(3, size=(n, 5, 6, 3)[: 4 if kind == "x" else 1], dtype=np.uint8)
    for split, n in (("train", 2), ("valid", 1), ("test", 1))
    for kind in "xy"
}
MODEL = {"layer.W": np.arange(6, dtype=np.float32).reshape(2, 3), "layer.b": np.ones(3, np.float32)}

# What reading may take, in bytes and for each byte, and in seconds. Deflate grows up to 1032 times.
PEAK = 4 << 20, 2000
TIME_LIMIT = 5.0
# Nothing of this belongs to reading. NumPy compiles the header of an array, but does not run it.
FORBIDDEN = ("exec", "import", "marshal.", "ctypes.", "os.", "shutil.", "socket.", "subprocess.", "pickle.")

_watched = []
_watching = False


def _watch(event, args):
    if not _watching:
        return
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event.startswith(FORBIDDEN):
        _watched.append(f"{event} {args}"[:200])


sys.addaudithook(_watch)


class BrokenPromise(AssertionError):
    """A reader did what it must not do."""


@dataclass
class Reader:
    """A reader under test.

    Attributes
    ----------
    seeds : list of bytes
        Inputs that are read.
    tokens : list of bytes
        What the format is made of.
    write : callable
        Makes ``folder`` hold what an input stands for; returns the path to read.
    read : callable
        Reads the path and checks what comes.
    """

    seeds: list
    tokens: list
    write: Callable
    read: Callable

    def check(self, data, folder):
        """Read one input; return whether it was taken; raise `BrokenPromise` if the reader breaks its word.

        Only ValueError, naming the file, may come, and no memory be taken beyond the input's honest size.
        """
        global _watching
        path = self.write(data, Path(folder))
        tracemalloc.start()
        begin = time.monotonic()
        _watching = True
        try:
            self.read(path)
            taken = True
        except ValueError as error:
            taken = False
            if str(path) not in str(error) or len(str(error)) > 2000:
                raise BrokenPromise(f"the message is {str(error)[:3000]!r}") from error
        except Exception as error:
            raise BrokenPromise(f"{type(error).__name__} came: {error}") from error
        finally:
            _watching = False
            seconds, peak = time.monotonic() - begin, tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        if peak > PEAK[0] + PEAK[1] * len(data):
            raise BrokenPromise(f"{peak} bytes were taken for {len(data)}")
        if seconds > TIME_LIMIT:
            raise BrokenPromise(f"{seconds:.1f} s were taken")
        if _watched:
            done = [_watched.pop() for _ in range(len(_watched))]
            raise BrokenPromise(f"it did {done}")
        return taken


def _read_splits(path):
    for x, y in read_splits(path):
        assert x.dtype == np.float32 and x.shape == (len(y), 784) and x.min() >= 0 and x.max() <= 1
        assert y.dtype == np.int32 and y.min() >= 0 and y.max() <= 9


def _read_pairs(path):
    for x, y in read_pairs(path):
        assert len(x) == len(y) > 0 and x.dtype.kind in "biuf"
        assert y.dtype == np.int32 or y.dtype.kind == "f"


def _read_images(path):
    for x, y in read_image_sets(path, 5, 3):
        assert x.shape == (len(y), 3, 5, 5) and np.isfinite(x).all()
        assert y.dtype == np.int32 and y.min() >= 0 and y.max() < 3


_VARIABLES = {name: pytensor.shared(value) for name, value in MODEL.items()}


def _read_model(path):
    load_parameters(path, _VARIABLES)
    for name, value in MODEL.items():
        found = _VARIABLES[name].get_value(borrow=True)
        assert found.shape == value.shape and found.dtype == value.dtype


def _checkpoint():
    """Return the arrays of a checkpoint as it is written."""
    history = [Validation(1, 5, 5, 0.9, 0.5, 0.4), Validation(2, 5, 10, 0.8, 0.6, None)]
    result = TrainingResult(seconds=1.5, history=history, best_parameters=MODEL, minibatches=(5, 1, 1))
    arguments = {"learning_rate": 0.1, "nkerns": [20, 50]}
    state = Checkpoint("mlp", arguments, "sha256", 10, 5000.0, MODEL, result)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.npz"
        write_checkpoint(path, state)
        with np.load(path) as file:
            return dict(file)


def _idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def _write_idx(data, folder):
    """Replace one of the four files, compressed or not."""
    contents = [_idx(a.reshape(-1, 28, 28) if a.ndim == 2 else a) for a in SPLITS.values()]
    at = data[1] % 4 if len(data) > 1 else 0
    contents[at] = data[2:]
    for i, (name, content) in enumerate(zip(IDX_FILES, contents, strict=True)):
        whole = i == at and data[:1] < b"\x80"
        for suffix, is_this in (("", whole), (".gz", not whole)):
            file = folder / (name + suffix)
            file.unlink(missing_ok=True)
            if is_this:
                file.write_bytes(content if whole else gzip.compress(content, 1))
    return folder


def _write_pickle(data, folder):
    path = folder / "mnist.pkl.gz"
    path.write_bytes(data[2:] if data[:1] < b"\x80" else gzip.compress(data[2:], 1))
    return path


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _npz_writer(arrays):
    members = {f"{name}.npy": _npy(array) for name, array in arrays.items()}

    def write(data, folder):
        """Take the input as the archive, or put it in one's place of a whole archive."""
        path = folder / "file.npz"
        if data[:1] < b"\x80":
            path.write_bytes(data[2:])
            return path
        compression = zipfile.ZIP_DEFLATED if data[0] & 1 else zipfile.ZIP_STORED
        at = data[1] % len(members) if len(data) > 1 else 0
        with zipfile.ZipFile(path, "w", compression) as archive:
            for i, (name, content) in enumerate(members.items()):
                archive.writestr(name, data[2:] if i == at else content)
        return path

    return write


def _archive(save, arrays):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def _npz_seeds(arrays):
    files = [b"\0\0" + _archive(save, arrays) for save in (np.savez, np.savez_compressed)]
    parts = [bytes([0x80 + i % 2, i]) + _npy(array) for i, array in enumerate(arrays.values())]
    return files + parts


def _pickle_seeds():
    x, y = SPLITS["x_test"], SPLITS["y_test"].astype(np.int64)
    pairs = (x, y), (x, [7]), (x, list(y))
    pickles = [pickle.dumps(pairs, proto) for proto in range(pickle.HIGHEST_PROTOCOL + 1)]
    pickles.append(pickle.dumps([(x / np.float32(256), y)] * 3, 2))
    return [b"\0\0" + data for data in [*pickles, gzip.compress(pickles[2])]] + [b"\x80\0" + pickles[2]]


def _triple_seeds():
    x = RNG.normal(size=(2, 3, 2))
    targets = (
        np.array([0.5, -2]),
        np.eye(2, dtype=np.float32),
        np.array([True, False]),
        np.array([3, 1], ">i2"),
    )
    pickles = [pickle.dumps([(x.astype(kind), y)] * 3, 2) for kind, y in zip("fde?", targets, strict=True)]
    return [b"\0\0" + data for data in pickles] + [b"\x80\0" + pickles[0]]


def _idx_seeds():
    files = [_idx(a.reshape(-1, 28, 28) if a.ndim == 2 else a) for a in SPLITS.values()]
    whole = [bytes([0, i]) + data for i, data in enumerate(files)]
    packed = [bytes([0, i]) + gzip.compress(data) for i, data in enumerate(files)]
    return whole + packed + [bytes([0x80, i]) + data for i, data in enumerate(files)]


_SIZES = [b"\xff" * 2, b"\xff" * 4, b"\xff" * 8, b"\0" * 4, b"\0\0\0\x40", b"\x7f" + b"\xff" * 3]
_GZIP = [b"\x1f\x8b\x08", b"\x1f\x8b\x08\x1e" + bytes(6), gzip.compress(b""), gzip.compress(bytes(4096))]
_NPY = [b"\x93NUMPY\x01\0", b"\x93NUMPY\x02\0", b"'descr': ", b"'fortran_order': ", b"'shape': ", b"'|O'"]
_NPY += [b"'|u1'", b"'<f8'", b"'<c16'", b"'<U4'", b"'<M8[s]'", b"(-1,)", b"(1099511627776,)"]
_ZIP = [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"\x01\0\x10\0", b"up"]
_OPCODES = [op.encode("latin1") for op in "()]}.0123abcdeghijlopqrstuBCFGIJKLMNPQRSTUVX"]
_OPCODES += [bytes([op]) for op in range(0x80, 0x99)]
_NAMES = [b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n", b"cposix\nsystem\n"]
_NAMES += [b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n"]
_NAMES += [b"cnumpy.core.numeric\n_frombuffer\n"]

_JSON = [b"[[[[", b"{}", b"NaN", b"1e999", b"null", b"9" * 30, b"-1", b'"epoch": ', b'"\\ud800"', b"true"]
CHECKPOINT = _checkpoint()
SAVED = {
    "hiddenLayer.W": RNG.normal(size=(784, 1)).astype(np.float32),
    "hiddenLayer.b": np.zeros(1, np.float32),
    "logRegressionLayer.W": np.ones((1, 10), np.float32),
    "logRegressionLayer.b": np.ones(10, np.float32),
    METADATA: json_array({"script": "mlp", "arguments": {"n_hidden": 1, "batch_size": 20}}),
}
_MAGIC = [b"\0\0\x08\x03", b"\0\0\x08\x01"]

READERS = {
    "idx": Reader(_idx_seeds(), [*_MAGIC, *_SIZES, *_GZIP], _write_idx, _read_splits),
    "npz": Reader(_npz_seeds(SPLITS), [*_ZIP, *_NPY, *_SIZES], _npz_writer(SPLITS), _read_splits),
    "pickle": Reader(_pickle_seeds(), [*_OPCODES, *_NAMES, *_SIZES, *_GZIP], _write_pickle, _read_splits),
    "triple": Reader(_triple_seeds(), [*_OPCODES, *_NAMES, *_SIZES, *_GZIP], _write_pickle, _read_pairs),
    "images": Reader(_npz_seeds(IMAGES), [*_ZIP, *_NPY, *_SIZES], _npz_writer(IMAGES), _read_images),
    "checkpoint": Reader(
        _npz_seeds(CHECKPOINT), [*_ZIP, *_NPY, *_SIZES, *_JSON], _npz_writer(CHECKPOINT), read_checkpoint
    ),
    "saved": Reader(_npz_seeds(SAVED), [*_ZIP, *_NPY, *_SIZES, *_JSON], _npz_writer(SAVED), read_model),
    "model": Reader(_npz_seeds(MODEL), [*_ZIP, *_NPY, *_SIZES], _npz_writer(MODEL), _read_model),
}
