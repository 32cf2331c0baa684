import re
import sys
from pathlib import Path

import numpy as np
import pytensor
import pytest

# The benchmarks are not part of the package.
sys.path.append(str(Path(__file__).parents[2]))

from benchmarks import drawn_digits, photographed_digits, report, timing
from benchmarks.contenders import CHANNELS_LAST, JAX, MATRIX_PRODUCT, OURS, PLAIN, contenders_of
from benchmarks.workload import Workload
from deeplearning_tutorial.convolutional_mlp import LeNetConvPoolLayer
from deeplearning_tutorial.mlp import HiddenLayer


def test_lenets_shapes_follow_from_batch_filters_and_their_size():
    workload = Workload(batch_size=3, nkerns=(6, 16), filter_size=7)
    # 28 -> 22 -> 11 -> 5 -> 2, a row and a column lost to the pooling.
    assert workload.convolutions() == [((6, 1, 7, 7), (3, 1, 28, 28)), ((16, 6, 7, 7), (3, 6, 11, 11))]
    assert workload.fully_connected() == [(16 * 2 * 2, 500), (500, 10)]


def test_other_networks_are_fully_connected_alone():
    assert Workload("mlp").fully_connected() == [(784, 500), (500, 10)]
    assert Workload("logistic").fully_connected() == [(784, 10)]
    assert Workload("mlp").convolutions() == []


# By hand: multiplications of an image in each layer, then three passes but the first layer's input gradient.
LENET = [20 * 24 * 24 * 25, 50 * 8 * 8 * 20 * 25, 800 * 500, 500 * 10]


@pytest.mark.parametrize(
    "workload, operations",
    [
        (Workload(), 2 * 500 * (2 * LENET[0] + 3 * (LENET[1] + LENET[2] + LENET[3]))),
        (Workload(task="evaluation"), 2 * 10_000 * 2_293_000),
        (Workload("mlp", batch_size=20), 2 * 20 * (2 * 392_000 + 3 * 5_000)),
        (Workload("logistic", batch_size=600), 2 * 600 * 2 * 7_840),
    ],
)
def test_arithmetic_is_that_counted_by_hand(workload, operations):
    assert workload.gflop() == pytest.approx(operations / 1e9, rel=1e-12)


def test_a_step_of_lenet_takes_6_6_gflop():
    assert Workload().gflop() == pytest.approx(6.591)


@pytest.mark.parametrize("floatX", ["float32", "float64"])
def test_peers_start_from_the_packages_initial_parameters(floatX):
    import pytensor
    import pytensor.tensor as pt

    workload = Workload(batch_size=2, nkerns=(3, 4), filter_size=3, floatX=floatX)
    rng = np.random.RandomState(23455)
    with pytensor.config.change_flags(floatX=floatX):
        x = pt.tensor4("x")
        layers = [LeNetConvPoolLayer(rng, x, *shapes) for shapes in workload.convolutions()]
        layers.append(HiddenLayer(rng, pt.matrix("h"), workload.n_features(), 500))
    parameters = workload.initial_parameters()
    for layer, (W, b) in zip(layers, parameters[:3], strict=True):
        np.testing.assert_array_equal(layer.W.get_value(), W, strict=True)
        np.testing.assert_array_equal(layer.b.get_value(), b, strict=True)
    assert not parameters[3][0].any()


def test_the_ratio_is_taken_round_by_round():
    assert timing.median_ratio([1.0, 10.0, 6.0], [2.0, 4.0, 3.0]) == 2.0


def test_the_fastest_pytorch_is_that_of_the_lowest_median():
    seconds = {
        (OURS, 2): [1.0, 1.0, 1.0],
        (PLAIN, 2): [2.0, 5.0, 5.0],
        (CHANNELS_LAST, 2): [4.0, 4.0, 9.0],
        (JAX, 2): [3.0, 3.0, 3.0],
    }
    assert timing.fastest_pytorch(seconds) == (CHANNELS_LAST, 2)
    assert timing.fastest_pytorch({(OURS, 2): [1.0]}) is None


def test_channels_last_takes_part_only_where_there_are_convolutions():
    assert CHANNELS_LAST in contenders_of(Workload())
    assert CHANNELS_LAST not in contenders_of(Workload("mlp"))


def test_the_page_shows_times_ratio_arithmetic_and_who_is_missing():
    seconds = {
        (OURS, 2): [0.010, 0.012, 0.011],
        (PLAIN, 2): [0.020, 0.021, 0.050],
        (MATRIX_PRODUCT, 2): [0.020, 0.020, 0.020],
    }
    results = report.Results("MNIST", 2)
    results.timed["logistic-step"] = Workload("logistic", batch_size=600), seconds, {JAX: "not installed"}
    page = report.markdown(results, "make bench")
    # 0.018816 GFLOP in 11 ms are 1.71 GFLOP/s, of 100 GFLOP/s; in 21 ms 0.90.
    assert f"| logistic-step | 11 | 21 | {'– | ' * 3}**0.50** | 0.02 | 0.01 | 100 |" in page
    assert f"- Without {JAX}: not installed" in page
    assert "Start-up" not in page


@pytest.fixture
def model_path(tmp_path, sample):
    """A logistic regression that answers with the nearest mean image: crude, and far better than chance."""
    x, y = sample[0]
    means = np.array([x[y == digit].mean(axis=0) for digit in range(10)])
    path = tmp_path / "m.npz"
    np.savez(path, **{"classifier.W": 0.3 * means.T, "classifier.b": -0.15 * (means**2).sum(axis=1)})
    return path


def test_the_drawn_digits_are_legible_and_their_errors_counted(model_path, capsys):
    drawn = drawn_digits.twenty()
    assert [digit for digit, _how, _image in drawn] == sorted(2 * list(range(10)))
    assert len({how for _digit, how, _image in drawn}) > 15
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        drawn_digits.main([str(model_path), "--dataset", "mnist_5k.npz"])
    *wrong, drawn, test = capsys.readouterr().out.splitlines()
    assert len(wrong) < 10 and all(" is taken for " in line for line in wrong)
    assert drawn == f"drawn digits: {5 * len(wrong):.2f} % ({len(wrong)} of 20)"
    assert re.fullmatch(r"test set:     [12]\d\.\d\d % \(\d+ of 1000\)", test)


def test_photographed_digits_are_counted_and_kept(model_path, tmp_path, capsys):
    settings = ["plain", "shadow of 0.8"]
    arguments = [str(model_path), "--dataset", "mnist_5k.npz", "--n-digits", "10", "--keep", str(tmp_path)]
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        photographed_digits.main([*arguments, "--settings", *settings])
    _header, *rows = capsys.readouterr().out.splitlines()
    for row, setting in zip(rows, settings, strict=True):
        right, wrong, refused, _sure = map(int, row.removeprefix(setting).split())
        assert right + wrong + refused == 10 and right >= 6 and refused == 0
        assert len(list((tmp_path / setting.replace(" ", "-")).glob("*.png"))) == 10


@pytest.mark.parametrize("seconds, shown", [(0.000523, "0.523"), (0.0456, "45.6"), (2.34567, "2346")])
def test_milliseconds_keep_three_digits(seconds, shown):
    assert report._milliseconds([seconds]) == shown
