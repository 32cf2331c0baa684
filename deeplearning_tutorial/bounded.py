"""For files that may lie about their size: nothing is made before its bytes have come, or shown at length."""

import io
import os
import selectors
import stat

PIECE = 1 << 20
LONGEST_SHOWN = 200
# Of a pipe, which has no size, no more is kept than any file here may unpack to.
MAX_PIPED = 1 << 30
# Seconds for somebody to begin to write to a pipe, and without a byte, after which he is taken for dead.
PIPE_BEGIN, PIPE_SILENCE = 2.0, 15.0


def open_file(path):
    """Open a file to read, or take all that comes through a pipe.

    Parameters
    ----------
    path : path
        A file, or a pipe such as ``<(command)`` in a shell.

    Returns
    -------
    binary file object
        One that can seek, too.

    Raises
    ------
    ValueError
        If it is a device or a socket, which may have no end, or a pipe through which nothing or more than
        `MAX_PIPED` bytes come; the message says how, and the caller knows whose.
    OSError
        If it cannot be opened.
    """
    kind = os.stat(path).st_mode
    if stat.S_ISFIFO(kind):
        return _all_of_pipe(path)
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise ValueError("it is a device or socket, not a file")
    return open(path, "rb")


def _all_of_pipe(path):
    # Without waiting, for opening waits for somebody to write and reading for a byte, either without end.
    def open_at_once(path, flags):
        return os.open(path, flags | os.O_NONBLOCK)

    kept = io.BytesIO()
    with open(path, "rb", buffering=0, opener=open_at_once) as pipe, selectors.DefaultSelector() as waiting:
        waiting.register(pipe, selectors.EVENT_READ)
        # Before anybody writes it looks as after the end, but for the waiting.
        waiting.select(PIPE_BEGIN)
        while (piece := pipe.read(PIECE)) != b"":
            if piece is not None:
                kept.write(piece)
            elif not waiting.select(PIPE_SILENCE):
                raise ValueError(f"nothing came through the pipe for {PIPE_SILENCE:g} seconds")
            if kept.tell() > MAX_PIPED:
                raise ValueError(f"more than {MAX_PIPED} bytes came through the pipe; give a file")
    if not kept.tell():
        raise ValueError("nothing came through the pipe; a pipe can be read only once")
    kept.seek(0)
    return kept


def read_up_to(file, n):
    """Read ``n`` bytes, or fewer where the file ends.

    Parameters
    ----------
    file : file object
        Binary.
    n : int
        How many a file claims to have. ``file.read(n)`` would make room for all of them at once.

    Returns
    -------
    bytearray
    """
    data = bytearray()
    while len(data) < n and (piece := file.read(min(n - len(data), PIECE))):
        data += piece
    return data


def shown(value):
    """Return ``repr(value)``, cut short: what a file says may be of any length."""
    return cut(repr(value))


def cut(text, longest=LONGEST_SHOWN):
    """Return a text, cut short."""
    return text if len(text) <= longest else f"{text[:longest]} ..."


def listed(names):
    """Name what a file or folder holds, cut short."""
    return cut(", ".join(names) or "nothing", 1000)
