"""A training run: its options, its files, its progress bar, and how Ctrl-C ends it."""

import math
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from timeit import default_timer

import numpy as np
from tqdm import tqdm

from deeplearning_tutorial.datasets.fingerprint import MNIST_FINGERPRINT, data_fingerprint
from deeplearning_tutorial.files.streams import past_bars, stderr, stdout
from deeplearning_tutorial.training.compilation import CompilationProgress
from deeplearning_tutorial.training.interrupts import on_interrupt
from deeplearning_tutorial.training.parameters import copy_parameters
from deeplearning_tutorial.training.results import (
    CompilationFinished,
    DivergenceError,
    TrainingInterrupted,
    TrainingResult,
)
from deeplearning_tutorial.training.training_files import TrainingFiles

OPTIONS = frozenset({"save", "checkpoint", "resume", "log", "progress", "channel", "precompile"})


class Run:
    """The options of a training run, and the run itself.

    Every training function takes one as ``run``::

        evaluate_lenet5(n_epochs=3, run=Run(save="lenet.npz", checkpoint="run.npz", progress=True))

    Parameters
    ----------
    save : path, optional
        ``.npz`` file for the best model.
    checkpoint : path, optional
        ``.npz`` file that holds the complete state of the training after each validation.
    resume : bool
        Continue from ``checkpoint``, to the result of an uninterrupted run; start from the beginning if there
        is no such file yet.
    log : path, optional
        ``.csv`` file that gets a line after each validation.
    progress : bool
        Show a progress bar on stderr.
    channel : callable, optional
        Called with each `Validation` after the files were written; training ends after the one for which it
        returns ``'stop'``. An exception that it raises ends training as well.
    precompile : bool
        Compile what the run needs, by a call of each function, and raise CompilationFinished before training.

    Attributes
    ----------
    iteration : int
        Minibatches trained so far.
    patience : int or float
        Minibatches to train regardless of progress.
    result : TrainingResult
        What was reached so far.
    """

    def __init__(
        self,
        save=None,
        checkpoint=None,
        resume=False,
        log=None,
        progress=False,
        channel=None,
        precompile=False,
    ):
        self.save = save
        self.checkpoint = checkpoint
        self.resume = resume
        self.log = log
        self.progress = progress
        self.channel = channel
        self.precompile = precompile
        self.iteration = 0
        self._files = self._datasets = None
        self._compilation = CompilationProgress()

    def start(self, script, dataset=None, **arguments):
        """Check the files, and read the checkpoint to resume from, before any long work.

        Parameters
        ----------
        script : str
            Name of the page's module, as `Page.script` gives it.
        dataset : path, optional
            Training data; no output file may overwrite it. A checkpoint identifies it by its contents.
        **arguments
            What determines the result, and must be the same where the run is resumed; but ``n_epochs`` may be
            any number not below the epochs trained. Callables are given by name.

        Returns
        -------
        Run
            Itself.

        Raises
        ------
        ValueError
            If the paths are not fit, or ``checkpoint`` holds another run or is damaged.
        FileExistsError
            If ``checkpoint`` or ``log`` exists and ``resume`` is False.
        OSError
            If a folder is missing or cannot be written.
        """
        self._files = TrainingFiles(
            script,
            arguments,
            save=self.save,
            checkpoint=self.checkpoint,
            resume=self.resume,
            log=self.log,
            dataset=dataset,
        )
        self._datasets = None
        if self.progress:
            self._compilation.start()
        resumed = self._files.resumed
        self.iteration = 0 if resumed is None else resumed.iteration
        return self

    @property
    def arguments(self):
        """The arguments that identify the run, a dict as its files hold it; empty before its start."""
        return {} if self._files is None else self._files.arguments

    def check_data(self, datasets):
        """Raise ValueError if the run that is resumed was trained on other data than ``datasets``."""
        self._datasets = datasets
        self._files.check_data(datasets)

    def is_on_mnist(self):
        """Tell whether the run's data are MNIST itself."""
        return self._datasets is not None and data_fingerprint(self._datasets) == MNIST_FINGERPRINT

    @contextmanager
    def training(self, parameters, optimiser, minibatches, n_iterations, patience):
        """Surround the loop: restore the state before it, write the files after it, show its progress.

        Parameters
        ----------
        parameters : dict of str to shared variable
            The model's.
        optimiser : dict of str to shared variable, or None
            The optimiser's.
        minibatches : tuple of int
            In the training, validation and test set.
        n_iterations, patience : int
            Maximum number of iterations, and the initial patience.

        Yields
        ------
        TrainingResult
        """
        if self._files is None:
            self.start("")
        files = self._files
        self.result, self.patience = TrainingResult(minibatches=minibatches), patience
        self._parameters, self._optimiser, self._n_iterations = parameters, optimiser, n_iterations
        if files.resumed is not None:
            self.result, self.iteration, self.patience = files.restore(parameters, minibatches, optimiser)
        self._told_to_stop = self._compiled = False
        self._start = default_timer() - self.result.seconds
        with self._progress_bar() as self._bar, _Interrupt() as self._interrupt:
            try:
                yield self.result
                self._measure_time()
                self._write()
            except KeyboardInterrupt:
                raise self._interrupted(f"within iteration {self.iteration + 1}") from None
            finally:
                self._compilation.stop()
                self._measure_time()
                self.result.write_errors = list(files.write_errors.values())
        if self._interrupt.requested:
            raise self._interrupted(f"after iteration {self.iteration}")

    def compile(self, *functions):
        """Call functions of a minibatch's index once, which compiles them, and raise CompilationFinished."""
        for function in functions:
            function(0)
        self._compilation.stop()
        raise CompilationFinished("Compiled: training starts at once from now on", TrainingResult())

    @property
    def stopping(self):
        """Whether Ctrl-C or the channel asks for an end."""
        return self._interrupt.requested or self._told_to_stop

    def check_cost(self, cost):
        """Return the cost of a minibatch as a float; raise DivergenceError if it is not finite."""
        cost = float(cost)
        if not math.isfinite(cost):
            raise DivergenceError(self._diverged(cost), self.result)
        return cost

    def mean_error(self, model, n_batches):
        """Return the mean of what ``model`` gives for each minibatch."""
        errors = []
        for index in range(n_batches):
            if self._interrupt.acknowledge():
                self.print("Stopping after this validation; Ctrl-C again stops at once", file=stderr)
            errors.append(model(index))
        return float(np.mean(errors))

    def record_validation(self, validation, patience):
        """Note a validation, write the files, print the tutorial's lines, and inform the channel."""
        self.iteration, self.patience = validation.iteration, patience
        self._bar.total = min(self._n_iterations, patience + 1)
        result = self.result
        if validation.test_error is not None:
            result.best_validation_error = validation.validation_error
            result.best_iteration = validation.iteration
            result.test_error = validation.test_error
            result.best_parameters = copy_parameters(self._parameters)
        self._measure_time()
        validation = replace(validation, seconds=result.seconds)
        result.history.append(validation)
        self._write()
        position = f"epoch {validation.epoch}, minibatch {validation.minibatch}/{result.minibatches[0]}"
        self.print(f"{position}, validation error {validation.validation_error * 100:f} %")
        if validation.test_error is not None:
            self.print(f"     {position}, test error of best model {validation.test_error * 100:f} %")
        self._told_to_stop = self.channel is not None and self.channel(validation) == "stop"

    def record_minibatch(self, iteration, cost):
        """Note that a minibatch was trained, and validated if due."""
        self.iteration = iteration
        if not self._compiled:
            self._compiled = True
            self._interrupt.defer()
            # The first call compiled; its seconds must not count in the time left.
            self._bar.unpause()
            self._bar.set_description("training")
        # Shown when the bar next refreshes itself.
        self._bar.set_postfix_str(f"cost {cost:.4g}", refresh=False)
        self._bar.update()

    def print(self, *values, file=stdout):
        """Print a line beside the progress bar."""
        with past_bars():
            print(*values, file=file, flush=True)

    def _measure_time(self):
        self.result.seconds = default_timer() - self._start

    def _write(self):
        self._files.write(self.result, self.iteration, self.patience, self._parameters, self._optimiser)

    def _progress_bar(self):
        return tqdm(
            desc="compiling",
            unit="minibatch",
            initial=self.iteration,
            total=min(self._n_iterations, self.patience + 1),
            disable=not self.progress,
            file=stderr,
            dynamic_ncols=True,
            # A log file gets a line of progress now and then, a terminal a smooth bar.
            mininterval=0.1 if stderr.isatty() else 10,
        )

    def _interrupted(self, when):
        message = f"Interrupted {when}. {self.result.closing_line()}. {self._files.locations()}"
        return TrainingInterrupted(message, self.result)

    def _diverged(self, cost):
        rate = self.arguments.get("learning_rate")
        used, smaller = ("", "") if rate is None else (f" with learning_rate={rate}", f", e.g. {rate / 10:g}")
        return (
            f"the cost is {cost} at iteration {self.iteration + 1}: training diverges{used}; use a smaller "
            f"learning rate{smaller}. {self.result.closing_line()}. {self._files.locations()}"
        )


class _Interrupt:
    """Make the first Ctrl-C a request to stop, so that it never interrupts an update of the parameters.

    The second Ctrl-C interrupts at once.
    """

    def __init__(self):
        self.requested = False
        self._acknowledged = False
        self._deferred = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._deferred.close()

    def defer(self):
        """Begin to hold Ctrl-C back, unless the caller handles it in a way of their own."""
        self._deferred.enter_context(on_interrupt(self._request))

    def acknowledge(self):
        """Tell, once, whether an end was asked for."""
        news = self.requested and not self._acknowledged
        self._acknowledged = self.requested
        return news

    # Nothing but the flag: it may come while a line is written, or within compiled code.
    def _request(self, signum, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
