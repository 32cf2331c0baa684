"""Ctrl-C, and SIGTERM where it is treated alike."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def on_interrupt(handler):
    """Call a handler where Ctrl-C, or SIGTERM treated alike, would raise KeyboardInterrupt.

    It may be called between any two lines, while one is being written, and within compiled code: let it only
    set a flag, or raise KeyboardInterrupt.
    """
    signals = []
    # Only the main thread may set handlers.
    if threading.current_thread() is threading.main_thread():
        both = signal.SIGINT, signal.SIGTERM
        signals = [each for each in both if signal.getsignal(each) is signal.default_int_handler]
    try:
        for each in signals:
            signal.signal(each, handler)
        yield
    finally:
        for each in signals:
            signal.signal(each, signal.default_int_handler)


def treat_sigterm_alike():
    """Make SIGTERM, with which schedulers and containers end a job, interrupt this process as Ctrl-C does."""
    # If it is ignored, somebody wants it so.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
