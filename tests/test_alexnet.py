import shutil

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from deeplearning_tutorial import alexnet
from deeplearning_tutorial.alexnet import AlexNet, train_alexnet
from deeplearning_tutorial.classify.models import read_model
from deeplearning_tutorial.training.checkpoint import read_checkpoint
from deeplearning_tutorial.training.parameters import load_parameters, named_parameters, read_npz
from deeplearning_tutorial.training.training_files import TrainingFiles

SMALL = {
    "learning_rate": 0.003,
    "batch_size": 10,
    "momentum": 0.9,
    "weight_decay": 0.005,
    "dropout": 0.1,
    "n_classes": 3,
    "image_side": 33,
    "nkerns": (4, 8, 6, 6, 4),
    "filter_sizes": (5, 3, 3, 3, 3),
    "stride": 2,
    "n_hidden": (16, 12),
    "weight_std": 0.2,
    "seed": 5,
}
NETWORK = {name: SMALL[name] for name in AlexNet.__dataclass_fields__.keys() & SMALL.keys()}
N_EPOCHS = 6


@pytest.fixture(scope="module", autouse=True)
def uncompiled():
    """Compute Op by Op in NumPy."""
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("alexnet")


@pytest.fixture(scope="module")
def arrays():
    """Noise in which one channel, that of the label, is brighter."""
    rng = np.random.default_rng(5)
    arrays = {}
    for split, n in (("train", 40), ("valid", 20), ("test", 10)):
        x, y = rng.integers(0, 100, (n, 33, 34, 3), dtype=np.uint8), rng.integers(0, 3, n)
        x[np.arange(n), :, :, y] += 80
        arrays |= {f"{split}_x": x, f"{split}_y": y}
    return arrays


@pytest.fixture(scope="module")
def images(folder, arrays):
    np.savez(folder / "images.npz", **arrays)
    return folder / "images.npz"


@pytest.fixture(scope="module")
def run(record, folder, images):
    """All epochs without a stop; the checkpoint of the second is put aside."""
    write = TrainingFiles.write

    def write_and_copy(self, result, *others):
        write(self, result, *others)
        if len(result.history) == 2:
            shutil.copy(folder / "c.npz", folder / "after-two.npz")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingFiles, "write", write_and_copy)
        files = {"save": folder / "m.npz", "checkpoint": folder / "c.npz", "log": folder / "l.csv"}
        return record(alexnet, train_alexnet, dataset=images, n_epochs=N_EPOCHS, **SMALL, **files)


def test_the_cost_falls_and_the_validation_error_with_it(run):
    result = run.result
    assert (result.epochs, result.minibatches, len(run.costs)) == (N_EPOCHS, (4, 2, 1), 4 * N_EPOCHS)
    assert np.mean(run.costs[-4:]) < 0.8 * np.mean(run.costs[:4])
    assert result.best_validation_error < 0.4
    lines = run.stdout.splitlines()
    assert lines[:3] == ["... loading data", "... building the model", "... training"]
    assert lines[-1] == result.closing_line()
    assert run.stderr.startswith("The code for file alexnet.py ran for ")


def pytorchs_scores(parameters, images, factors):
    """Compute what enters the softmax of SMALL in PyTorch, from the parameters by name."""
    from torch.nn import functional

    def convolution(x, name, **options):
        W, b = parameters[f"{name}.W"], parameters[f"{name}.b"]
        # PyTorch correlates.
        return functional.relu(functional.conv2d(x, W.flip(2, 3), b, **options))

    def normalised_and_pooled(x):
        # PyTorch divides alpha by the number of maps.
        return functional.max_pool2d(functional.local_response_norm(x, 5, 5 * 1e-4, 0.75, 2), 3, 2)

    x = normalised_and_pooled(convolution(images - parameters["mean"], "conv1", stride=2))
    x = normalised_and_pooled(convolution(x, "conv2", padding=1, groups=2))
    x = convolution(x, "conv3", padding=1)
    x = convolution(x, "conv4", padding=1, groups=2)
    x = functional.max_pool2d(convolution(x, "conv5", padding=1, groups=2), 3, 2).flatten(1)
    for name, factor in zip(("fc6", "fc7"), factors, strict=True):
        x = functional.relu(x @ parameters[f"{name}.W"] + parameters[f"{name}.b"]) * factor
    return x @ parameters["output.W"] + parameters["output.b"]


