import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from calling import with_run

from deeplearning_tutorial import lenet5
from deeplearning_tutorial.classify.feature_maps import feature_maps
from deeplearning_tutorial.classify.models import read_model
from deeplearning_tutorial.datasets import sample_path
from deeplearning_tutorial.lenet5 import LeNet5, connections_1998, summary, train_lenet5
from deeplearning_tutorial.training.checkpoint import read_checkpoint
from deeplearning_tutorial.training.parameters import named_parameters

# Little is left at its default; tanh computes fastest where nothing is compiled.
SMALL = {
    "nkerns": (6, 16, 10),
    "batch_size": 25,
    "n_hidden": 12,
    "learning_rate": 0.3,
    "filter_sizes": (7, 3, 4),
    "pool_sizes": (3, 2),
    "pooling": "1998",
    "connection": "1998",
    "seed": 7,
}
NAMES = ["C1.W", "C1.b", "S2.coefficient", "S2.b", "C3.W", "C3.b", "S4.coefficient", "S4.b"]
NAMES += ["C5.W", "C5.b", "F6.W", "F6.b", "output.W", "output.b"]


@pytest.fixture(scope="module", autouse=True)
def uncompiled():
    """Compute Op by Op in NumPy."""
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lenet5")


@pytest.fixture(scope="module")
def digits(folder):
    """A twentieth of the sample."""
    with np.load(sample_path()) as stored:
        np.savez(folder / "digits.npz", **{name: array[: len(array) // 20] for name, array in stored.items()})
    return folder / "digits.npz"


@pytest.fixture(scope="module")
def run(record, folder, digits):
    """Two epochs without a stop."""
    files = {"save": folder / "m.npz", "checkpoint": folder / "c.npz", "log": folder / "l.csv"}
    return record(lenet5, train_lenet5, n_epochs=2, dataset=digits, **SMALL, **files)


def test_two_epochs_on_the_sample_learn(run):
    result = run.result
    assert (result.epochs, result.minibatches, len(run.costs)) == (2, (6, 2, 2), 12)
    # A tenth for each class at first, since the softmax starts at zero.
    assert run.costs[0] == pytest.approx(np.log(10), rel=1e-6)
    assert result.history[-1].validation_error < 0.8
    lines = run.stdout.splitlines()
    assert lines[:3] == ["... loading data", "... building the model", "... training"]
    assert lines[3].startswith("epoch 1, minibatch 6/6, validation error ")
    assert lines[-1] == result.closing_line()
    assert run.stderr.startswith("The code for file lenet5.py ran for ")


def test_the_initial_weights_are_the_seeds_and_unconnected_ones_stay_zero(run):
    assert list(run.initial) == list(run.result.best_parameters) == NAMES
    # C1 takes one map with filters of 49 and gives 6 to windows of 9.
    bound = np.sqrt(6 / (49 + 6 * 49 // 9))
    drawn = np.random.RandomState(7).uniform(-bound, bound, (6, 1, 7, 7)).astype("float32")
    np.testing.assert_array_equal(run.initial["C1.W"], drawn)
    trained = run.result.best_parameters
    assert (trained["C3.W"] != 0).any(axis=(2, 3)).T.tolist() == connections_1998().tolist()
    for name in NAMES:
        assert (trained[name] != run.initial[name]).any(), name


def test_a_saved_model_is_read_with_its_settings_and_predicts_as_in_training(run, folder, sample):
    model = read_model(folder / "m.npz")
    assert model.script == "lenet5" and model.arguments["filter_sizes"] == [7, 3, 4]
    x, y = (array[:50] for array in sample[2])
    probabilities = model.probabilities(x)
    assert (probabilities.argmax(axis=1) != y).mean() == pytest.approx(run.result.test_error)
    np.testing.assert_array_equal(read_model(folder / "c.npz").probabilities(x[:5]), probabilities[:5])
    shapes = {name: maps.shape for name, maps in feature_maps(model, x[0]).items()}
    assert shapes == {"C1": (6, 26, 26), "S2": (6, 12, 12), "C3": (16, 10, 10), "S4": (16, 5, 5)}


def test_a_run_that_is_resumed_ends_as_if_it_had_not_stopped(run, folder, digits, record, tmp_path):
    checkpoint = tmp_path / "c.npz"
    options = {"dataset": digits, "checkpoint": checkpoint} | SMALL
    record(lenet5, train_lenet5, n_epochs=1, **options)
    resumed = record(lenet5, train_lenet5, n_epochs=2, **options, resume=True)
    assert resumed.costs == run.costs[6:]
    ends = read_checkpoint(checkpoint).parameters, read_checkpoint(folder / "c.npz").parameters
    for name in NAMES:
        np.testing.assert_array_equal(*(end[name] for end in ends))
    with pytest.raises(ValueError, match="pooling is '1998' there and 'sum' here"):
        record(lenet5, train_lenet5, n_epochs=2, **options | {"pooling": "sum"}, resume=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"learning_rate": -0.1}, "learning_rate=-0.1 is not a positive finite number; use"),
        ({"n_epochs": 0}, "n_epochs=0 is not a positive integer; use"),
        ({"batch_size": 0}, "batch_size=0 is not a positive integer; use"),
        ({"seed": -1}, "seed=-1 is not an integer from 0 to 4294967295; use"),
        ({"nkerns": (6, 16)}, r"nkerns=\(6, 16\) is not a tuple of 3 integers; use"),
        ({"filter_sizes": (7, 5, 5)}, "the filters of C5 are 5x5, S4 gives them only 4x4; use"),
        ({"save": "model.pt"}, "save='model.pt' does not end in .npz"),
    ],
)
def test_bad_arguments_are_refused_by_name_before_any_work(no_work, capsys, arguments, message):
    with pytest.raises(ValueError, match=message):
        train_lenet5(**with_run(arguments))
    assert capsys.readouterr() == ("", "")


CLASSIC = {"pooling": "1998", "connection": "1998"}


def test_the_classic_network_has_the_papers_counts():
    layers = {layer.name: layer for layer in LeNet5(**CLASSIC).layers()}
    assert {name: (layer.shape, layer.parameters, layer.connections) for name, layer in layers.items()} == {
        "input": ((1, 32, 32), 0, 0),
        "C1": ((6, 28, 28), 156, 122_304),
        "S2": ((6, 14, 14), 12, 5_880),
        "C3": ((16, 10, 10), 1_516, 151_600),
        "S4": ((16, 5, 5), 32, 2_000),
        "C5": ((120, 1, 1), 48_120, 48_120),
        "F6": ((84,), 10_164, 10_164),
        # The paper's RBF units have neither these parameters nor a bias.
        "output": ((10,), 850, 850),
    }


def test_with_all_connections_and_without_coefficients_the_counts_are_those_worked_by_hand():
    layers = {layer.name: layer for layer in LeNet5().layers()}
    # 96 pairs of 25 weights and 16 biases; 6 * 14 * 14 and 16 * 5 * 5 units of 4 inputs without a bias.
    assert (layers["C3"].parameters, layers["C3"].connections) == (2_416, 241_600)
    assert (layers["S2"].parameters, layers["S2"].connections) == (0, 4_704)
    assert (layers["S4"].parameters, layers["S4"].connections) == (0, 1_600)


def test_the_summary_is_a_table_with_totals():
    assert summary(**CLASSIC, learning_rate=0.5).splitlines() == [
        "layer   output          parameters   connections",
        "input   1 x 32 x 32              0             0",
        "C1      6 x 28 x 28            156       122,304",
        "S2      6 x 14 x 14             12         5,880",
        "C3      16 x 10 x 10         1,516       151,600",
        "S4      16 x 5 x 5              32         2,000",
        "C5      120 x 1 x 1         48,120        48,120",
        "F6      84                  10,164        10,164",
        "output  10                     850           850",
        "total                       60,850       340,918",
    ]


@pytest.mark.parametrize(
    "arguments, sides",
    [
        ({}, [28, 14, 10, 5, 1]),
        ({"filter_sizes": (7, 3, 5)}, [26, 13, 11, 5, 1]),
        # Windows of 3, 2 apart, overlap; C5 has more than one position.
        ({"pool_sizes": (3, 2), "filter_sizes": (5, 4, 3)}, [28, 13, 10, 5, 3]),
        ({"pool_sizes": (4, 3), "pool_strides": (3, 1), "filter_sizes": (1, 1, 1)}, [32, 10, 10, 8, 8]),
    ],
)
@pytest.mark.parametrize("kinds", [{}, CLASSIC])
def test_the_layers_that_are_built_have_the_shapes_that_are_derived(arguments, sides, kinds):
    arguments = arguments | kinds
    architecture = LeNet5(**arguments)
    shapes = {layer.name: layer.shape for layer in architecture.layers()}
    assert [shapes[name][1:] for name in ("C1", "S2", "C3", "S4", "C5")] == [(n, n) for n in sides]
    built = architecture.build(np.random.RandomState(1), pt.matrix("x"), 7)
    assert list(built) == list(shapes)[1:]
    for name in ("C1", "S2", "C3", "S4", "C5"):
        assert built[name].output.type.shape == (7, *shapes[name])
    parameters = {name: variable.type.shape for name, variable in named_parameters(**built).items()}
    assert parameters == architecture.parameter_shapes()
    held = sum(int(np.prod(shape)) for shape in parameters.values())
    # Of the 96 pairs of maps the table of 1998 leaves 36 out.
    unconnected = 36 * architecture.filter_sizes[1] ** 2 if kinds else 0
    assert held - unconnected == sum(layer.parameters for layer in architecture.layers())


def test_images_are_padded_by_two_zeros_all_around():
    with pytensor.config.change_flags(floatX="float64"):
        x = pt.matrix("x")
        built = LeNet5(**{"nkerns": (1, 1, 1)}).build(np.random.RandomState(1), x, 2)
    value = np.random.default_rng(2).uniform(1, 2, (2, 784))
    padded = pytensor.function([x], built["C1"].input, mode="FAST_COMPILE")(value)
    expected = np.pad(value.reshape(2, 1, 28, 28), ((0, 0), (0, 0), (2, 2), (2, 2)))
    np.testing.assert_array_equal(padded, expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"filter_sizes": (33, 5, 5)},
            r"filter_sizes=\(33, 5, 5\) does not fit: the filters of C1 are 33x33, input gives them only "
            "32x32; use 32 or less there",
        ),
        ({"filter_sizes": (5, 15, 5)}, "the filters of C3 are 15x15, S2 gives them only 14x14; use 14 or"),
        ({"filter_sizes": [7, 5, 5]}, r"filter_sizes=\[7, 5, 5\] .*of C5 are 5x5, S4 gives them only 4x4"),
        (
            {"filter_sizes": (30, 1, 1), "pool_sizes": (4, 2)},
            r"pool_sizes=\(4, 2\) does not fit: the windows of S2 are 4x4, C1 gives them only 3x3; use 3 or",
        ),
        ({"pool_sizes": (2, 11)}, "the windows of S4 are 11x11, C3 gives them only 10x10; use 10 or less"),
        (
            {"pool_strides": (2, 3)},
            r"pool_strides=\(2, 3\) does not fit: the windows of S4, 2x2, would leave gaps .*; use 2 or less",
        ),
        (
            {"nkerns": (6, 15, 120), "connection": "1998"},
            r"nkerns=\(6, 15, 120\) does not fit connection='1998', .*; use nkerns=\(6, 16, 120\) or",
        ),
        ({"connection": "half"}, "connection='half' is unknown; use one of 'full', '1998'"),
        ({"pooling": "mean"}, "pooling='mean' is unknown; use one of 'max', 'average', 'sum', 'l2', '1998'"),
        ({"activation": None}, "activation=None is not a function; use"),
        ({"nkerns": (6, 16)}, r"nkerns=\(6, 16\) is not a tuple of 3 integers; use"),
        ({"n_hidden": 0}, "n_hidden=0 is not a positive integer"),
        ({"filter_sizes": (5, 5, 0)}, "filter_sizes=.* holds something other than positive integers"),
        ({"pool_sizes": 2}, "pool_sizes=2 is not a tuple of 2 integers"),
        ({"pool_strides": (2, 0.5)}, "pool_strides=.* holds something other than positive integers"),
    ],
)
def test_a_network_that_does_not_fit_says_which_layer_and_what_to_change(arguments, message):
    with pytest.raises(ValueError, match=message):
        LeNet5(**arguments)


def test_the_table_of_1998_is_the_papers():
    # Row by row as printed in table I: the columns with a cross.
    crosses = [
        [0, 4, 5, 6, 9, 10, 11, 12, 14, 15],
        [0, 1, 5, 6, 7, 10, 11, 12, 13, 15],
        [0, 1, 2, 6, 7, 8, 11, 13, 14, 15],
        [1, 2, 3, 6, 7, 8, 9, 12, 14, 15],
        [2, 3, 4, 7, 8, 9, 10, 12, 13, 15],
        [3, 4, 5, 8, 9, 10, 11, 13, 14, 15],
    ]
    table = connections_1998()
    assert table.shape == (6, 16) and [np.flatnonzero(row).tolist() for row in table] == crosses
    assert table.sum() == 60 and table.sum(axis=0).tolist() == [3] * 6 + [4] * 9 + [6]
