"""What a page declares about itself, once: the command line, tuning, predictions, reports and tests read it.

::

    def train_my_network(learning_rate=0.1, dataset="mnist.pkl.gz", *, run=None):
        run = (run or Run()).start("my_network", dataset, learning_rate=learning_rate)
        ...

    page = Page(train_my_network, "My network on MNIST", published={"test error": 1.0})
    experiment = page.experiment

    if __name__ == "__main__":
        command_line.run(page, __doc__)
"""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path

import deeplearning_tutorial
from deeplearning_tutorial.training.run import OPTIONS, Run

NO_DEFAULT = inspect.Parameter.empty
"""Stands for the default of a parameter that has none."""


@dataclass(frozen=True)
class Page:
    """The declaration of a page, which the module must bind to ``page``.

    Attributes
    ----------
    train : callable
        The training function, with a numpydoc docstring. It takes ``run``, a `Run`, by keyword.
    title : str
        Heading of the report about a run.
    names : tuple of str
        Names that the package re-exports from this page.
    published : dict of str to number
        The tutorial's or the paper's figures, under these keys only: "validation error" and "test error" in
        percent, "epochs" and "iteration".
    minibatches : tuple of int
        Minibatches per split of the full MNIST; figures from less data are not compared.
    save : path, optional
        Where the command line saves the best model unless ``--save`` says otherwise.
    build : callable, optional
        Builds the network of a saved model: takes a random number generator, the images as a matrix of the
        known shape ``(batch_size, 784)``, ``batch_size``, and what ``units`` and ``choices`` name by keyword;
        returns the layers by name. It draws with ``uniform``, ``normal`` and ``randint`` only. The last layer
        is the classifier of ten digits, with ``p_y_given_x``. Without ``build``, models are saved, but not
        read.
    units : dict of str to (str or tuple of str)
        Arguments of ``build`` that are the number of units, or filters, of a layer or of several; each of
        these layers has a bias ``b``.
    choices : tuple of str
        Arguments of ``build`` that the parameters' shapes do not determine. A saved model holds them; one
        that it lacks keeps its default.
    summary : callable, optional
        Takes the arguments of ``train`` by keyword, and returns the table that ``--summary`` prints.
    by_name : dict of str to dict
        Arguments of ``train`` that the command line takes as a name, each with its values by name.
    """

    train: Callable
    title: str
    names: tuple = ()
    published: Mapping = field(default_factory=dict)
    minibatches: tuple = ()
    save: str | None = None
    build: Callable | None = None
    units: Mapping = field(default_factory=dict)
    choices: tuple = ()
    summary: Callable | None = None
    by_name: Mapping = field(default_factory=dict)

    @property
    def script(self):
        """The page's name, such as ``"mlp"``, also where it runs as a script."""
        return Path(self.train.__code__.co_filename).stem

    @property
    def parameters(self):
        """The defaults of the training function's parameters by name, without ``run``; or `NO_DEFAULT`."""
        parameters = inspect.signature(self.train).parameters
        return {name: parameter.default for name, parameter in parameters.items() if name != "run"}

    @property
    def defaults(self):
        """The defaults by name, as flags and files have them: those of ``by_name`` are names."""
        given = {name: default for name, default in self.parameters.items() if default is not NO_DEFAULT}
        names = {
            name: next(each for each, value in values.items() if value is given[name])
            for name, values in self.by_name.items()
            if name in given
        }
        return given | names

    @property
    def required(self):
        """Names of the parameters that have no default."""
        return [name for name, default in self.parameters.items() if default is NO_DEFAULT]

    def experiment(self, state, channel):
        """Train as an experiment scheduler calls it.

        The convention is jobman's, which the tutorial's ``experiment(state, channel)`` was written for: the
        state has what the experiment needs, and the channel is how an experiment and its scheduler talk.

        Parameters
        ----------
        state : object
            Its attributes are the arguments of the training function and the options of the `Run`. Where it
            lacks one, the default holds; other attributes are ignored.
        channel : callable or None
            Called with each `Validation`; training ends after the one for which it returns ``'stop'``.

        Returns
        -------
        TrainingResult

        Raises
        ------
        ValueError, OSError, TrainingInterrupted, DivergenceError
            As the training function raises them.
        """
        arguments = {name: getattr(state, name) for name in self.parameters if hasattr(state, name)}
        options = {"save": self.save} | {
            name: getattr(state, name) for name in OPTIONS - {"channel"} if hasattr(state, name)
        }
        return self.train(**arguments, run=Run(**options, channel=channel))

    def with_values(self, arguments):
        """Return arguments, a dict, with the values of those that are given ``by_name``."""
        return arguments | {
            name: values[arguments[name]]
            for name, values in self.by_name.items()
            if isinstance(arguments.get(name), str)
        }

    def __reduce__(self):
        # Other processes find the page itself, and not a copy.
        return _page_in, (self.train.__module__,)


def _page_in(module):
    return import_module(module).page


@cache
def find_pages():
    """Import all pages of the package.

    Returns
    -------
    dict of str to Page
        By the page's name, in alphabetical order.
    """
    found = {}
    for module in pkgutil.iter_modules(deeplearning_tutorial.__path__):
        # Not the subpackages, nor the command ``predict``: once imported, it hides the
        # package's function of this name.
        if not module.ispkg and module.name != "predict":
            page = getattr(import_module(f"deeplearning_tutorial.{module.name}"), "page", None)
            if isinstance(page, Page):
                found[module.name] = page
    return found
