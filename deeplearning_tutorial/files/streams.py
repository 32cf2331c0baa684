"""Standard output and error that never raise: text that cannot be written is dropped.

Either may be missing (pythonw, a service, ``2>&-``), closed, full, a pipe without a reader, a terminal that
has hung up, or an object that the caller put there. `stdout` and `stderr` look up the stream of that name in
`sys` at each write::

    print("... training", file=stdout)
"""

import atexit
import os
import sys
from contextlib import contextmanager, suppress
from functools import wraps

from tqdm import tqdm


class _Standard:
    """A file that forwards text to a stream of `sys`.

    Attributes
    ----------
    error : Exception or None
        The first error of a write or flush.
    """

    def __init__(self, name):
        self.name = name
        self.error = None

    def _call(self, method, *arguments):
        stream = getattr(sys, self.name)
        if stream is None:
            return None
        try:
            return getattr(stream, method)(*arguments)
        except UnicodeEncodeError:
            raise
        except Exception as error:  # the caller's own object may raise anything
            self.error = self.error or error
            return None

    def write(self, text):
        try:
            self._call("write", text)
        except UnicodeEncodeError:
            with suppress(UnicodeError, LookupError):
                escaped = text.encode(self.encoding, "backslashreplace")
                self._call("write", escaped.decode(self.encoding))
        return len(text)

    def flush(self):
        self._call("flush")

    def isatty(self):
        """Whether it is a terminal; False if the stream cannot tell."""
        with suppress(Exception):
            return bool(getattr(sys, self.name).isatty())
        return False

    def fileno(self):
        """Return the stream's descriptor, which progress bars need for the width; raise if there is none."""
        return getattr(sys, self.name).fileno()

    @property
    def encoding(self):
        """The stream's encoding, or ASCII if it has none."""
        return getattr(getattr(sys, self.name), "encoding", None) or "ascii"


stdout, stderr = _Standard("stdout"), _Standard("stderr")


@contextmanager
def past_bars():
    """Hide progress bars, this package's and the caller's, while text is printed on a terminal."""
    if stderr.isatty():
        with tqdm.external_write_mode(file=stderr), tqdm.external_write_mode(file=sys.stdout):
            yield
    else:
        yield


def prepare():
    """Prepare this process's standard streams for a command.

    Write characters that stdout's encoding lacks as escapes. Open closed descriptors 0 to 2 on the null
    device; otherwise the next file opened would receive what libraries write to them. At exit, redirect a
    stream that cannot be flushed to the null device; otherwise Python would exit with status 120.
    """
    stdout.error = stderr.error = None
    with suppress(Exception):
        sys.stdout.reconfigure(errors="backslashreplace")
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # `os.open` takes the lowest free descriptor. Child processes need it, too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    atexit.unregister(_redirect_broken_streams)
    atexit.register(_redirect_broken_streams)


def _redirect_broken_streams():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            with suppress(Exception):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())


def finish():
    """Return the exit status of a command that prints its result: 1, after a message, if the result was lost.

    A reader that closed the pipe, such as ``head``, is no error.
    """
    stdout.flush()
    if stdout.error is None or isinstance(stdout.error, BrokenPipeError):
        return 0
    reason = getattr(stdout.error, "strerror", None) or stdout.error
    print(f"stdout could not be written: {reason}", file=stderr)
    return 1


def command(main):
    """Decorate the ``main`` of a command that prints its result; ``main`` returns the exit status."""

    @wraps(main)
    def run(*arguments, **options):
        prepare()
        return main(*arguments, **options) or finish()

    return run
