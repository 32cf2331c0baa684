"""The files a training run keeps: its best model, its checkpoint and its log."""

import csv
import inspect
import io
import json
import os
from dataclasses import astuple, fields, replace

import pytensor
from pytensor.compile.mode import get_default_mode, get_mode
from tqdm import tqdm

from deeplearning_tutorial.atomic_files import remove_stale_parts
from deeplearning_tutorial.bounded import cut, shown
from deeplearning_tutorial.checkpoint import (
    VERSIONS,
    Checkpoint,
    data_fingerprint,
    read_checkpoint,
    write_checkpoint,
)
from deeplearning_tutorial.parameters import (
    check_fit,
    check_save_path,
    check_writable,
    copy_parameters,
    save_parameters,
)
from deeplearning_tutorial.results import Validation
from deeplearning_tutorial.streams import stderr


class TrainingFiles:
    """Keep a training run on disk, and take it up again.

    A file that cannot be written later on stops nothing: a warning goes to stderr, and each validation tries
    again. A file is either replaced whole or left as it was.

    Parameters
    ----------
    script : str
        Name of the script.
    function : callable, optional
        Its training function. An argument that a checkpoint lacks did not exist when it was written, and had
        the value that is its default now.
    save, checkpoint, log : path or None
        ``.npz`` files for the best model and for the complete state, ``.csv`` for a line per validation.
    resume : bool
        Go on from ``checkpoint`` if it exists.
    dataset : path, optional
        What is trained on, which no file may overwrite. A checkpoint knows it by its contents.
    progress, channel
        Not used. They are here so that ``**locals()`` may be given.
    **arguments
        What shapes the result, and must be the same where the run is resumed; but ``n_epochs`` may be any
        number not below the epochs trained.

    Attributes
    ----------
    arguments : dict
        As above, with ``floatX`` and ``mode``, as JSON has them.
    resumed : Checkpoint or None
        Where the run goes on from.
    unwritten : dict of str to str
        What could not be written at the last attempt, and why.

    Raises
    ------
    ValueError
        If the paths are not fit, or ``checkpoint`` holds another run or is damaged.
    FileExistsError
        If ``checkpoint`` or ``log`` exists and ``resume`` is False.
    OSError
        If a folder is missing or cannot be written.
    """

    def __init__(
        self,
        script="",
        function=None,
        *,
        save=None,
        checkpoint=None,
        resume=False,
        log=None,
        dataset=None,
        progress=False,
        channel=None,
        **arguments,
    ):
        arguments |= {"floatX": pytensor.config.floatX, "mode": back_end()}
        self.arguments = as_json(arguments)
        self.resumed = None
        self.unwritten = {}
        self._about = {"script": script, "arguments": self.arguments}
        self._data = ""
        self._saved_iteration = 0
        self._save = None if save is None else check_save_path(save)
        self._checkpoint = None if checkpoint is None else check_save_path(checkpoint, "checkpoint")
        log = None if log is None else check_writable(log, "log", appended=True)
        self._check_paths(resume, log, dataset)
        if resume:
            self._resume(script, {} if function is None else _defaults(function))
        self._log = None if log is None else _Log(log, resume, self.resumed)
        for path in filter(None, (self._save, self._checkpoint)):
            remove_stale_parts(path)

    def check_data(self, datasets):
        """Raise ValueError if the run that is resumed was trained on other data than ``datasets``."""
        if self._checkpoint is None:
            return
        self._data = data_fingerprint(datasets)
        if self.resumed is not None and self.resumed.data != self._data:
            raise ValueError(
                f"checkpoint={str(self._checkpoint)!r} belongs to another data set: {cut(self.resumed.data)} "
                f"there, {self._data} here; give the same dataset, or another checkpoint to start anew"
            )

    def restore(self, parameters, minibatches, optimiser=None):
        """Set the shared variables as they were; return the result, iteration and patience.

        ``parameters`` and ``optimiser`` hold them by name, as `train_with_patience` takes them.
        """
        resumed, optimiser = self.resumed, optimiser or {}
        for stored in filter(None, (resumed.parameters, resumed.result.best_parameters)):
            check_fit(self._checkpoint, stored, parameters)
        check_fit(self._checkpoint, resumed.optimiser, optimiser)
        if resumed.result.minibatches != minibatches:
            raise ValueError(
                f"checkpoint={str(self._checkpoint)!r} is damaged: {resumed.result.minibatches} minibatches "
                f"there, {minibatches} here; start anew with another checkpoint"
            )
        values = [(param, resumed.parameters[name]) for name, param in parameters.items()]
        values += [(variable, resumed.optimiser[name]) for name, variable in optimiser.items()]
        for param, value in values:
            if self.arguments["mode"] == "JAX":
                # There PyTensor's sums give float64 whatever their type says, and so do the updates;
                # set_value would refuse it, and a cast lose the last digits.
                param.container.storage[0] = value
            else:
                param.set_value(value.astype(param.dtype))
        print(f"Going on after iteration {resumed.iteration} from {self._checkpoint}", file=stderr)
        if resumed.versions != VERSIONS:
            print(
                f"NOTICE: {self._checkpoint} was written with {_listed(resumed.versions)}; "
                f"with {_listed(VERSIONS)} the last digits may come out otherwise.",
                file=stderr,
            )
        result = replace(resumed.result, history=list(resumed.result.history))
        return result, resumed.iteration, resumed.patience

    def write(self, result, iteration, patience, parameters, optimiser=None):
        """Write the best model if it is new, a line of the log per new validation, and the checkpoint."""
        if self._save is not None and self._saved_iteration != result.best_iteration:
            self._try("the best model", self._save, self._save_best, result)
        # Before the checkpoint: of two lines for one validation, resuming drops the first.
        if self._log is not None:
            self._try("the log", self._log.path, self._log.write, result.history)
        if self._checkpoint is not None:
            state = Checkpoint(
                iteration=iteration,
                patience=patience,
                parameters=copy_parameters(parameters),
                optimiser=copy_parameters(optimiser or {}),
                result=result,
                data=self._data,
                **self._about,
            )
            self._try("the checkpoint", self._checkpoint, write_checkpoint, self._checkpoint, state)

    def whereabouts(self):
        """Say which files hold what was reached."""
        told = []
        if self._saved_iteration:
            told.append(f"The best model is in {self._save}.")
        if self._checkpoint is not None and self._checkpoint.exists():
            told.append(f"The checkpoint is {self._checkpoint}; resume to go on from there.")
        return " ".join(told)

    def _check_paths(self, resume, log, dataset):
        named = {"dataset": dataset, "save": self._save, "checkpoint": self._checkpoint, "log": log}
        given = [(name, path) for name, path in named.items() if path is not None]
        for i, (name, path) in enumerate(given):
            for other, other_path in given[:i]:
                # Links to one file are one file.
                if os.path.realpath(path) == os.path.realpath(other_path):
                    raise ValueError(f"{other} and {name} are both {str(path)!r}; give two names")
        if resume and self._checkpoint is None:
            raise ValueError("resume=True needs the file to go on from; give checkpoint, too")
        if self._checkpoint is not None and not resume:
            _refuse_existing("checkpoint", self._checkpoint)

    def _resume(self, script, defaults):
        path = self._checkpoint
        if not path.exists():
            print(f"There is no checkpoint {path} yet: training starts anew", file=stderr)
            return
        resumed = read_checkpoint(path)
        here = self.arguments
        there = as_json({name: value for name, value in defaults.items() if name in here})
        there |= resumed.arguments
        if resumed.script != script:
            there, here = {"script": resumed.script}, {"script": script}
        differences = [
            f"{cut(name)} is {shown(there.get(name))} there and {here.get(name)!r} here"
            for name in here | there
            if name != "n_epochs" and there.get(name) != here.get(name)
        ]
        if differences:
            raise ValueError(
                f"checkpoint={str(path)!r} belongs to another run: {cut('; '.join(differences), 1000)}. "
                "Give the same arguments, or another checkpoint to start anew"
            )
        n_epochs = self.arguments.get("n_epochs", resumed.result.epochs)
        if n_epochs < resumed.result.epochs:
            raise ValueError(
                f"n_epochs={n_epochs}, but checkpoint={str(path)!r} has reached epoch "
                f"{resumed.result.epochs}; use n_epochs={resumed.result.epochs} or more"
            )
        self.resumed = resumed

    def _save_best(self, result):
        save_parameters(self._save, result.best_parameters, about=self._about)
        self._saved_iteration = result.best_iteration

    def _try(self, what, path, write, *arguments):
        try:
            write(*arguments)
        except OSError as error:
            message = f"{what} could not be written to {path}: {error.strerror or error}"
            if self.unwritten.get(what) != message:
                # Not by print, for there may be a progress bar.
                tqdm.write(f"WARNING: {message}; each validation tries again", file=stderr)
            self.unwritten[what] = message
        else:
            self.unwritten.pop(what, None)


