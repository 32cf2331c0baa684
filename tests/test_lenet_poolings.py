import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from small_convolutions import windows

from deeplearning_tutorial import lenet_poolings
from deeplearning_tutorial.classify.feature_maps import feature_maps
from deeplearning_tutorial.classify.models import model_of, read_model
from deeplearning_tutorial.convolutional_mlp import LeNetConvPoolLayer
from deeplearning_tutorial.datasets import sample_path
from deeplearning_tutorial.lenet_poolings import POOLINGS, LeNetPoolingLayer, train_lenet_poolings
from deeplearning_tutorial.nnet import local_contrast_normalisation, local_response_normalisation, relu
from deeplearning_tutorial.nnet.conv import Conv2d
from deeplearning_tutorial.training.parameters import named_parameters

PLAIN = Mode(linker="py", optimizer=None)
FILTER_SHAPE, IMAGE_SHAPE = (3, 2, 3, 4), (2, 2, 9, 11)
IN_NUMPY = {
    "max": lambda w: w.max(axis=-1),
    "average": lambda w: w.mean(axis=-1),
    "sum": lambda w: w.sum(axis=-1),
    "l2": lambda w: np.sqrt((w**2).sum(axis=-1)),
    "stochastic": lambda w: (w**2).sum(axis=-1) / np.maximum(w.sum(axis=-1), 1e-300),
    # Its coefficients are zero at first.
    "deformation": lambda w: w.max(axis=-1),
}


@pytest.fixture
def in_float64():
    with pytensor.config.change_flags(floatX="float64"):
        yield


def layer_and_values(**options):
    x = pt.tensor4("x")
    layer = LeNetPoolingLayer(np.random.RandomState(5), x, FILTER_SHAPE, IMAGE_SHAPE, (2, 3), **options)
    layer.b.set_value(np.array([0.3, -0.2, 0.1]))
    value = np.random.default_rng(6).normal(size=IMAGE_SHAPE)
    return layer, pytensor.function([x], [layer.maps, layer.output], mode=PLAIN)(value)


@pytest.mark.parametrize("normalisation", [None, "contrast", "response"])
@pytest.mark.parametrize("stride", [None, (1, 2)])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_layer_pools_its_activated_and_normalised_maps(in_float64, pooling, stride, normalisation):
    layer, (maps, output) = layer_and_values(
        pooling=pooling, stride=stride, normalisation=normalisation, activation=relu
    )
    pooled = windows(np.maximum(maps, 0) if pooling == "stochastic" else maps, (2, 3), stride or (2, 3))
    assert layer.output.type.shape == output.shape == pooled.shape[:4]
    np.testing.assert_allclose(output, IN_NUMPY[pooling](pooled), atol=1e-12)
    assert layer.test_output is layer.output


@pytest.mark.parametrize(
    "name, normalise",
    [("contrast", local_contrast_normalisation), ("response", local_response_normalisation)],
)
def test_normalisation_comes_after_the_activation(in_float64, name, normalise):
    _, (plain, _) = layer_and_values()
    _, (maps, _) = layer_and_values(normalisation=name)
    np.testing.assert_allclose(maps, normalise(plain).eval(mode=PLAIN), atol=1e-12)


def test_a_penalty_lowers_the_responses_before_bias_and_tanh(in_float64):
    layer, (maps, _) = layer_and_values(pooling="deformation")
    assert [p.name for p in layer.params] == ["W", "b", "deformation"]
    assert not layer.deformation.get_value().any()
    # Nothing but the window's middle column can win: each step aside costs 100.
    layer.deformation.set_value(np.tile([0.0, 0, 100, 0], (3, 1)))
    x = np.random.default_rng(6).normal(size=IMAGE_SHAPE)
    output = pytensor.function([layer.input], layer.output, mode=PLAIN)(x)
    middle = windows(maps, (2, 3), (2, 3)).reshape(2, 3, 3, 2, 2, 3)[..., 1].max(axis=-1)
    np.testing.assert_allclose(output, middle, atol=1e-12)


def test_in_training_each_step_samples_anew_and_in_testing_nothing_is_sampled(in_float64):
    x, step = pt.tensor4("x"), pt.lscalar()
    layer = LeNetPoolingLayer(
        np.random.RandomState(5),
        x,
        FILTER_SHAPE,
        IMAGE_SHAPE,
        pooling="stochastic",
        activation=relu,
        training_step=step,
    )
    outputs = [layer.maps, layer.output, layer.test_output]
    f = pytensor.function([x, step], outputs, mode=PLAIN)
    value = np.random.default_rng(6).normal(size=IMAGE_SHAPE)
    maps, first, tested = f(value, 0)
    _, second, tested_again = f(value, 1)
    np.testing.assert_array_equal(f(value, 0)[1], first)
    np.testing.assert_array_equal(tested, tested_again)
    assert (first != second).any() and (first != tested).any()
    of_window = windows(maps, (2, 2), (2, 2))
    assert (of_window == first[..., np.newaxis]).any(axis=-1).all()


