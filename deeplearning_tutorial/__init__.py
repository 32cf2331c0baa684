"""The deep learning tutorial's logistic regression, multilayer perceptron and LeNet, on PyTensor."""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "LogisticRegression": "logistic_sgd",
    "load_data": "logistic_sgd",
    "sgd_optimization_mnist": "logistic_sgd",
    "predict": "logistic_sgd",
    "HiddenLayer": "mlp",
    "MLP": "mlp",
    "test_mlp": "mlp",
    "LeNetConvPoolLayer": "convolutional_mlp",
    "evaluate_lenet5": "convolutional_mlp",
    "experiment": "convolutional_mlp",
    "train_lenet5": "lenet5",
    "train_alexnet": "alexnet",
}

__all__ = sorted(_HOMES)


# On first use, not on import: ``python -m deeplearning_tutorial.mlp`` must find ``mlp`` not yet imported,
# and ``import deeplearning_tutorial.nnet`` needs none of the scripts.
def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(f"{__name__}.{_HOMES[name]}")
    except AttributeError as error:
        # Else ``from`` would say that there is no such name.
        raise ImportError(f"{__name__}.{_HOMES[name]} cannot be imported: {error}") from error
    return getattr(home, name)


def __dir__():
    return sorted({*globals(), *__all__})
