import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from deeplearning_tutorial.alexnet import architecture_of

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
    layers = architecture_of({}).layers()
    assert {layer.name: (layer.shape, layer.parameters) for layer in layers} == LAYERS
    assert [layer.parameters for layer in layers if layer.parameters] == [
        34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000
    ]  # fmt: skip
    assert sum(np.prod(shape) for shape in architecture_of({}).parameter_shapes().values()) == 60_965_224


def test_connections_are_those_counted_by_hand():
    connections = {layer.name: layer.connections for layer in architecture_of({}).layers()}
    assert connections["conv1"] == 34_944 * 55 * 55
    # The outermost maps have two neighbours less, those beside them one.
    assert connections["norm1"] == (92 * 5 + 2 * 4 + 2 * 3) * 55 * 55
    assert connections["pool5"] == 256 * 6 * 6 * 9
    assert connections["fc7"] == 16_781_312


def test_the_summary_has_a_line_for_each_layer_and_the_sum():
    lines = architecture_of({}).summary().splitlines()
    assert [line.split()[0] for line in lines] == ["layer", *LAYERS, "total"]
    assert lines[5].split() == ["conv2", "256", "x", "27", "x", "27", "307,456", "224,135,424"]
    assert lines[-1].split()[1] == "60,965,224"


def test_the_layers_that_are_built_have_these_shapes_and_the_papers_initial_values():
    sizes = {"nkerns": (4, 8, 6, 10, 2), "n_hidden": (7, 5), "n_classes": 3, "deviation": 0.03}
    architecture = architecture_of(sizes | {"image_side": 131})
    with pytensor.config.change_flags(floatX="float32"):
        images = pt.ftensor4("images")
        layers = architecture.build(np.random.RandomState(1), images, 2, architecture.keep_all(2))
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
    architecture = architecture_of({"dropout": 0.25, "n_hidden": (300, 200)})
    with pytensor.config.change_flags(floatX="float32"):
        draws = [np.hstack(architecture.draw_kept(*pair, 50)) for pair in ((1, 0), (1, 1), (2, 0), (1, 0))]
        at_test = [factor.eval(mode="FAST_COMPILE") for factor in architecture.keep_all(2)]
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
        ({"deviation": 0}, "deviation=0"),
    ],
)
def test_what_is_out_of_range_or_does_not_fit_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        architecture_of(arguments)
