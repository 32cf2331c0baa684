import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytensor.tensor as pt
import pytest

import deeplearning_tutorial
from deeplearning_tutorial import alexnet, convolutional_mlp, lenet5, lenet_poolings, logistic_sgd, mlp
from deeplearning_tutorial.training import run

# The tutorial's parameters in its order, then, after a star, what is only here.
SIGNATURES = {
    "load_data": (logistic_sgd, "(dataset)"),
    "LogisticRegression": (logistic_sgd, "(input, n_in, n_out)"),
    "sgd_optimization_mnist": (
        logistic_sgd,
        "(learning_rate=0.13, n_epochs=1000, dataset='mnist.pkl.gz', batch_size=600, "
        "*, run=None)",
    ),
    "predict": (logistic_sgd, "(*, model='best_model.npz', dataset='mnist.pkl.gz')"),
    "HiddenLayer": (mlp, f"(rng, input, n_in, n_out, W=None, b=None, activation={pt.tanh!r})"),
    "MLP": (mlp, "(rng, input, n_in, n_hidden, n_out)"),
    "test_mlp": (
        mlp,
        "(learning_rate=0.01, L1_reg=0.0, L2_reg=0.0001, n_epochs=1000, dataset='mnist.pkl.gz', "
        "batch_size=20, n_hidden=500, "
        "*, seed=1234, run=None)",
    ),
    "LeNetConvPoolLayer": (
        convolutional_mlp,
        "(rng, input, filter_shape, image_shape, poolsize=(2, 2))",
    ),
    "evaluate_lenet5": (
        convolutional_mlp,
        "(learning_rate=0.1, n_epochs=200, dataset='mnist.pkl.gz', nkerns=(20, 50), batch_size=500, "
        "*, seed=23455, run=None)",
    ),
    "LeNetPoolingLayer": (
        lenet_poolings,
        "(rng, input, filter_shape, image_shape, poolsize=(2, 2), *, pooling='max', stride=None, "
        f"activation={pt.tanh!r}, normalisation=None, training_step=None)",
    ),
    "train_lenet_poolings": (
        lenet_poolings,
        "(learning_rate=0.1, n_epochs=200, dataset='mnist.pkl.gz', nkerns=(20, 50), batch_size=500, "
        f"*, pooling='max', pool_sizes=(2, 2), pool_strides=(2, 2), activation={pt.tanh!r}, "
        "normalisation=None, seed=23455, run=None)",
    ),
    "Run": (
        run,
        "(save=None, checkpoint=None, resume=False, log=None, progress=False, channel=None, "
        "precompile=False)",
    ),
    "experiment": (convolutional_mlp, "(state, channel)"),
    "train_lenet5": (
        lenet5,
        "(learning_rate=0.1, n_epochs=200, dataset='mnist.pkl.gz', nkerns=(6, 16, 120), batch_size=50, "
        "*, n_hidden=84, filter_sizes=(5, 5, 5), pool_sizes=(2, 2), pool_strides=(2, 2), pooling='max', "
        f"activation={pt.tanh!r}, connection='full', "
        "seed=23455, run=None)",
    ),
    "train_alexnet": (
        alexnet,
        "(dataset, learning_rate=0.01, n_epochs=90, batch_size=128, *, momentum=0.9, weight_decay=0.0005, "
        "dropout=0.5, n_classes=1000, image_side=227, nkerns=(96, 256, 384, 384, 256), "
        "filter_sizes=(11, 5, 3, 3, 3), stride=4, num_groups=2, pool_size=3, pool_stride=2, "
        "n_hidden=(4096, 4096), weight_std=0.01, "
        "seed=23455, run=None)",
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_each_name_is_the_modules_and_has_the_tutorials_signature(name):
    module, signature = SIGNATURES[name]
    assert getattr(deeplearning_tutorial, name) == getattr(module, name)
    assert str(inspect.signature(getattr(module, name))) == signature


def test_the_package_lists_these_names_and_no_others():
    assert sorted(deeplearning_tutorial.__all__) == sorted(SIGNATURES)
    assert set(SIGNATURES) <= set(dir(deeplearning_tutorial))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'deeplearning_tutorial' has no attribute 'LeNet'"):
        deeplearning_tutorial.LeNet  # noqa: B018
    assert not hasattr(deeplearning_tutorial, "__wrapped__")


def test_the_later_scripts_offer_what_the_tutorials_imported_into_them():
    assert mlp.load_data is convolutional_mlp.load_data is logistic_sgd.load_data
    assert mlp.LogisticRegression is convolutional_mlp.LogisticRegression is logistic_sgd.LogisticRegression
    assert convolutional_mlp.HiddenLayer is mlp.HiddenLayer


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_parameter_and_exception_has_its_place_in_the_docstring(name):
    documented = inspect.getdoc(getattr(deeplearning_tutorial, name))
    for parameter in inspect.signature(getattr(deeplearning_tutorial, name)).parameters:
        # "n_in, n_out : int" documents two at once.
        described = [line.split(" : ")[0].split(", ") for line in documented.splitlines() if " : " in line]
        assert any(parameter in names for names in described), parameter


def imported(code):
    """What a fresh Python prints that first notes each search for one of the large libraries."""
    code = f"""
import sys
class Note:
    asked = set()
    def find_spec(self, name, path=None, target=None):
        extras = "jax", "torch", "matplotlib", "PIL", "optuna", "sqlalchemy"
        if name in (*extras, "deeplearning_tutorial.nnet.dispatch.numba"):
            self.asked.add(name)
sys.meta_path.insert(0, Note())
{code}
"""
    env = os.environ | {"PYTHONPATH": str(Path(deeplearning_tutorial.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_importing_everything_looks_for_no_library_of_the_extras():
    code = """
import importlib, pkgutil, deeplearning_tutorial as package
for module in pkgutil.walk_packages(package.__path__, "deeplearning_tutorial."):
    # Commands, and what adds Ops to a back end, which is loaded with it.
    if not module.name.endswith(("__main__", ".jax", ".pytorch")):
        importlib.import_module(module.name)
for name in package.__all__: getattr(package, name)
print(*sorted(Note.asked))
"""
    assert imported(code) == ["deeplearning_tutorial.nnet.dispatch.numba"]


def test_importing_the_scripts_leaves_pytensors_precision_alone():
    code = """
import pytensor
before = pytensor.config.floatX
from deeplearning_tutorial import convolutional_mlp
print(pytensor.config.floatX == before)
"""
    assert imported(code) == ["True"]
