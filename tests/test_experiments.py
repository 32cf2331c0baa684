import inspect
import pickle
from types import SimpleNamespace

import pytest
import scripted

from deeplearning_tutorial import alexnet, convolutional_mlp, lenet5, logistic_sgd, mlp
from deeplearning_tutorial.experiments import experiment_of

FUNCTIONS = {
    logistic_sgd: logistic_sgd.sgd_optimization_mnist,
    mlp: mlp.test_mlp,
    convolutional_mlp: convolutional_mlp.evaluate_lenet5,
    lenet5: lenet5.train_lenet5,
    alexnet: alexnet.train_alexnet,
}


def test_the_states_attributes_are_the_arguments_and_others_are_left_alone():
    def train(learning_rate=0.1, dataset="mnist.pkl.gz", n_epochs=200, *, channel=None):
        return learning_rate, dataset, n_epochs, channel

    state = SimpleNamespace(learning_rate=0.25, dataset="digits.npz", jobman=1, channel="not this one")
    assert experiment_of(train)(state, channel=print) == (0.25, "digits.npz", 200, print)
    assert experiment_of(train)(state, None) == (0.25, "digits.npz", 200, None)


@pytest.mark.parametrize("module", FUNCTIONS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_each_script_has_an_experiment_of_its_own(module):
    assert module.experiment.function is FUNCTIONS[module]
    # As a pool of processes sends it.
    assert pickle.loads(pickle.dumps(module.experiment)) is module.experiment
    assert module.experiment.__module__ == module.__name__
    assert str(inspect.signature(module.experiment)) == "(state, channel)"
    assert FUNCTIONS[module].__name__ in module.experiment.__doc__


def test_a_channel_that_says_stop_ends_training():
    told = []

    def channel(validation):
        told.append(validation.epoch)
        return "stop" if validation.epoch == 2 else None

    result = scripted.experiment(SimpleNamespace(n_epochs=5), channel)
    assert told == [1, 2]
    assert result.epochs == 2


@pytest.mark.parametrize("module", [logistic_sgd, mlp], ids=["logistic_sgd", "mlp"])
def test_a_script_tells_the_channel_of_its_validations(module, monkeypatch):
    told = []
    monkeypatch.setattr(module, "train_with_patience", lambda *args, channel, **kwargs: told.append(channel))
    state = SimpleNamespace(dataset="mnist_5k.npz", batch_size=100, save=None)
    with pytest.raises(AttributeError, match="NoneType"):
        # Nothing was trained, so there is no result to print.
        module.experiment(state, print)
    assert told == [print]
