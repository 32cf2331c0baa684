"""Files that are either replaced whole or left as they were, whatever interrupts the writing."""

import os
import secrets
import time
from contextlib import contextmanager, suppress

# Without a byte for so long nobody can be writing a file any more, whatever its process and clock.
STALE_SECONDS = 3600.0


@contextmanager
def part_file(target):
    """Open a file beside ``target``, a Path, and give both; unless renamed it is removed at the end."""
    # In the same folder, for only a rename within one file system is atomic. Not by tempfile, whose files
    # none but their owner may read.
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
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
    os.replace(part, target)


def write_all(file, data):
    """Write all bytes to a file without a buffer, which may take fewer at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_atomically(path, data):
    """Write bytes to ``path``, a Path."""
    with part_file(path) as (file, part):
        write_all(file, data)
        put_in_place(file, part, path)


def remove_stale_parts(target):
    """Remove what processes left that were killed while they wrote ``target``, a Path."""
    # They may be gone meanwhile, or belong to somebody else; neither does harm.
    with suppress(OSError):
        for part in list(target.parent.iterdir()):
            if part.name.startswith(f".{target.name}.") and part.suffix == ".part":
                with suppress(OSError):
                    if time.time() - part.stat().st_mtime > STALE_SECONDS:
                        part.unlink()
