"""What is being compiled, and for how long: said on stderr from the first moment."""

import weakref
from timeit import default_timer

from numba.core import event
from tqdm import tqdm

from deeplearning_tutorial.files.streams import stderr
from deeplearning_tutorial.nnet.dispatch.numba.ahead import LACKING
from deeplearning_tutorial.nnet.dispatch.numba.machine_code import COMPILING, is_available

# Between two lines where stderr is no terminal, in seconds.
_PAUSE = 5


class CompilationProgress:
    """Say on stderr what Numba compiles, between `start` and `stop`.

    A terminal gets one line that changes, anything else a whole line every few seconds. Nothing is said where
    nothing is compiled.
    """

    def __init__(self):
        self._listeners = {}
        self._bar = None
        # In their order, each once.
        self._kernels = {}
        self._is_within_kernel = False
        self._parts = 0
        self._begun = self._said = None

    def start(self):
        """Begin to listen to Numba, once, whatever became of a former start."""
        self.stop()
        for kind, begun, ended in (
            (LACKING, self._note_kernels, None),
            (COMPILING, self._begin_kernel, self._end_kernel),
            ("numba:compile", None, self._end_function),
        ):
            self._listeners[kind] = _Listener(begun, ended)
            event.register(kind, self._listeners[kind])
        weakref.finalize(self, _unregister, self._listeners)

    def stop(self):
        """End it, and remove the line."""
        _unregister(self._listeners)
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _note_kernels(self, data):
        self._kernels |= dict.fromkeys(data["names"])
        self._say(f"{len(data['names'])} kernels for this processor")

    def _begin_kernel(self, data):
        self._is_within_kernel = True
        self._kernels.setdefault(data["name"])
        self._say(f"kernel {self._number()} of {len(self._kernels)}, {_short(data['name'])}")

    def _end_kernel(self, data):
        self._is_within_kernel = False

    def _number(self):
        # Another process compiles some of them.
        return min(1 + sum(map(is_available, self._kernels)), len(self._kernels))

    def _end_function(self, data):
        if not self._is_within_kernel:
            self._parts += 1
            self._say(f"the functions between the kernels, {self._parts} so far")

    def _say(self, what):
        now = default_timer()
        if self._begun is None:
            self._begun = now
        text = f"compiling {what}: {now - self._begun:.0f} s, and only this first time"
        if stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(bar_format="{desc}", file=stderr, leave=False, dynamic_ncols=True)
            self._bar.set_description_str(text)
        elif self._said is None or now - self._said >= _PAUSE:
            self._said = now
            print(text, file=stderr, flush=True)


class _Listener(event.Listener):
    """Call functions of weakly held objects with an event's data when it starts and ends."""

    def __init__(self, begun, ended):
        self._begun, self._ended = (method and weakref.WeakMethod(method) for method in (begun, ended))

    def on_start(self, event):
        _call(self._begun, event)

    def on_end(self, event):
        _call(self._ended, event)


def _call(reference, event):
    method = reference and reference()
    if method is not None:
        method(event.data)


def _unregister(listeners):
    while listeners:
        event.unregister(*listeners.popitem())


def _short(name):
    return name.rsplit(".", 1)[-1].split("-")[0]
