"""Read files whose claims about their size may be false, and quote them in messages of bounded length."""

import io
import os
import selectors
import stat

PIECE = 1 << 20
MAX_QUOTED = 200
# A pipe has no size. This is as much as any file here may unpack to.
MAX_PIPED = 1 << 30
# Seconds to wait for a pipe's first byte, and for each further one before its writer counts as dead.
PIPE_BEGIN, PIPE_SILENCE = 2.0, 15.0


def open_file(path):
    """Open a file for reading, or read a pipe into memory.

    Parameters
    ----------
    path : path
        A file, or a pipe such as ``<(command)`` in a shell.

    Returns
    -------
    binary file object
        Seekable.

    Raises
    ------
    ValueError
        If it is a device or a socket, which may have no end, or if a pipe yields nothing or more than
        `MAX_PIPED` bytes. The message gives the reason; the caller adds the path.
    OSError
        If it cannot be opened.
    """
    kind = os.stat(path).st_mode
    if stat.S_ISFIFO(kind):
        return _read_pipe(path)
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise ValueError("it is a device or socket, not a file")
    return open(path, "rb")


def _read_pipe(path):
    # Non-blocking, because opening a pipe waits for a writer, and reading for a byte, without limit.
    def open_nonblocking(path, flags):
        return os.open(path, flags | os.O_NONBLOCK)

    contents = io.BytesIO()
    opened = open(path, "rb", buffering=0, opener=open_nonblocking)
    with opened as pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        # Until somebody writes, a read returns b"" as it does at the end, so wait first.
        selector.select(PIPE_BEGIN)
        while (piece := pipe.read(PIECE)) != b"":
            if piece is not None:
                contents.write(piece)
            elif not selector.select(PIPE_SILENCE):
                raise ValueError(f"nothing came through the pipe for {PIPE_SILENCE:g} seconds")
            if contents.tell() > MAX_PIPED:
                raise ValueError(f"more than {MAX_PIPED} bytes came through the pipe; give a file")
    if not contents.tell():
        raise ValueError("nothing came through the pipe; a pipe can be read only once")
    contents.seek(0)
    return contents


def read_up_to(file, n):
    """Read ``n`` bytes, or fewer where the file ends.

    Parameters
    ----------
    file : file object
        Binary.
    n : int
        Number of bytes that the file claims to have. ``file.read(n)`` would allocate all of them at once.

    Returns
    -------
    bytearray
    """
    data = bytearray()
    while len(data) < n and (piece := file.read(min(n - len(data), PIECE))):
        data += piece
    return data


def short_repr(value):
    """Return ``repr(value)``, truncated: a value from a file may be of any length."""
    return cut(repr(value))


def cut(text, longest=MAX_QUOTED):
    """Return a text, truncated to its first ``longest`` characters."""
    return text if len(text) <= longest else f"{text[:longest]} ..."


def listed(names):
    """Join the names of what a file or folder holds, truncated."""
    return cut(", ".join(names) or "nothing", 1000)
