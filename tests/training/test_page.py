import pickle
from types import SimpleNamespace

import pytest
import scripted

import deeplearning_tutorial
from deeplearning_tutorial import alexnet, convolutional_mlp, lenet5, lenet_poolings, logistic_sgd, mlp
from deeplearning_tutorial.training.page import Page, find_pages

PAGES = {
    "alexnet": alexnet,
    "convolutional_mlp": convolutional_mlp,
    "lenet5": lenet5,
    "lenet_poolings": lenet_poolings,
    "logistic_sgd": logistic_sgd,
    "mlp": mlp,
}


def test_the_pages_are_found_and_nothing_else():
    assert find_pages() == {name: module.page for name, module in PAGES.items()}
    # The command of this name, once imported, would hide the tutorial's function.
    assert deeplearning_tutorial.predict is logistic_sgd.predict


@pytest.mark.parametrize("name", PAGES)
def test_a_page_declares_itself_once(name):
    page = PAGES[name].page
    assert page.script == name
    assert page.train.__module__ == f"deeplearning_tutorial.{name}"
    assert page.title and set(page.names) <= vars(PAGES[name]).keys()
    # As a pool of processes sends it.
    assert pickle.loads(pickle.dumps(page)) is page
    assert pickle.loads(pickle.dumps(PAGES[name].experiment)) == page.experiment


def test_defaults_are_those_of_flags_and_files():
    def train(images, rate=0.1, sizes=(5, 7), activation=min, *, run=None):
        pass

    page = Page(train, "", by_name={"activation": {"max": max, "min": min}})
    assert page.defaults == {"rate": 0.1, "sizes": (5, 7), "activation": "min"}
    assert page.required == ["images"]


def test_the_states_attributes_are_the_arguments_and_others_are_left_alone():
    def train(learning_rate=0.1, dataset="mnist.pkl.gz", n_epochs=200, *, seed=1, run=None):
        ignored = learning_rate
        return ignored, dataset, n_epochs, seed, run.save, run.channel

    page = Page(train, "", save="best.npz")
    state = SimpleNamespace(learning_rate=0.25, dataset="digits.npz", channel="no", ignored=2, run=3)
    assert page.experiment(state, channel=print) == (0.25, "digits.npz", 200, 1, "best.npz", print)
    state = SimpleNamespace(save=None, seed=7)
    assert page.experiment(state, None) == (0.1, "mnist.pkl.gz", 200, 7, None, None)


def test_a_channel_that_says_stop_ends_training():
    validations = []

    def channel(validation):
        validations.append(validation.epoch)
        return "stop" if validation.epoch == 2 else None

    result = scripted.page.experiment(SimpleNamespace(n_epochs=5), channel)
    assert validations == [1, 2]
    assert result.epochs == 2


@pytest.mark.parametrize("module", [logistic_sgd, mlp], ids=["logistic_sgd", "mlp"])
def test_a_script_calls_the_channel_with_its_validations(module, monkeypatch):
    channels = []

    def train(*args, run, **kwargs):
        channels.append(run.channel)

    monkeypatch.setattr(module, "train_with_patience", train)
    state = SimpleNamespace(dataset="mnist_5k.npz", batch_size=100, save=None)
    with pytest.raises(AttributeError, match="NoneType"):
        # Nothing was trained, so there is no result to print.
        module.experiment(state, print)
    assert channels == [print]
