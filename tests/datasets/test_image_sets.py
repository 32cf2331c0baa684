import numpy as np
import pytest

from deeplearning_tutorial.datasets.image_sets import read_image_sets

RNG = np.random.default_rng(8)


def images(n, shape=(5, 7), dtype="uint8"):
    return RNG.integers(0, 256, (n, *shape, 3)).astype(dtype)


def sets(**others):
    arrays = {"train_x": images(4), "train_y": np.array([0, 2, 1, 2])}
    arrays |= {"valid_x": images(2), "valid_y": np.array([1, 1], "uint8")}
    return arrays | {"test_x": images(1), "test_y": np.array([0], "int16")} | others


def floats(value):
    sizes = {"train": 4, "valid": 2, "test": 1}
    return {f"{split}_x": np.full((n, 5, 7, 3), value, "float32") for split, n in sizes.items()}


@pytest.fixture
def written(tmp_path):
    def written(arrays, save=np.savez):
        save(tmp_path / "images.npz", **arrays)
        return tmp_path / "images.npz"

    return written


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_centres_of_the_images_are_read_with_channels_first(written, save):
    arrays = sets(notes=np.zeros(3))
    read = read_image_sets(written(arrays, save), 4, 3)
    for (x, y), split in zip(read, ("train", "valid", "test"), strict=True):
        # Of 5 rows, the last is cropped; of 7 columns, one on the left and two on the right.
        expected = np.moveaxis(arrays[f"{split}_x"][:, :4, 1:5], 3, 1)
        np.testing.assert_array_equal(x, expected, strict=True)
        assert x.flags.c_contiguous
        np.testing.assert_array_equal(y, arrays[f"{split}_y"].astype("int32"), strict=True)


def test_floats_stay_floats(written):
    [(x, _y), *_] = read_image_sets(written(sets(**floats(1 / 7))), 5, 3)
    assert x.dtype == "float32" and x.shape == (4, 3, 5, 5)


@pytest.mark.parametrize(
    "others, message",
    [
        ({"valid_x": images(2, (4, 9))}, r"images of valid_x are 4x9, smaller than image_side=5; .*side=4"),
        ({"test_x": images(1)[:, :, :, :2]}, r"test_x is uint8 of shape \(1, 5, 7, 2\); use numpy.savez"),
        ({"test_x": images(1)[0]}, r"test_x is uint8 of shape \(5, 7, 3\)"),
        ({"train_x": images(4, dtype="int64")}, "train_x is int64"),
        ({"test_x": images(0), "test_y": np.zeros(0, "int64")}, r"test_x is uint8 of shape \(0, 5, 7, 3\)"),
        ({"train_y": np.array([0, 1, 2])}, r"train_y is int64 of shape \(3,\) for 4 images"),
        ({"train_y": np.zeros(4)}, "train_y is float64"),
        ({"train_y": np.array([0, 1, 3, 2])}, "train_y has the label 3; .* n_classes - 1 = 2"),
        ({"valid_y": np.array([-1, 0])}, "valid_y has the label -1"),
        (floats(np.nan), "train_x has values that are not finite"),
        ({"test_x": floats(1)["test_x"]}, "test_x is float32, train_x uint8; give all images the same"),
    ],
)
def test_arrays_that_do_not_fit_are_rejected_by_name(written, others, message):
    with pytest.raises(ValueError, match=f"images.npz.*{message}"):
        read_image_sets(written(sets(**others)), 5, 3)


def test_missing_arrays_and_files_are_named(written, tmp_path):
    arrays = sets()
    del arrays["valid_y"], arrays["test_x"]
    with pytest.raises(ValueError, match="lacks valid_y, test_x; use numpy.savez"):
        read_image_sets(written(arrays), 5, 3)
    with pytest.raises(FileNotFoundError, match="dataset=.*nowhere.npz' is not a file"):
        read_image_sets(tmp_path / "nowhere.npz", 5, 3)


def test_a_damaged_file_or_a_pickle_is_rejected(written, tmp_path):
    path = written(sets())
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(ValueError, match="is not an .npz file of images"):
        read_image_sets(path, 5, 3)
    place = whole.index(b"train_x.npy") + 200
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match="is damaged"):
        read_image_sets(path, 5, 3)
    with pytest.raises(ValueError, match="is damaged"):
        read_image_sets(written(sets(test_y=np.array([None]))), 5, 3)


def test_a_decompression_bomb_is_rejected(written):
    path = written(sets(train_x=np.zeros((4, 500, 500, 3), "uint8")), np.savez_compressed)
    with pytest.raises(ValueError, match="unpacks to 30.* over 200 times its size"):
        read_image_sets(path, 5, 3)
