"""Read ``.npz`` archives of numeric arrays without trusting what they say about themselves.

``numpy.load``, even with ``allow_pickle=False``, allocates whatever shape a header claims and decompresses
without a limit. Here a caller can read an array's shape and dtype first and reject it, and memory grows only
with the bytes that have been read.
"""

import math
import os
import zipfile
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np

from deeplearning_tutorial.files.bounded import PIECE, cut, open_file, read_up_to


class Header(NamedTuple):
    """What an archive says about one array."""

    shape: tuple
    dtype: np.dtype
    order: str

    @property
    def nbytes(self):
        """Size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(file):
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # later formats allow headers of any length, and numeric arrays do not need them
        raise ValueError(f"format {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind not in "biufc" or not all(0 <= n < 1 << 40 for n in shape):
        raise ValueError(f"{dtype} of shape {shape}")
    return Header(shape, dtype, "F" if fortran_order else "C")


class _SmallReads:
    """A file that refuses large reads: zipfile turns an archive's directory into many times its size."""

    def __init__(self, file):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, n=-1):
        if n > PIECE:
            raise zipfile.BadZipFile(f"its directory takes {n} bytes")
        return self._file.read(n)


@contextmanager
def _errors_as_value_error(what):
    try:
        yield
    except Exception as error:  # zipfile may raise anything, and so may NumPy, which evaluates the header
        # NumPy's message quotes the whole header.
        raise ValueError(f"{what} ({cut(str(error)) or type(error).__name__})") from error


class NpzReader:
    """An open ``.npz`` archive; a context manager.

    Parameters
    ----------
    file : path or binary file object
        Closed on exit, and if opening fails.

    Attributes
    ----------
    names : list of str
        Names of the arrays.
    size : int
        Size of the archive in bytes.

    Raises
    ------
    ValueError
        If the file is not an archive or is damaged. The message gives the reason; the caller adds the path.
    OSError
        If it cannot be opened.
    """

    def __init__(self, file):
        self._file = open_file(file) if isinstance(file, (str, os.PathLike)) else file
        try:
            with _errors_as_value_error("it is damaged or cut short"):
                self.size = self._file.seek(0, os.SEEK_END)
                self._archive = zipfile.ZipFile(_SmallReads(self._file))
        except ValueError:
            self._file.close()
            raise
        entries = [entry for entry in self._archive.infolist() if entry.filename.endswith(".npy")]
        self._entries = {entry.filename.removesuffix(".npy"): entry for entry in entries}
        self.names = list(self._entries)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self._archive.close()
        self._file.close()

    @contextmanager
    def _open(self, name):
        """Yield an open member, positioned at its array's bytes, and its header."""
        entry = self._entries[name]
        with ExitStack() as stack:
            with _errors_as_value_error(f"{cut(name)} is not an array of numbers"):
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("its compression is neither stored nor deflate")
                file = stack.enter_context(self._archive.open(entry))
                header = _read_header(file)
                if file.tell() + header.nbytes != entry.file_size:
                    raise ValueError(f"{entry.file_size} bytes for {header.dtype} of shape {header.shape}")
            yield file, header

    def header(self, name):
        """Read the shape and dtype that the archive claims for an array.

        Parameters
        ----------
        name : str
            One of ``names``.

        Returns
        -------
        Header

        Raises
        ------
        ValueError
            If that part of the archive is damaged, or is not an array of numbers.
        """
        with self._open(name) as (_file, header):
            return header

    def array(self, name):
        """Read an array. `header` gives its size without reading it."""
        with self._open(name) as (file, header), _errors_as_value_error("it is damaged or cut short"):
            # One byte too many makes zipfile reach the end, where it verifies the checksum.
            data = read_up_to(file, header.nbytes + 1)
            if len(data) != header.nbytes:
                raise EOFError(f"{len(data)} bytes for {cut(name)}, not {header.nbytes}")
            return np.ndarray(header.shape, header.dtype, data, order=header.order)


def read_uncompressed(path):
    """Read all arrays of an uncompressed archive, as ``numpy.savez`` writes it.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to numpy.ndarray
        Not larger than the file in total.

    Raises
    ------
    ValueError
        If the file is not such an archive, or is damaged. The message gives the reason; the caller adds the
        path.
    OSError
        If it cannot be opened.
    """
    with NpzReader(path) as archive:
        total = sum(archive.header(name).nbytes for name in archive.names)
        if total > archive.size:
            raise ValueError(f"it unpacks to {total} bytes, more than the file has; use numpy.savez")
        return {name: archive.array(name) for name in archive.names}