@pytest.mark.needs("torch")
def test_the_first_steps_are_pytorchs(run, arrays):
    import torch

    x = arrays["train_x"][:, :, :33].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(run.initial["mean"], x.mean(axis=0), rtol=1e-6)
    parameters = {name: torch.tensor(value) for name, value in run.initial.items()}
    trained = {name: value.requires_grad_() for name, value in parameters.items() if name != "mean"}
    groups = [
        {"params": [value for name, value in trained.items() if name.endswith(kind)], "weight_decay": decay}
        for kind, decay in ((".W", SMALL["weight_decay"]), (".b", 0))
    ]
    optimizer = torch.optim.SGD(groups, lr=SMALL["learning_rate"], momentum=SMALL["momentum"])
    with pytensor.config.change_flags(floatX="float32"):
        draw = AlexNet(**NETWORK).draw_dropout_masks
        masks = [draw(SMALL["seed"], iteration, 10) for iteration in range(4)]
    for i in range(4):
        minibatch = slice(10 * i, 10 * (i + 1))
        scores = pytorchs_scores(
            parameters, torch.tensor(x[minibatch].astype("float32")), map(torch.tensor, masks[i])
        )
        cost = torch.nn.functional.cross_entropy(scores, torch.tensor(arrays["train_y"][minibatch]))
        np.testing.assert_allclose(run.costs[i], cost.item(), rtol=1e-4)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()


@pytest.mark.needs("torch")
def test_outside_of_training_units_count_for_the_probability_that_they_are_kept(run, folder, arrays):
    import torch

    images = arrays["test_x"][:, :, :33].transpose(0, 3, 1, 2).astype("float32")
    parameters = {name: torch.tensor(value) for name, value in run.result.best_parameters.items()}
    scores = pytorchs_scores(parameters, torch.tensor(images), (0.9, 0.9))
    architecture = AlexNet(**NETWORK)
    with pytensor.config.change_flags(floatX="float32"):
        x, mean = pt.ftensor4("x"), pytensor.shared(np.zeros((3, 33, 33), "float32"))
        layers = architecture.build(np.random.RandomState(0), x - mean, 10, architecture.expected_masks(10))
        load_parameters(folder / "m.npz", named_parameters(**layers) | {"mean": mean})
        p_y_given_x = pytensor.function([x], layers["output"].p_y_given_x)(images)
    np.testing.assert_allclose(p_y_given_x, scores.softmax(1).numpy(), rtol=1e-3, atol=1e-5)
    wrong = (scores.argmax(1).numpy() != arrays["test_y"]).mean()
    assert run.result.test_error == pytest.approx(wrong)


def test_resumed_it_ends_bitwise_as_it_did_without_a_stop(run, record, folder, images):
    files = {"checkpoint": folder / "after-two.npz", "resume": True}
    resumed = record(alexnet, train_alexnet, dataset=images, n_epochs=N_EPOCHS, **SMALL, **files)
    assert "Resuming after iteration 8" in resumed.stderr
    assert resumed.costs == run.costs[8:]
    assert resumed.result.history == run.result.history
    whole, again = (read_checkpoint(folder / name) for name in ("c.npz", "after-two.npz"))
    assert whole.optimiser.keys() == run.initial.keys() - {"mean"}
    assert all(velocity.any() for name, velocity in whole.optimiser.items() if name.endswith("W"))
    for kind in ("parameters", "optimiser"):
        before, after = getattr(whole, kind), getattr(again, kind)
        assert before.keys() == after.keys()
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value, err_msg=name, strict=True)


def test_the_saved_model_holds_parameters_and_mean_and_no_velocities(run, folder):
    assert read_npz(folder / "m.npz").keys() == {*AlexNet(**NETWORK).parameter_shapes(), "mean", "about"}


