"""Read ``.npz`` archives that hold arrays of numbers, without trusting what they say of themselves.

``numpy.load`` makes room for whatever shape a header claims and unpacks all there is. Here the shape and the
dtype of an array are known before it is read, so that a caller can refuse it, and are believed only as far as
its bytes come.
"""

import math
import os
import zipfile
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np

from deeplearning_tutorial.bounded import PIECE, cut, open_file, read_up_to


class Header(NamedTuple):
    """What a member says its array is."""

    shape: tuple
    dtype: np.dtype
    order: str

    @property
    def nbytes(self):
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(file):
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # the others' headers may be of any length; arrays of numbers do not need them
        raise ValueError(f"format {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind not in "biufc" or not all(0 <= n < 1 << 40 for n in shape):
        raise ValueError(f"{dtype} of shape {shape}")
    return Header(shape, dtype, "F" if fortran_order else "C")


class _SmallReads:
    """A file that is read in pieces: zipfile makes of an archive's directory many times its size."""

    def __init__(self, file):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, n=-1):
        if n > PIECE:
            raise zipfile.BadZipFile(f"its directory takes {n} bytes")
        return self._file.read(n)


@contextmanager
def _told(what):
    try:
        yield
    except Exception as error:  # zipfile, and NumPy, which evaluates a header, fail in every way there is
        # NumPy repeats the header, however long.
        raise ValueError(f"{what} ({cut(str(error)) or type(error).__name__})") from error


class NpzReader:
    """An open ``.npz`` archive; a context manager.

    Parameters
    ----------
    file : path or binary file object
        Closed in the end.

    Attributes
    ----------
    names : list of str
        Of the arrays.
    size : int
        Bytes of the archive.

    Raises
    ------
    ValueError
        If the file is no archive or is damaged; the message says how, and the caller knows whose.
    OSError
        If it cannot be opened.
    """

    def __init__(self, file):
        self._file = open_file(file) if isinstance(file, (str, os.PathLike)) else file
        try:
            with _told("it is damaged or cut short"):
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
        """Give a member, read up to its array's bytes, and their header."""
        entry = self._entries[name]
        with ExitStack() as stack:
            with _told(f"it holds {cut(name)} as no array of numbers"):
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("in a rare compression")
                file = stack.enter_context(self._archive.open(entry))
                header = _read_header(file)
                if file.tell() + header.nbytes != entry.file_size:
                    raise ValueError(f"{entry.file_size} bytes for {header.dtype} of shape {header.shape}")
            yield file, header

    def header(self, name):
        """Read what the archive says of an array.

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
            If the archive is damaged there, or holds anything but an array of numbers.
        """
        with self._open(name) as (_file, header):
            return header

    def array(self, name):
        """Read an array; see `header`, which tells its size beforehand."""
        with self._open(name) as (file, header), _told("it is damaged or cut short"):
            # The byte too many brings zipfile to the end, where it tests the checksum.
            data = read_up_to(file, header.nbytes + 1)
            if len(data) != header.nbytes:
                raise EOFError(f"{len(data)} bytes for {cut(name)}, not {header.nbytes}")
            return np.ndarray(header.shape, header.dtype, data, order=header.order)


def read_uncompressed(path):
    """Read all arrays of an archive that ``numpy.savez`` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to numpy.ndarray
        Together no larger than the file.

    Raises
    ------
    ValueError
        If the file is no such archive, or is damaged; the message says how, and the caller knows whose.
    OSError
        If it cannot be opened.
    """
    with NpzReader(path) as archive:
        total = sum(archive.header(name).nbytes for name in archive.names)
        if total > archive.size:
            raise ValueError(f"it unpacks to {total} bytes, more than the file has; use numpy.savez")
        return {name: archive.array(name) for name in archive.names}