class _Log:
    """A ``.csv`` file to which the validations are appended as they come."""

    def __init__(self, path, resume, resumed):
        self.path = path
        history = [] if resumed is None else resumed.result.history
        expected = _csv([[f.name for f in fields(Validation)]]) + _csv(map(astuple, history))
        present = path.read_bytes() if path.exists() else b""
        # Killed in between, the run had logged more than the checkpoint has; of a run without a checkpoint
        # that is one line at most.
        continued = present.startswith(expected) and (history or present.count(b"\n") <= 2)
        if resume and not continued and not expected.startswith(present):
            raise ValueError(
                f"log={str(path)!r} holds other validations than this run's; give another name, or remove it"
            )
        if not resume and not expected.startswith(present):
            _refuse_existing("log", path)
        self._size = min(len(present), len(expected))
        self._pending = expected[self._size :]
        self._n_validations = len(history)

    def write(self, history):
        """Append what ``history`` has more than at the last call."""
        self._pending += _csv(map(astuple, history[self._n_validations :]))
        self._n_validations = len(history)
        with open(self.path, "ab") as file:
            # A line cut short by a full disk, or one that will come again.
            file.truncate(min(self._size, file.tell()))
            file.write(self._pending)
            file.flush()
            self._size = file.tell()
        self._pending = b""


def as_json(arguments):
    """Return arguments, a dict, as they come back from a file: tuples are lists, NumPy's ints are ints."""
    return json.loads(json.dumps(arguments, default=int))


def _defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _csv(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def back_end():
    """Name the back end as ``--mode`` does, also where the configuration holds a Mode object.

    PyTensor puts one there itself while it compiles, and leaves it if two threads compile at once.
    """
    name = pytensor.config.mode
    if isinstance(name, str) and name != "Mode":
        return name
    mode = get_default_mode()
    named = (name for name in ("FAST_COMPILE", "FAST_RUN") if get_mode(name) is mode)
    linker = type(mode.linker).__name__.removesuffix("Linker").upper()
    return linker if linker != "VM" else next(named, linker)


def _refuse_existing(name, path):
    if path.exists():
        raise FileExistsError(f"{name}={str(path)!r} exists; resume that run, or give another name")


def _listed(versions):
    return cut(", ".join(f"{name} {version}" for name, version in versions.items()))