def test_predict_and_report_say_that_they_do_not_know_it(run, folder):
    for name in ("m.npz", "c.npz"):
        with pytest.raises(ValueError, match="a model of the script 'alexnet'; known are convol"):
            read_model(folder / name)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"momentum": 1}, "momentum=1"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"dropout": "half"}, "dropout='half'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"n_epochs": 0}, "n_epochs=0"),
        ({"seed": -1}, "seed=-1"),
        ({"stride": 8}, "the windows of"),
        ({"n_classes": 2}, "train_y has the label 2"),
        ({"image_side": 34}, "33x34, smaller than image_side=34"),
        ({"batch_size": 11}, "batch_size=11 is larger than the test set of 10 examples"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_compiled(arguments, message, images, no_compiling):
    with pytest.raises(ValueError, match=message):
        train_alexnet(images, **SMALL | arguments)


# Krizhevsky et al. (2012), figure 2 and section 3.5. By hand: (227 - 11) / 4 + 1 = 55, (55 - 3) / 2 + 1 = 27,
# (27 - 3) / 2 + 1 = 13, (13 - 3) / 2 + 1 = 6, and of each weight one connection per position.
LAYERS = {
    "input": ((3, 227, 227), 0),
    "conv1": ((96, 55, 55), 96 * (3 * 11 * 11) + 96),
    "norm1": ((96, 55, 55), 0),
    "pool1": ((96, 27, 27), 0),
    "conv2": ((256, 27, 27), 2 * 128 * (48 * 5 * 5) + 256),
    "norm2": ((256, 27, 27), 0),
    "pool2": ((256, 13, 13), 0),
    "conv3": ((384, 13, 13), 384 * (256 * 3 * 3) + 384),
    "conv4": ((384, 13, 13), 2 * 192 * (192 * 3 * 3) + 384),
    "conv5": ((256, 13, 13), 2 * 128 * (192 * 3 * 3) + 256),
    "pool5": ((256, 6, 6), 0),
    "fc6": ((4096,), 256 * 6 * 6 * 4096 + 4096),
    "fc7": ((4096,), 4096 * 4096 + 4096),
    "output": ((1000,), 4096 * 1000 + 1000),
}


def test_shapes_and_parameters_are_the_papers():
    layers = AlexNet().layers()
    assert {layer.name: (layer.shape, layer.parameters) for layer in layers} == LAYERS
    assert [layer.parameters for layer in layers if layer.parameters] == [
        34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000
    ]  # fmt: skip
    assert sum(np.prod(shape) for shape in AlexNet().parameter_shapes().values()) == 60_965_224


def test_connections_are_those_counted_by_hand():
    connections = {layer.name: layer.connections for layer in AlexNet().layers()}
    assert connections["conv1"] == 34_944 * 55 * 55
    # The outermost maps have two neighbours less, those beside them one.
    assert connections["norm1"] == (92 * 5 + 2 * 4 + 2 * 3) * 55 * 55
    assert connections["pool5"] == 256 * 6 * 6 * 9
    assert connections["fc7"] == 16_781_312


def test_the_summary_has_a_line_for_each_layer_and_the_sum():
    lines = AlexNet().summary().splitlines()
    assert [line.split()[0] for line in lines] == ["layer", *LAYERS, "total"]
    assert lines[5].split() == ["conv2", "256", "x", "27", "x", "27", "307,456", "224,135,424"]
    assert lines[-1].split()[1] == "60,965,224"


def test_the_layers_that_are_built_have_these_shapes_and_the_papers_initial_values():
    sizes = {"nkerns": (4, 8, 6, 10, 2), "n_hidden": (7, 5), "n_classes": 3, "weight_std": 0.03}
    architecture = AlexNet(**sizes, image_side=131)
    with pytensor.config.change_flags(floatX="float32"):
        images = pt.ftensor4("images")
        layers = architecture.build(np.random.RandomState(1), images, 2, architecture.expected_masks(2))
    shapes = {layer.name: layer.shape for layer in architecture.layers()}
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        assert layers[name].output.type.shape == (2, *shapes[name])
    assert layers["output"].p_y_given_x.type.shape == (2, 3)
    found = {f"{name}.{p.name}": p.get_value() for name, layer in layers.items() for p in layer.params}
    assert {name: value.shape for name, value in found.items()} == architecture.parameter_shapes()
    for name, value in found.items():
        assert value.dtype == "float32"
        if name.endswith(".b"):
            # Section 5.
            assert (value == (name[:-2] in ("conv2", "conv4", "conv5", "fc6", "fc7"))).all()
        else:
            assert abs(value.std() / 0.03 - 1) < 4 / np.sqrt(2 * value.size), name


def test_each_step_and_seed_drop_other_units_with_the_probability_given():
    architecture = AlexNet(**{"dropout": 0.25, "n_hidden": (300, 200)})
    with pytensor.config.change_flags(floatX="float32"):
        pairs = ((1, 0), (1, 1), (2, 0), (1, 0))
        draws = [np.hstack(architecture.draw_dropout_masks(*pair, 50)) for pair in pairs]
        at_test = [factor.eval(mode="FAST_COMPILE") for factor in architecture.expected_masks(2)]
    np.testing.assert_array_equal(draws[0], draws[3], strict=True)
    assert not any((draws[0] == other).all() for other in draws[1:3])
    for draw in draws:
        assert draw.dtype == "float32" and set(np.unique(draw)) == {0, 1}
        assert abs(draw.mean() - 0.75) < 0.015
    for factor, n in zip(at_test, (300, 200), strict=True):
        np.testing.assert_array_equal(factor, np.full((2, n), np.float32(0.75)), strict=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"image_side": 10}, r"filters of conv1 are 11x11, input gives them only 10x10"),
        ({"image_side": 60}, r"pool_size=3 does not fit: the windows of pool5 .* conv5 gives them only 2x2"),
        ({"nkerns": (96, 256, 384, 384)}, "nkerns=.* tuple of 5"),
        ({"nkerns": (96, 256, 384, 384, 255)}, "num_groups=2, .* not divide the 255 filters of conv5"),
        ({"num_groups": 3}, "num_groups=3, which does not divide the 256 filters of conv2"),
        ({"pool_stride": 4}, "pool_stride=4 does not fit: the windows, 3x3, would leave gaps"),
        ({"filter_sizes": (11, 5, 3, 3, 0)}, "filter_sizes="),
        ({"stride": 0}, "stride=0"),
        ({"n_hidden": (10,)}, "n_hidden="),
        ({"n_classes": 1.5}, "n_classes=1.5"),
        ({"dropout": 1}, "dropout=1 is not a number from 0 to below 1"),
        ({"weight_std": 0}, "weight_std=0"),
    ],
)
def test_what_is_out_of_range_or_does_not_fit_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        AlexNet(**arguments)
