import numpy as np
from scipy.signal import convolve2d

from deeplearning_tutorial.classify.feature_maps import feature_maps
from deeplearning_tutorial.classify.models import model_of


def test_feature_maps_of_both_convolutions_and_poolings_equal_scipys(sample):
    rng = np.random.default_rng(3)
    shapes = {
        "layer0.W": (2, 1, 5, 5),
        "layer0.b": (2,),
        "layer1.W": (3, 2, 5, 5),
        "layer1.b": (3,),
        "layer2.W": (48, 4),
        "layer2.b": (4,),
        "layer3.W": (4, 10),
        "layer3.b": (10,),
    }
    parameters = {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()}
    image = sample[2][0][1]
    maps = feature_maps(model_of("convolutional_mlp", parameters), image)

    def convolved(below, layer):
        W, b = parameters[f"{layer}.W"], parameters[f"{layer}.b"]
        sums = [sum(convolve2d(m, w, "valid") for m, w in zip(below, filters, strict=True)) for filters in W]
        return np.tanh(np.array(sums) + b[:, None, None])

    def pooled(below):
        n, rows, cols = below.shape
        return below.reshape(n, rows // 2, 2, cols // 2, 2).max(axis=(2, 4))

    expected = {"C1": convolved(image.reshape(1, 28, 28), "layer0")}
    expected["S2"] = pooled(expected["C1"])
    expected["C3"] = convolved(expected["S2"], "layer1")
    expected["S4"] = pooled(expected["C3"])
    assert list(maps) == list(expected)
    assert [m.shape for m in maps.values()] == [(2, 24, 24), (2, 12, 12), (3, 8, 8), (3, 4, 4)]
    for name, values in expected.items():
        np.testing.assert_allclose(maps[name], values, atol=1e-12, err_msg=name)
