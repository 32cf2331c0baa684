"""Small networks of the pages, for the tests of saved models and of reports."""

import numpy as np
import pytensor

from deeplearning_tutorial.training.page import find_pages
from deeplearning_tutorial.training.parameters import named_parameters

SIZES = {
    "logistic_sgd": {},
    "mlp": {"n_hidden": 7},
    "convolutional_mlp": {"nkerns": (2, 3), "n_hidden": 5},
    "lenet5": {"nkerns": (2, 3, 4), "n_hidden": 5},
}


def shapes_of(script, **choices):
    """Return the shape of each parameter of a page's network."""
    x = pytensor.tensor.matrix("x", shape=(1, 784))
    layers = find_pages()[script].build(np.random.RandomState(0), x, 1, **SIZES[script], **choices)
    return {name: variable.type.shape for name, variable in named_parameters(**layers).items()}
