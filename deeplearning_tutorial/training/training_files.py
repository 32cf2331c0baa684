"""The files a training run keeps: its best model, its checkpoint and its log."""

import csv
import io
import os
from dataclasses import astuple, fields, replace

import numpy as np
import pytensor
from pytensor.compile.mode import get_default_mode, get_mode
from tqdm import tqdm

from deeplearning_tutorial.datasets.fingerprint import data_fingerprint
from deeplearning_tutorial.files.atomic import real_path, remove_stale_parts
from deeplearning_tutorial.files.bounded import cut, short_repr
from deeplearning_tutorial.files.streams import stderr
from deeplearning_tutorial.training.checkpoint import (
    VERSIONS,
    Checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from deeplearning_tutorial.training.parameters import (
    check_fit,
    check_save_path,
    check_writable,
    copy_parameters,
    save_parameters,
)
from deeplearning_tutorial.training.results import Validation


class TrainingFiles:
    """Keep a training run on disk, and resume it.

    A file that cannot be written does not stop the training: a warning goes to stderr, and each validation
    tries again. A file is either replaced whole or left as it was.

    Parameters
    ----------
    script : str
        Name of the page.
    arguments : dict, optional
        What determines the result, as `Run.start` takes it.
    save, checkpoint, log : path, optional
        ``.npz`` files for the best model and for the complete state, ``.csv`` for a line per validation.
    resume : bool
        Continue from ``checkpoint`` if it exists.
    dataset : path, optional
        Training data; no output file may overwrite it.

    Attributes
    ----------
    arguments : dict
        As above, with ``floatX`` and ``mode``, as JSON has them.
    resumed : Checkpoint or None
        The state that the run continues from.
    write_errors : dict of str to str
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
        arguments=None,
        *,
        save=None,
        checkpoint=None,
        resume=False,
        log=None,
        dataset=None,
    ):
        self.arguments = as_json((arguments or {}) | {"floatX": pytensor.config.floatX, "mode": back_end()})
        self.resumed = None
        self.write_errors = {}
        self._metadata = {"script": script, "arguments": self.arguments}
        self._data = ""
        self._saved_iteration = 0
        self._save = None if save is None else check_save_path(save)
        self._checkpoint = None if checkpoint is None else check_save_path(checkpoint, "checkpoint")
        log = None if log is None else check_writable(log, "log", appended=True)
        self._check_paths(resume, log, dataset)
        if resume:
            self._resume(script)
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
                f"there, {self._data} here; give the same dataset, or another checkpoint for a new run"
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
                f"there, {minibatches} here; start a new run with another checkpoint"
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
        print(f"Resuming after iteration {resumed.iteration} from {self._checkpoint}", file=stderr)
        if resumed.versions != VERSIONS:
            print(
                f"NOTICE: {self._checkpoint} was written with {_listed(resumed.versions)}; "
                f"with {_listed(VERSIONS)} the last digits may differ.",
                file=stderr,
            )
        result = replace(resumed.result, history=list(resumed.result.history))
        return result, resumed.iteration, resumed.patience

    def write(self, result, iteration, patience, parameters, optimiser=None):
        """Write the best model if it is new, a line of the log per new validation, and the checkpoint."""
        if self._save is not None and self._saved_iteration != result.best_iteration:
            self._try("the best model", self._save, self._save_best, result)
        # Before the checkpoint: if it is killed in between, resuming drops the extra line.
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
                **self._metadata,
            )
            self._try("the checkpoint", self._checkpoint, write_checkpoint, self._checkpoint, state)

    def locations(self):
        """Say which files hold what was reached."""
        sentences = []
        if self._saved_iteration:
            sentences.append(f"The best model is in {self._save}.")
        # Not `Path.exists`, which raises if the folder cannot be accessed any more.
        if self._checkpoint is not None and os.path.exists(self._checkpoint):
            sentences.append(f"The checkpoint is {self._checkpoint}; resume to continue from there.")
        return " ".join(sentences)

    def _check_paths(self, resume, log, dataset):
        named = {"dataset": dataset, "save": self._save, "checkpoint": self._checkpoint, "log": log}
        given = [(name, path) for name, path in named.items() if path is not None]
        for i, (name, path) in enumerate(given):
            for other, other_path in given[:i]:
                # Links to one file are one file.
                if real_path(path) == real_path(other_path):
                    raise ValueError(f"{other} and {name} are both {str(path)!r}; give two names")
        if resume and self._checkpoint is None:
            raise ValueError("resume=True needs the file to continue from; give checkpoint as well")
        if self._checkpoint is not None and not resume:
            _refuse_existing("checkpoint", self._checkpoint)

    def _resume(self, script):
        path = self._checkpoint
        if not path.exists():
            print(f"There is no checkpoint {path} yet: training starts from the beginning", file=stderr)
            return
        resumed = read_checkpoint(path)
        here, there = self.arguments, resumed.arguments
        if here.keys() - there.keys():
            # It was written before these arguments existed.
            defaults = _defaults_of(script)
            there = {name: defaults[name] for name in here.keys() & defaults.keys()} | there
        if resumed.script != script:
            there, here = {"script": resumed.script}, {"script": script}
        differences = [
            f"{cut(name)} is {short_repr(there.get(name))} there and {here.get(name)!r} here"
            for name in here | there
            if name != "n_epochs" and there.get(name) != here.get(name)
        ]
        if differences:
            raise ValueError(
                f"checkpoint={str(path)!r} belongs to another run: {cut('; '.join(differences), 1000)}. "
                "Give the same arguments, or another checkpoint for a new run"
            )
        n_epochs = self.arguments.get("n_epochs", resumed.result.epochs)
        if n_epochs < resumed.result.epochs:
            raise ValueError(
                f"n_epochs={n_epochs}, but checkpoint={str(path)!r} has reached epoch "
                f"{resumed.result.epochs}; use n_epochs={resumed.result.epochs} or more"
            )
        self.resumed = resumed

    def _save_best(self, result):
        save_parameters(self._save, result.best_parameters, metadata=self._metadata)
        self._saved_iteration = result.best_iteration

    def _try(self, what, path, write, *arguments):
        try:
            write(*arguments)
        except OSError as error:
            message = f"{what} could not be written to {path}: {error.strerror or error}"
            if self.write_errors.get(what) != message:
                # Not with print, because there may be a progress bar.
                tqdm.write(f"WARNING: {message}; each validation tries again", file=stderr)
            self.write_errors[what] = message
        else:
            self.write_errors.pop(what, None)


class _Log:
    """A ``.csv`` file to which each validation is appended."""

    def __init__(self, path, resume, resumed):
        self.path = path
        history = [] if resumed is None else resumed.result.history
        expected = _csv([[f.name for f in fields(Validation)]]) + _csv(map(astuple, history))
        present = path.read_bytes() if path.exists() else b""
        # A run that was killed in between has logged more than its checkpoint has; without a checkpoint, that
        # is at most one line.
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
        """Append what was added to ``history`` since the last call."""
        self._pending += _csv(map(astuple, history[self._n_validations :]))
        self._n_validations = len(history)
        with open(self.path, "ab") as file:
            # Drop a line that a full disk cut short, or that will be written again.
            file.truncate(min(self._size, file.tell()))
            file.write(self._pending)
            file.flush()
            self._size = file.tell()
        self._pending = b""


def as_json(value):
    """Return arguments as JSON has them: tuples as lists, and NumPy's numbers as Python's."""
    if isinstance(value, dict):
        return {name: as_json(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _defaults_of(script):
    """Return the defaults of a page of this package; of other scripts none are known."""
    # Imported here, because pages import this module.
    from deeplearning_tutorial.training.page import find_pages

    page = find_pages().get(script)
    return {} if page is None else as_json(page.defaults)


def _csv(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def back_end():
    """Name the back end as ``--mode`` does, even if the configuration holds a Mode object.

    PyTensor sets one itself while it compiles, and leaves it there if two threads compile at once.
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
