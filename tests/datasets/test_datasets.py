import gzip
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytensor
import pytest
from machine import MNIST
from PIL import Image

from deeplearning_tutorial import convolutional_mlp, datasets, lenet5, logistic_sgd, mlp
from deeplearning_tutorial.datasets import (
    DatasetNotFoundError,
    download,
    formats,
    load_data,
    locate,
    sample_path,
)
from deeplearning_tutorial.datasets.__main__ import main
from deeplearning_tutorial.datasets.fingerprint import MNIST_FINGERPRINT, data_fingerprint
from deeplearning_tutorial.datasets.formats import IDX_FILES

ROOT = Path(datasets.__file__).parents[2]
RNG = np.random.default_rng(3)
ARRAYS = {
    "x_train": RNG.integers(256, size=(12, 28, 28), dtype=np.uint8),
    "y_train": RNG.integers(10, size=12, dtype=np.uint8),
    "x_test": RNG.integers(256, size=(5, 28, 28), dtype=np.uint8),
    "y_test": RNG.integers(10, size=5, dtype=np.uint8),
}


def write_npz(path):
    np.savez(path, **ARRAYS)
    return path


def write_idx(folder, suffix=".gz"):
    folder.mkdir(exist_ok=True)
    for name, array in zip(IDX_FILES, ARRAYS.values(), strict=True):
        data = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
        (folder / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
    return folder


def write_pickle(path):
    x, y, x_test, y_test = ARRAYS.values()
    x, x_test = (images.reshape(-1, 784) / np.float32(256) for images in (x, x_test))
    path.write_bytes(gzip.compress(pickle.dumps(((x[:10], y[:10]), (x[10:], y[10:]), (x_test, y_test)), 2)))
    return path


class Places:
    """The folders that are searched, all different and empty."""

    def __init__(self, root):
        self.here, self.named, self.cache = root / "here", root / "named", root / "cache"
        self.checkout = root / "checkout"
        self.own = self.checkout / "data"
        for folder in (self.here, self.named, self.own, self.checkout / "deeplearning_tutorial"):
            folder.mkdir(parents=True)
        (self.checkout / "setup.cfg").touch()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Search only new folders, and fail if a test would use the network."""
    places = Places(tmp_path)
    monkeypatch.chdir(places.here)
    monkeypatch.setenv("DEEPLEARNING_TUTORIAL_DATA", str(places.named))
    monkeypatch.setattr(datasets, "_PACKAGE", places.checkout / "deeplearning_tutorial")
    monkeypatch.setattr(datasets.platformdirs, "user_cache_path", lambda name: places.cache / name)

    def no_network(folder):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(download, "download", no_network)
    return places


def no_mirror(folder):
    raise download.DownloadError("one.example: refused\ntwo.example: silent")


@pytest.mark.parametrize("floatX", ["float32", "float64"])
def test_load_data_returns_the_tutorials_three_pairs_of_shared_variables(tmp_path, floatX):
    write_npz(tmp_path / "m.npz")
    with pytensor.config.change_flags(floatX=floatX):
        splits = load_data(str(tmp_path / "m.npz"))
    assert type(splits) is list and [type(pair) for pair in splits] == [tuple] * 3
    expected = ARRAYS["x_train"].reshape(12, 784).astype(np.float32) / np.float32(256)
    for (x, y), n in zip(splits, (10, 2, 5), strict=True):
        assert x.type.dtype == floatX and x.type.shape == (n, 784)
        assert y.type.dtype == "int32" and y.type.shape == (n,)
        assert x.get_value(borrow=True).shape == (n, 784) and y.get_value(borrow=True).shape == (n,)
    np.testing.assert_array_equal(np.concatenate([x.get_value() for x, _ in splits[:2]]), expected)
    np.testing.assert_array_equal(np.concatenate([y.get_value() for _, y in splits[:2]]), ARRAYS["y_train"])


@pytest.mark.parametrize("floatX", ["float32", "float64"])
def test_load_data_accepts_any_pickled_triple(tmp_path, floatX):
    x, y, targets = RNG.normal(size=(4, 3072)), np.array([30.0, 0, 7, 2]), RNG.normal(size=(4, 2))
    for labels, dtype in ((y, "int32"), (targets, floatX)):
        path = tmp_path / "cifar.pkl"
        path.write_bytes(pickle.dumps(((x, labels), (x[:2], labels[:2]), (x[:3], labels[:3]))))
        with pytensor.config.change_flags(floatX=floatX):
            splits = load_data(path)
        for (shared_x, shared_y), n in zip(splits, (4, 2, 3), strict=True):
            assert (shared_x.type.dtype, shared_y.type.dtype) == (floatX, dtype)
            assert shared_x.type.shape == (n, 3072)
            np.testing.assert_array_equal(shared_x.get_value(), x[:n].astype(floatX))
            np.testing.assert_array_equal(shared_y.get_value(), labels[:n].astype(dtype))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": RNG.normal(size=(6, 3072))}, r"images have shape \(6, 3072\); use \(n, 784\)"),
        ({"y": np.eye(6, 10)}, r"labels have shape \(6, 10\)"),
        ({"y": np.arange(6) + 5}, "it has the label 10; labels are digits 0 to 9"),
        ({"y": np.arange(6) / 2}, r"labels are float\d\d; store them as integers"),
        ({"x": np.full((6, 784), 1.5)}, "it has the pixel 1.5"),
    ],
)
@pytest.mark.parametrize(
    "train",
    [
        logistic_sgd.sgd_optimization_mnist,
        mlp.test_mlp,
        convolutional_mlp.evaluate_lenet5,
        lenet5.train_lenet5,
    ],
)
def test_the_scripts_accept_only_mnist(tmp_path, monkeypatch, train, change, message):
    monkeypatch.chdir(tmp_path)
    arrays = {"x": np.zeros((6, 784)), "y": np.arange(6)} | change
    (tmp_path / "m.pkl").write_bytes(pickle.dumps([(arrays["x"], arrays["y"])] * 3))
    with pytest.raises(ValueError, match=f"^dataset='m.pkl', train set: {message}"):
        train(dataset="m.pkl")


def test_shared_variables_do_not_copy_the_arrays(tmp_path, monkeypatch):
    splits = datasets.formats.read_splits(write_npz(tmp_path / "m.npz"))
    monkeypatch.setattr(datasets.formats, "read_pairs", lambda path: splits)
    with pytensor.config.change_flags(floatX="float32"):
        shared = load_data(tmp_path)
    for pair, arrays in zip(shared, splits, strict=True):
        assert all(np.shares_memory(v.get_value(borrow=True), a) for v, a in zip(pair, arrays, strict=True))


def test_load_data_returns_bitwise_the_same_from_every_format(tmp_path):
    sources = write_idx(tmp_path / "idx"), write_idx(tmp_path / "idx2", ""), write_npz(tmp_path / "m.npz")
    expected, *others = [
        [variable.get_value().tobytes() for pair in load_data(source) for variable in pair]
        for source in (write_pickle(tmp_path / "mnist.pkl.gz"), *sources)
    ]
    assert others == [expected] * 3


def test_the_tutorials_line_is_printed_once_on_stdout(tmp_path, capsys):
    load_data(write_npz(tmp_path / "m.npz"))
    assert capsys.readouterr() == ("... loading data\n", "")


def test_the_line_is_printed_only_for_a_file_that_exists_even_if_damaged(tmp_path, capsys):
    (tmp_path / "m.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="m.npz"):
        load_data(tmp_path / "m.npz")
    assert capsys.readouterr().out == "... loading data\n"
    with pytest.raises(DatasetNotFoundError):
        load_data(tmp_path / "absent.npz")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["mnist.pkl.gz", "other.npz"])
def test_a_bare_name_is_searched_here_then_in_the_variables_folder_then_in_data(places, name):
    for folder in (places.own, places.named, places.here):
        (folder / name).touch()
        assert locate(name) == folder / name


def test_a_bare_name_may_be_a_folder(places):
    write_idx(places.named / "digits")
    assert locate("digits") == places.named / "digits"
    assert len(load_data("digits")) == 3


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_the_four_idx_files_or_an_npz_replace_mnist_pkl_gz(places, suffix):
    write_npz(places.own / "mnist.npz")
    assert locate("mnist.pkl.gz") == places.own / "mnist.npz"
    write_idx(places.own, suffix)
    assert locate("mnist.pkl.gz") == places.own
    write_npz(places.named / "mnist.npz")
    assert locate("mnist.pkl.gz") == places.named / "mnist.npz"
    write_idx(places.here, suffix)
    assert locate("mnist.pkl.gz") == places.here
    # The exact name takes precedence in any folder.
    write_pickle(places.own / "mnist.pkl.gz")
    assert locate("mnist.pkl.gz") == places.own / "mnist.pkl.gz"


@pytest.mark.parametrize("folder", ["MNIST/raw", "raw"])
def test_torchvisions_files_replace_mnist_pkl_gz(places, capsys, folder):
    (places.named / folder).mkdir(parents=True)
    write_idx(places.named / folder, "")
    assert locate("mnist.pkl.gz") == places.named
    assert main([]) == 0
    # Only the compressed originals have known SHA-256.
    assert "SHA-256" not in capsys.readouterr().out


def test_a_bad_copy_of_an_idx_file_is_ignored_beside_a_good_one(places, capsys):
    write_idx(places.named, "")
    (places.named / f"{IDX_FILES[1]}.gz").write_bytes(b"<html>not found</html>")
    assert locate("mnist.pkl.gz") == places.named
    assert len(load_data("mnist.pkl.gz")) == 3
    assert "Skipping" not in capsys.readouterr().err


def test_a_folder_with_a_bad_idx_file_is_skipped_with_a_note(places, capsys):
    write_idx(places.named)
    (places.named / f"{IDX_FILES[1]}.gz").write_bytes(b"<html>not found</html>")
    write_idx(places.own)
    assert locate("mnist.pkl.gz") == places.own
    assert f"Skipping {places.named}: {IDX_FILES[1]}.gz is not an IDX file" in capsys.readouterr().err


def test_the_variable_may_be_unset_or_empty(places, monkeypatch):
    write_npz(places.own / "a.npz")
    monkeypatch.setenv("DEEPLEARNING_TUTORIAL_DATA", "")
    assert locate("a.npz") == places.own / "a.npz"
    monkeypatch.delenv("DEEPLEARNING_TUTORIAL_DATA")
    assert locate("a.npz") == places.own / "a.npz"


@pytest.mark.parametrize("name", ["absent/m.npz", "./mnist.pkl.gz", "/absent/m.npz", "~/m.npz", "absent/"])
def test_a_path_that_does_not_exist_is_named_and_nothing_is_downloaded(places, monkeypatch, name):
    monkeypatch.setenv("HOME", str(places.here))
    (places.own / "mnist.pkl.gz").touch()
    with pytest.raises(DatasetNotFoundError, match=f"dataset='{name}' does not exist"):
        locate(name)


def test_the_error_for_an_unknown_bare_name_lists_the_folders_searched(places):
    places.named.rmdir()
    with pytest.raises(DatasetNotFoundError) as caught:
        locate("mnist_6k.npz")
    message = str(caught.value)
    assert "dataset='mnist_6k.npz'" in message and "dataset='mnist.pkl.gz' to download MNIST" in message
    assert f"\n  {places.here}\n  {places.named} (no such folder)\n  {places.own}\n" in message


@pytest.mark.parametrize("name", ["mnist.pkl.gz", "digits.npz"])
@pytest.mark.parametrize("reason", ["Permission denied", "Input/output error", "Stale file handle"])
def test_an_unreadable_folder_is_skipped_with_a_note(places, monkeypatch, capsys, name, reason):
    exists = Path.exists

    def unreadable(path, **options):
        if path.parent in (places.here, places.named):
            raise OSError(5, reason)
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", unreadable)
    path = write_npz(places.own / "digits.npz").rename(places.own / name)
    assert datasets.locate(name) == path
    notes = [f"Skipping {folder}: {reason}" for folder in (places.here, places.named)]
    assert capsys.readouterr().err.splitlines() == notes


@pytest.mark.parametrize("other", [write_idx, lambda folder: write_npz(folder / "mnist.npz")])
def test_an_unreadable_subfolder_hides_neither_what_lies_beside_it_nor_other_folders(
    places, monkeypatch, capsys, other
):
    stat, locked = Path.stat, places.named / "MNIST"

    def unreadable(path, **options):
        if locked in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", unreadable)
    write_idx(places.own)
    assert datasets.locate("mnist.pkl.gz") == places.own
    assert f"Skipping {locked}" in capsys.readouterr().err
    with pytest.raises(PermissionError, match="MNIST"):
        formats.read_splits(places.named)
    other(places.named)
    assert datasets.locate("mnist.pkl.gz") in (places.named, places.named / "mnist.npz")


def test_mnist_is_found_from_a_working_directory_that_was_removed(places, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    write_idx(places.named)
    assert datasets.locate("mnist.pkl.gz") == places.named
    with pytest.raises(datasets.DatasetNotFoundError, match="other.npz.*in none of the folders"):
        datasets.locate("other.npz")


def test_an_unknown_home_folder_is_skipped(places, monkeypatch):
    monkeypatch.setenv("DEEPLEARNING_TUTORIAL_DATA", "~nobody_of_this_name/mnist")
    write_idx(places.own)
    assert datasets.locate("mnist.pkl.gz") == places.own


def test_an_empty_name_is_rejected():
    with pytest.raises(ValueError, match="dataset='' is empty"):
        locate("")


def test_missing_mnist_is_downloaded_into_the_checkouts_data(places, monkeypatch):
    monkeypatch.setattr(download, "download", write_idx)
    assert locate("mnist.pkl.gz") == places.own
    assert len(load_data("mnist.pkl.gz")[0][0].get_value()) == 10


@pytest.mark.parametrize("lacking", ["setup.cfg", "data"])
def test_without_a_checkout_mnist_is_downloaded_into_the_users_cache(places, monkeypatch, lacking):
    path = places.checkout / lacking
    path.rmdir() if path.is_dir() else path.unlink()
    monkeypatch.setattr(download, "download", lambda folder: folder.mkdir(parents=True) or write_idx(folder))
    assert locate("mnist.pkl.gz") == places.cache / "deeplearning_tutorial"
    monkeypatch.setattr(download, "download", no_mirror)
    assert locate("mnist.pkl.gz") == places.cache / "deeplearning_tutorial"


@pytest.mark.parametrize("error", [OSError, FileNotFoundError])
def test_the_error_of_a_failed_download_says_what_was_tried(places, monkeypatch, error):
    monkeypatch.setattr(download, "download", no_mirror)
    with pytest.raises(error) as caught:
        load_data("mnist.pkl.gz")
    assert type(caught.value) is DatasetNotFoundError
    message = str(caught.value)
    assert "\n  one.example: refused\n  two.example: silent\n" in message
    assert all(f"\n  {folder}\n" in message for folder in (places.here, places.named, places.own))
    assert "set DEEPLEARNING_TUTORIAL_DATA" in message and "dataset='mnist_5k.npz'" in message


def test_the_error_for_an_unwritable_data_folder_gives_the_reason(places, monkeypatch):
    def refused(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(download, "download", refused)
    with pytest.raises(DatasetNotFoundError, match="Permission denied"):
        locate("mnist.pkl.gz")


def test_the_sample_is_balanced_and_its_images_are_distinct():
    assert sample_path() == ROOT / "data" / "mnist_5k.npz" == locate("mnist_5k.npz")
    splits = datasets.formats.read_splits(sample_path())
    assert [len(x) for x, _ in splits] == [3000, 1000, 1000]
    for x, y in splits:
        np.testing.assert_array_equal(np.bincount(y), [len(x) // 10] * 10)
        # Shuffled: a sorted file would have long runs of one digit.
        assert max(len(run) for run in np.split(y, np.flatnonzero(np.diff(y)) + 1)) < 10
        assert x.max() == 255 / 256
    assert len({image.tobytes() for x, _ in splits for image in x}) == 5000


def test_the_sample_inside_the_package_takes_precedence(places):
    with pytest.raises(DatasetNotFoundError, match="reinstall"):
        sample_path()
    outside = write_npz(places.own / "mnist_5k.npz")
    assert sample_path() == outside
    inside = places.checkout / "deeplearning_tutorial" / "data"
    inside.mkdir()
    write_npz(inside / "mnist_5k.npz")
    assert sample_path() == inside / "mnist_5k.npz"
    outside.unlink()
    assert locate("mnist_5k.npz") == inside / "mnist_5k.npz"


def test_the_command_prints_the_path_and_the_size_of_each_split(places, capsys):
    write_idx(places.named)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(places.named)
    assert [line.split()[:2] for line in lines[1:4]] == [["train", "10"], ["valid", "2"], ["test", "5"]]
    assert "not those of the original MNIST" in lines[4]


def test_the_command_fails_with_status_1_and_a_message(places, monkeypatch, capsys):
    monkeypatch.setattr(download, "download", no_mirror)
    assert main([]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "one.example: refused" in err
    (places.here / "broken.npz").write_bytes(b"PK")
    assert main(["broken.npz"]) == 1
    assert "broken.npz: it is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, name", [([], "digit-7.png"), (["--output", "seven.png"], "seven.png")])
def test_show_prints_a_training_digit_with_its_label_and_writes_a_picture(
    places, capsys, arguments, name
):
    write_npz(places.here / "d.npz")
    assert main(["d.npz", "--show", "7", *arguments]) == 0
    *image, label, written = capsys.readouterr().out.splitlines()
    assert len(image) == 28
    assert (label, written) == (f"training digit 7, label {ARRAYS['y_train'][7]}", name)
    with Image.open(places.here / name) as picture:
        pixels = np.asarray(picture)[::20, ::20]
    np.testing.assert_array_equal(pixels, (ARRAYS["x_train"][7] / 256 * 255).astype(np.uint8))


@pytest.mark.parametrize(
    "is_terminal, environment, opened",
    [(True, "DISPLAY", True), (True, "", False), (False, "DISPLAY", False)],
)
def test_the_picture_is_opened_only_on_a_terminal_with_a_display(
    places, monkeypatch, is_terminal, environment, opened
):
    write_npz(places.here / "d.npz")
    opened_sizes = []
    monkeypatch.setattr(Image.Image, "show", lambda image: opened_sizes.append(image.size))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if environment:
        monkeypatch.setenv(environment, ":0")
    assert main(["d.npz", "--show", "0"]) == 0
    assert opened_sizes == ([(560, 560)] if opened else [])


def test_a_digit_is_written_without_stdout(places, monkeypatch):
    write_npz(places.here / "d.npz")
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["d.npz", "--show", "7"]) == 0
    assert (places.here / "digit-7.png").exists()


@pytest.mark.parametrize("index", [-1, 10])
def test_a_digit_outside_the_training_set_is_rejected(places, capsys, index):
    write_npz(places.here / "d.npz")
    assert main(["d.npz", "--show", str(index)]) == 1
    assert f"--show {index} is not in the training set; use a number from 0 to 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args, status, message",
    [(["--help"], 0, "Find or download MNIST"), (["mnist_5k.npz"], 0, "3000"), (["no.npz"], 1, "no.npz")],
)
def test_the_module_runs_as_a_command_without_a_traceback(tmp_path, args, status, message):
    command = [sys.executable, "-W", "error", "-m", "deeplearning_tutorial.datasets", *args]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env)
    assert ended.returncode == status
    assert message in (ended.stderr if status else ended.stdout)
    assert "Traceback" not in ended.stderr


@pytest.mark.needs("mnist")
def test_mnist_itself():
    assert all(download.is_original(MNIST / name) for name in download.EXPECTED)
    splits = datasets.formats.read_splits(locate(MNIST))
    found = [(x.shape, x.sum(dtype=np.float64) * 256, int(y.sum()), y[:5].tolist()) for x, y in splits]
    assert found == [
        ((50_000, 784), 1_309_089_051, 222_442, [5, 0, 4, 1, 9]),
        ((10_000, 784), 258_209_494, 44_794, [3, 8, 6, 9, 6]),
        ((10_000, 784), 264_923_200, 44_434, [7, 2, 1, 0, 4]),
    ]
    assert data_fingerprint(load_data(MNIST)) == MNIST_FINGERPRINT