def test_without_choices_the_layer_is_the_tutorials(in_float64):
    x = pt.tensor4("x")
    layers = [
        kind(np.random.RandomState(5), x, FILTER_SHAPE, IMAGE_SHAPE, (2, 3))
        for kind in (LeNetPoolingLayer, LeNetConvPoolLayer)
    ]
    for ours, tutorials in zip(*(layer.params for layer in layers), strict=True):
        np.testing.assert_array_equal(ours.get_value(), tutorials.get_value())
    value = np.random.default_rng(6).normal(size=IMAGE_SHAPE)
    outputs = pytensor.function([x], [layer.output for layer in layers], mode=PLAIN)(value)
    np.testing.assert_array_equal(*outputs)


def test_without_choices_the_pooling_precedes_bias_and_tanh():
    layer = LeNetPoolingLayer(np.random.RandomState(5), pt.tensor4("x"), FILTER_SHAPE, IMAGE_SHAPE)
    tanh = layer.output.owner
    pooled = tanh.inputs[0].owner.inputs[0].owner
    assert str(tanh.op.scalar_op) == "tanh" and isinstance(pooled.inputs[0].owner.op, Conv2d)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"pooling": "mean"}, "pooling='mean' is unknown; use one of 'max', 'average'"),
        ({"activation": None}, "activation=None is not a function; use"),
        ({"normalisation": "batch"}, "normalisation='batch' is unknown; use one of 'contrast', 'response'"),
        ({"pool_strides": (2, 0)}, r"pool_strides=\(2, 0\) holds something other than positive"),
        ({"pool_sizes": (25, 2)}, r"pool_sizes=\(25, 2\) .* do not fit: .* layer 0 leave 24 rows of 28"),
        ({"pool_strides": (2, 3)}, r"pool_strides=\(2, 3\) .* windows of layer 1, 2x2, would leave gaps"),
        ({"pool_sizes": (3, 5), "pool_strides": (3, 5)}, "layer 1 leave 4 rows of 8, too few for windows"),
        ({"pool_sizes": (9, 2), "pool_strides": (9, 2)}, "layer 1 leave 0 rows of 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(no_work, capsys, arguments, message):
    with pytest.raises(ValueError, match=message):
        train_lenet_poolings(**arguments)
    assert capsys.readouterr() == ("", "")


def test_a_stride_that_is_no_pair_is_refused():
    with pytest.raises(ValueError, match="stride=2 is not a tuple of 2 integers"):
        LeNetPoolingLayer(np.random.RandomState(5), pt.tensor4("x"), FILTER_SHAPE, IMAGE_SHAPE, stride=2)


SMALL = {"nkerns": (2, 3), "batch_size": 25, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A twentieth of the sample."""
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    with np.load(sample_path()) as stored:
        np.savez(path, **{name: array[: len(array) // 20] for name, array in stored.items()})
    return path


def test_a_run_that_samples_goes_on_with_the_same_samples_and_its_model_predicts_without(
    record, digits, sample, tmp_path
):
    choices = {"pooling": "stochastic", "activation": relu, "pool_sizes": (3, 2)}
    options = {"dataset": digits} | choices | SMALL
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        whole = record(
            lenet_poolings, train_lenet_poolings, n_epochs=2, save=tmp_path / "m.npz", **options
        )
        checkpoint = tmp_path / "c.npz"
        record(lenet_poolings, train_lenet_poolings, n_epochs=1, checkpoint=checkpoint, **options)
        resumed = record(
            lenet_poolings, train_lenet_poolings, n_epochs=2, checkpoint=checkpoint, resume=True, **options
        )
        assert resumed.costs == whole.costs[6:]
        model = read_model(tmp_path / "m.npz")
        x, y = (array[:50] for array in sample[2])
        errors = model.probabilities(x).argmax(axis=1) != y
        assert errors.mean() == pytest.approx(whole.result.test_error)
    shapes = {name: maps.shape for name, maps in feature_maps(model, x[0]).items()}
    assert shapes == {"C1": (2, 24, 24), "S2": (2, 11, 11), "C3": (3, 7, 7), "S4": (3, 3, 3)}


def parameters_of_deformation():
    x = pt.matrix("x", shape=(1, 784))
    options = {"pooling": "deformation"}
    rng, images = np.random.RandomState(1), x.reshape((1, 1, 28, 28))
    layer0 = LeNetPoolingLayer(rng, images, (2, 1, 5, 5), (1, 1, 28, 28), **options)
    layer1 = LeNetPoolingLayer(rng, layer0.output, (3, 2, 5, 5), (1, 2, 12, 12), **options)
    found = {name: p.get_value() for name, p in named_parameters(layer0=layer0, layer1=layer1).items()}
    return found | {
        "layer2.W": np.ones((48, 4)),
        "layer2.b": np.zeros(4),
        "layer3.W": np.ones((4, 10)),
        "layer3.b": np.zeros(10),
    }


def test_a_model_with_trained_penalties_is_read_where_its_file_says_so_and_refused_where_not():
    parameters = parameters_of_deformation()
    model = model_of("convolutional_mlp", parameters, {"pooling": "deformation"})
    assert feature_maps(model, np.zeros(784))["S4"].shape == (3, 4, 4)
    with pytest.raises(ValueError, match="it holds .*layer0.deformation"):
        model_of("convolutional_mlp", parameters, {})
    with pytest.raises(ValueError, match="pooling=.* is unknown"):
        model_of("convolutional_mlp", parameters, {"pooling": ["max"]})
    with pytest.raises(ValueError, match="pool_sizes=7 is not a tuple"):
        model_of("convolutional_mlp", parameters, {"pool_sizes": 7})
