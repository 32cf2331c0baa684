import io
import re
import sys

import numpy as np
import pytensor
import pytest
from PIL import Image

import deeplearning_tutorial
from deeplearning_tutorial import logistic_sgd
from deeplearning_tutorial.classify import classification
from deeplearning_tutorial.classify.classification import Evaluation, Recognition, classify, evaluate, main
from deeplearning_tutorial.classify.models import model_of
from deeplearning_tutorial.classify.pictures import read_picture
from deeplearning_tutorial.datasets import sample_path
from deeplearning_tutorial.training.parameters import save_parameters

# Four images of three digits, worked by hand. The second and the last are misclassified.
PROBABILITIES = np.zeros((4, 10))
PROBABILITIES[[0, 1, 2, 3], [3, 3, 5, 5]] = [0.9, 0.6, 0.5, 0.8]
BY_HAND = Evaluation(np.array([3, 8, 5, 3], "int32"), PROBABILITIES)


@pytest.fixture(scope="module")
def model(sample):
    """A logistic regression whose weights are the mean image of each digit: crude, but better than chance."""
    x, y = sample[0]
    means = np.array([x[y == digit].mean(axis=0) for digit in range(10)])
    parameters = {"classifier.W": 0.3 * means.T, "classifier.b": -0.15 * (means**2).sum(axis=1)}
    return model_of("logistic_sgd", {name: value.astype("float32") for name, value in parameters.items()})


@pytest.fixture
def model_path(model, tmp_path):
    save_parameters(tmp_path / "m.npz", model.parameters)
    return tmp_path / "m.npz"


@pytest.fixture(autouse=True)
def uncompiled():
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        yield


@pytest.fixture
def pictures(tmp_path, sample):
    """Two digits of the test set with a blank sheet between them."""
    paths = [tmp_path / name for name in ("one.png", "blank.png", "other.png")]
    for path, index in ((paths[0], 0), (paths[2], 1)):
        Image.fromarray((255 - 256 * sample[2][0][index]).astype(np.uint8).reshape(28, 28)).save(path)
    Image.new("L", (30, 30), 255).save(paths[1])
    return paths


def test_errors_and_confusions_worked_by_hand():
    assert BY_HAND.predicted.tolist() == [3, 3, 5, 5]
    assert (BY_HAND.n_wrong, BY_HAND.error) == (2, 0.5)
    confusions = np.zeros((10, 10), int)
    confusions[[3, 8, 5, 3], [3, 3, 5, 5]] = 1
    np.testing.assert_array_equal(BY_HAND.confusions, confusions)
    assert BY_HAND.most_confidently_wrong(7).tolist() == [3, 1]
    assert BY_HAND.most_confidently_wrong(1).tolist() == [3]


def test_the_evaluation_of_a_test_set_equals_numpys(model, sample):
    x, y = sample[2]
    evaluation = evaluate(model, x, y)
    z = x @ model.parameters["classifier.W"] + model.parameters["classifier.b"]
    assert evaluation.error == (z.argmax(axis=1) != y).mean() < 0.3
    assert evaluation.confusions.sum() == len(y)
    np.testing.assert_array_equal(evaluation.confusions.sum(axis=1), np.bincount(y))


def test_pictures_are_classified_in_order_and_a_bad_one_does_not_affect_others(model, pictures):
    one, blank, other = classify(model, pictures)
    assert [each.path for each in (one, blank, other)] == pictures
    assert blank.digit is blank.image is blank.probabilities is None and "blank.png" in str(blank.error)
    for each in (one, other):
        np.testing.assert_array_equal(each.image, read_picture(each.path))
        [expected] = model.probabilities(each.image[None])
        np.testing.assert_array_equal(each.probabilities, expected)
        assert each.error is None and each.digit == expected.argmax()
    assert classify(model, []) == []


