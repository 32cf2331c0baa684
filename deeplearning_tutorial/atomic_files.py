"""Files that are either replaced whole or left as they were, whatever interrupts the writing.

A link is followed, so that it is the file it names that is replaced. Only where a file cannot be replaced,
for it is a mount point or in a folder that takes no other file, it is written in place.
"""

import errno
import os
import secrets
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

# Without a byte for so long nobody can be writing a file any more, whatever its process and clock.
STALE_SECONDS = 3600.0
# Bytes of a file's name within that of its part, which may be no longer than the system's 255 (or 143).
_NAME_BYTES = 32
_CANNOT_REPLACE = {errno.EACCES, errno.EBUSY, errno.EPERM, errno.EROFS}


def _real(path):
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _beginning(target):
    """Return what the names of a file's parts begin with."""
    return f".{os.fsencode(target.name)[:_NAME_BYTES].decode(errors='ignore')}."


@contextmanager
def part_file(target):
    """Open a file beside ``target``, a Path, and give both; unless renamed it is removed at the end."""
    target = _real(target)
    # In the same folder, for only a rename within one file system is atomic. Not by tempfile, whose files
    # none but their owner may read.
    part = target.with_name(f"{_beginning(target)}{secrets.token_hex(4)}.part")
    try:
        # Without a buffer, for the time of the last write shows others that it grows.
        with open(part, "xb", buffering=0) as file:
            yield file, part
    finally:
        part.unlink(missing_ok=True)


def put_in_place(file, part, target):
    """Give a `part_file` the name ``target``, once all of it is on the disk."""
    os.fsync(file.fileno())
    file.close()
    os.replace(part, _real(target))


def write_all(file, data):
    """Write all bytes to a file without a buffer, which may take fewer at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_atomically(path, data):
    """Write bytes to ``path``, a Path."""
    try:
        with part_file(path) as (file, part):
            write_all(file, data)
            put_in_place(file, part, path)
    except OSError as error:
        if not _stays_in_place(path, error):
            raise
        with open(path, "r+b", buffering=0) as file:
            write_all(file, data)
            file.truncate()
            os.fsync(file.fileno())


def _stays_in_place(path, error):
    """Tell whether ``path`` is a file that cannot be replaced, as the ``error`` of trying says."""
    return error.errno in _CANNOT_REPLACE and path.is_file()


def try_writing(path):
    """Do all that `write_atomically` does but write, and leave no trace.

    Parameters
    ----------
    path : pathlib.Path

    Raises
    ------
    OSError
        If the folder is missing, or neither takes the file nor lets the one that is there be written.
    """
    target = _real(path)
    try:
        with part_file(target) as (_file, part):
            if target.is_file():
                _refuse_mount_point(target, part)
            else:
                # The file system may refuse the name itself. It is tried in a folder of its own: another
                # process that opens the file in its place would lose it when it is removed again.
                with TemporaryDirectory(prefix=_beginning(target), dir=target.parent) as folder:
                    open(Path(folder, target.name), "xb").close()
    except OSError as error:
        if not _stays_in_place(path, error):
            raise
        open(path, "r+b").close()


def _refuse_mount_point(target, part):
    part.unlink()
    try:
        os.link(target, part)
    except OSError as error:
        # Not every file system has links, but from a mount point to its folder there is none on any.
        if error.errno == errno.EXDEV:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target)) from error


def remove_stale_parts(target):
    """Remove what processes left that were killed while they wrote ``target``, a Path."""
    target = _real(target)
    # They may be gone meanwhile, or belong to somebody else; neither does harm.
    with suppress(OSError):
        for part in list(target.parent.iterdir()):
            if part.name.startswith(_beginning(target)) and part.suffix == ".part":
                with suppress(OSError):
                    if time.time() - part.stat().st_mtime > STALE_SECONDS:
                        part.unlink()
