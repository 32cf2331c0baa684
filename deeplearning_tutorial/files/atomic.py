"""Replace a file completely or leave it unchanged, whatever interrupts the write.

A symbolic link is followed: the file that it names is replaced. A file that cannot be replaced, because it
is a mount point or its folder accepts no new files, is written in place. ``tempfile`` alone does not suffice:
it creates files that only their owner can read. ``atomicwrites`` uses it, replaces the link itself, and
neither writes a mount point in place nor removes what killed processes left behind.
"""

import errno
import os
import secrets
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

# A part that has not grown for this long has no writer any more, even if clocks differ.
STALE_SECONDS = 3600.0
# Bytes of the file's name that its part's name repeats: the system allows 255 (or 143) in all.
_NAME_BYTES = 32
_CANNOT_REPLACE = {errno.EACCES, errno.EBUSY, errno.EPERM, errno.EROFS}


def real_path(path):
    """Return ``path`` without links, or as it is if it is relative and the working directory is gone."""
    try:
        return os.path.realpath(path)
    except FileNotFoundError:
        return os.fspath(path)


def _resolve(path):
    target = Path(real_path(path))
    if not target.is_absolute():
        raise FileNotFoundError(errno.ENOENT, "the working directory is gone", str(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _part_prefix(target):
    """Return the common prefix of the names of a file's parts."""
    return f".{os.fsencode(target.name)[:_NAME_BYTES].decode(errors='ignore')}."


@contextmanager
def part_file(target):
    """Open a new file beside ``target``, a Path; yield it and its path, and remove it unless renamed."""
    target = _resolve(target)
    # In the same folder, because a rename is atomic only within one file system.
    part = target.with_name(f"{_part_prefix(target)}{secrets.token_hex(4)}.part")
    try:
        # Unbuffered, so that the modification time tells other processes that the file is growing.
        with open(part, "xb", buffering=0) as file:
            yield file, part
    finally:
        part.unlink(missing_ok=True)


def put_in_place(file, part, target):
    """Flush a `part_file` to disk and rename it to ``target``."""
    os.fsync(file.fileno())
    file.close()
    os.replace(part, _resolve(target))


def write_all(file, data):
    """Write all bytes to an unbuffered file, whose ``write`` may accept only some of them."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[file.write(remaining) :]


def write_atomically(path, data):
    """Replace the contents of ``path``, a Path, with ``data``."""
    try:
        with part_file(path) as (file, part):
            write_all(file, data)
            put_in_place(file, part, path)
    except OSError as error:
        if not _must_write_in_place(path, error):
            raise
        with open(path, "r+b", buffering=0) as file:
            write_all(file, data)
            file.truncate()
            os.fsync(file.fileno())


def _must_write_in_place(path, error):
    """Whether ``error`` says that the file at ``path`` exists but cannot be replaced."""
    return error.errno in _CANNOT_REPLACE and path.is_file()


def try_writing(path):
    """Raise OSError if `write_atomically` could not write ``path``; leave no trace.

    Parameters
    ----------
    path : pathlib.Path

    Raises
    ------
    OSError
        If the folder is missing, or the file can be neither created nor replaced nor written in place.
    """
    target = _resolve(path)
    try:
        with part_file(target) as (_file, part):
            if target.is_file():
                _refuse_mount_point(target, part)
            else:
                # The file system may refuse the name itself. Try it in a temporary folder: created at its
                # own place, the file could be opened by another process before it is removed again.
                with TemporaryDirectory(prefix=_part_prefix(target), dir=target.parent) as folder:
                    open(Path(folder, target.name), "xb").close()
    except OSError as error:
        if not _must_write_in_place(path, error):
            raise
        open(path, "r+b").close()


def _refuse_mount_point(target, part):
    part.unlink()
    try:
        os.link(target, part)
    except OSError as error:
        # Some file systems have no hard links, but EXDEV always means a mount point.
        if error.errno == errno.EXDEV:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target)) from error


def remove_stale_parts(target):
    """Remove the parts left by processes that were killed while writing ``target``, a Path."""
    target = _resolve(target)
    # Another process may have removed them, or another user may own them; either is harmless.
    with suppress(OSError):
        for part in list(target.parent.iterdir()):
            if part.name.startswith(_part_prefix(target)) and part.suffix == ".part":
                with suppress(OSError):
                    if time.time() - part.stat().st_mtime > STALE_SECONDS:
                        part.unlink()
