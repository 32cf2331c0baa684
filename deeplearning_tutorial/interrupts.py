"""Ctrl-C, and SIGTERM where it is treated alike."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def on_interrupt(handler):
    """Have a handler called where Ctrl-C, or SIGTERM treated alike, would raise KeyboardInterrupt.

    It is called between any two lines, in the midst of writing one, and within compiled code: let it set a
    flag, or raise KeyboardInterrupt.
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
    """Have SIGTERM, by which schedulers and containers end a job, interrupt this process as Ctrl-C does."""
    # Whoever has it ignored wants it so.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
