"""The deep learning tutorial's logistic regression, multilayer perceptron and LeNet, on PyTensor.

A page is a module with a training function and its declaration, ``page``; run with ``python -m``, it is a
script.
"""

from importlib import import_module
from pkgutil import iter_modules

__version__ = "0.1.0"


# Names of the pages are found on first use, not on import: ``python -m deeplearning_tutorial.mlp`` must find
# ``mlp`` not yet imported, and ``import deeplearning_tutorial.nnet`` needs none of the pages.
def __getattr__(name):
    subpackages = {module.name for module in iter_modules(__path__) if module.ispkg}
    if name in subpackages or (name.startswith("__") and name != "__all__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = _homes()
    if name == "__all__":
        return sorted(homes)
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(homes[name], name)


def _homes():
    """Return the module of each name: those that the pages offer, and what all of them take."""
    try:
        find_pages = import_module("deeplearning_tutorial.training.page").find_pages
        pages = find_pages().values()
        homes = {name: import_module(page.train.__module__) for page in pages for name in page.names}
        return homes | {"Run": import_module("deeplearning_tutorial.training.run")}
    except AttributeError as error:
        # Otherwise ``from`` would say that there is no such name.
        raise ImportError(f"the pages cannot be imported: {error}") from error


def __dir__():
    return sorted({*globals(), *_homes()})
