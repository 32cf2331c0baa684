"""Standard output and error that decide nothing: what they do not take is dropped.

Either may be missing (pythonw, a service, ``2>&-``), closed, full, a pipe that nobody reads any more, a
terminal that has hung up, or an object of the caller's. `stdout` and `stderr` write to whatever `sys` has
under these names at that moment, and never raise::

    print("... training", file=stdout)
"""

import atexit
import os
import sys
from contextlib import contextmanager, suppress
from functools import wraps

from tqdm import tqdm


class _Standard:
    """A file that passes text on to a stream of `sys`.

    Attributes
    ----------
    error : Exception or None
        Why the stream did not take something, the first time.
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
        except Exception as error:  # an object of the caller's may raise anything
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
        """Tell whether it is a terminal; a stream that cannot say is none."""
        with suppress(Exception):
            return bool(getattr(sys, self.name).isatty())
        return False

    def fileno(self):
        """Return the stream's descriptor, of which progress bars ask the width; raise if there is none."""
        return getattr(sys, self.name).fileno()

    @property
    def encoding(self):
        """The stream's encoding, or ASCII if it tells none."""
        return getattr(getattr(sys, self.name), "encoding", None) or "ascii"


stdout, stderr = _Standard("stdout"), _Standard("stderr")


@contextmanager
def past_bars():
    """Have what is printed on a terminal get past progress bars, this package's and the caller's."""
    if stderr.isatty():
        with tqdm.external_write_mode(file=stderr), tqdm.external_write_mode(file=sys.stdout):
            yield
    else:
        yield


def prepare():
    """Make this process's own streams fit for a command.

    Characters that stdout's encoding lacks are written as escapes. Descriptors 0 to 2 that are closed are
    opened on nothing, or the next file opened would receive what libraries write to them. At the end a stream
    that cannot be flushed is turned to nothing, for Python would end with status 120.
    """
    stdout.error = stderr.error = None
    with suppress(Exception):
        sys.stdout.reconfigure(errors="backslashreplace")
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # It takes the lowest one that is free. Processes started by this one are to have it, too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    atexit.unregister(_settle)
    atexit.register(_settle)


def _settle():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            with suppress(Exception):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, stream.fileno())


def finish():
    """Return the exit status of a command whose product is its output: 1, after a word, if that was lost.

    A reader that has gone away, such as ``head``, has had what it wanted.
    """
    stdout.flush()
    if stdout.error is None or isinstance(stdout.error, BrokenPipeError):
        return 0
    reason = getattr(stdout.error, "strerror", None) or stdout.error
    print(f"stdout could not be written: {reason}", file=stderr)
    return 1


def command(main):
    """Decorate a command's ``main``, which returns its exit status and whose product is its output."""

    @wraps(main)
    def run(*arguments, **options):
        prepare()
        return main(*arguments, **options) or finish()

    return run