def test_the_command_prints_digits_and_probabilities_and_fails_for_a_bad_picture(
    model, model_path, pictures, capsys
):
    assert main([str(model_path), *map(str, pictures)]) == 1
    out, err = capsys.readouterr()
    _title, header, *rows = out.splitlines()
    assert header.split() == ["picture", "digit", *"0123456789"]
    assert len(rows) == 2
    for row, each in zip(rows, classify(model, pictures[::2]), strict=True):
        path, digit, *percent = row.removesuffix("  unsure").split()
        assert (path, int(digit)) == (str(each.path), each.digit)
        np.testing.assert_allclose(np.array(percent, float), 100 * each.probabilities, atol=0.0501)
        assert row.endswith("  unsure") == each.unsure == (each.probabilities.max() < 0.9)
    assert err.count("\n") == 1 and "blank.png shows no digit" in err


@pytest.mark.parametrize("highest, unsure", [(0.95, False), (0.85, True)])
def test_a_probability_below_90_percent_is_unsure(highest, unsure):
    probabilities = np.full(10, (1 - highest) / 9)
    probabilities[4] = highest
    assert Recognition("p.png", np.zeros(784), probabilities).unsure is unsure
    assert Recognition("p.png", error=ValueError("blank")).unsure


def test_good_pictures_give_status_0_and_show_prints_them(model_path, pictures, capsys):
    assert main([str(model_path), "--show", str(pictures[0])]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3 + 28 and "@@" in out


def test_without_pictures_the_command_prints_test_error_and_confusions(model, model_path, sample, capsys):
    assert main([str(model_path), "--dataset", str(sample_path())]) == 0
    lines = capsys.readouterr().out.splitlines()
    evaluation = evaluate(model, *sample[2])
    assert lines[0] == "... loading data"
    assert lines[1] == f"test error {100 * evaluation.error:f} % ({evaluation.n_wrong} of 1000)"
    rows = [list(map(int, line.split())) for line in lines[-10:]]
    np.testing.assert_array_equal(rows, np.column_stack([range(10), evaluation.confusions]))


@pytest.mark.parametrize("arguments", [["absent.npz"], ["m.npz", "--dataset", "absent.npz"]])
def test_a_missing_model_or_data_set_gives_status_1_and_a_message(model_path, monkeypatch, arguments, capsys):
    monkeypatch.chdir(model_path.parent)
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and "absent.npz" in err


def test_without_pillow_the_command_says_how_to_install_it(model_path, pictures, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert main([str(model_path), str(pictures[0])]) == 1
    assert re.fullmatch("pictures need Pillow.*pip install pillow\n", capsys.readouterr().err)


def test_the_command_runs_as_a_module_without_hiding_the_function(run_script, model_path, pictures):
    ended = run_script("predict", model_path, pictures[0], cwd=model_path.parent, flags="mode=FAST_COMPILE")
    assert ended.returncode == 0, ended.stderr
    assert "one.png" in ended.stdout and ended.stderr == ""
    assert "deeplearning_tutorial.predict" not in sys.modules
    assert deeplearning_tutorial.predict is logistic_sgd.predict


def test_a_name_that_stdout_cannot_encode_is_escaped(run_script, model_path, pictures):
    path = pictures[0].rename(pictures[0].with_name("数字.png"))
    arguments = {"cwd": model_path.parent, "flags": "mode=FAST_COMPILE", "PYTHONIOENCODING": "ascii"}
    ended = run_script("predict", model_path, path.name, "没有.png", pictures[2].name, **arguments)
    assert ended.returncode == 1 and "\\u6ca1\\u6709.png" in ended.stderr
    rows = ended.stdout.splitlines()[2:]
    assert [row.split()[0] for row in rows] == [r"\u6570\u5b57.png", "other.png"]


@pytest.mark.parametrize("stream", [None, "closed"])
def test_pictures_are_classified_with_broken_streams(model_path, pictures, monkeypatch, stream):
    lost = io.StringIO()
    lost.close()
    monkeypatch.setattr(sys, "stdout", lost if stream else None)
    monkeypatch.setattr(sys, "stderr", lost if stream else None)
    assert main([str(model_path), *map(str, pictures)]) == 1


def test_help_shows_an_example(run_script, tmp_path):
    ended = run_script("predict", "--help", cwd=tmp_path)
    assert "python -m deeplearning_tutorial.predict lenet.npz seven.png photo.jpg" in ended.stdout
    assert classification.__name__ not in ended.stdout
