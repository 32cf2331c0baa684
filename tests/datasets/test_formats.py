import gzip
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from deeplearning_tutorial.datasets import formats
from deeplearning_tutorial.datasets.formats import IDX_FILES, read_pairs, read_splits

RNG = np.random.default_rng(3)
# Twelve images for training (ten) and validation (two), five for testing.
X_TRAIN = RNG.integers(256, size=(12, 28, 28), dtype=np.uint8)
Y_TRAIN = RNG.integers(10, size=12, dtype=np.uint8)
X_TEST = RNG.integers(256, size=(5, 28, 28), dtype=np.uint8)
Y_TEST = RNG.integers(10, size=5, dtype=np.uint8)


def idx_bytes(array):
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_idx(folder, gz=True, **replaced):
    """Write the four files; ``replaced`` has bytes or an array by the first two parts of a file's name."""
    folder.mkdir(exist_ok=True)
    for name, array in zip(IDX_FILES, (X_TRAIN, Y_TRAIN, X_TEST, Y_TEST), strict=True):
        content = replaced.get("_".join(name.split("-")[:2]), array)
        data = content if isinstance(content, bytes) else idx_bytes(content)
        (folder / f"{name}{'.gz' if gz else ''}").write_bytes(gzip.compress(data, 1) if gz else data)
    return folder


def write_npz(path, **replaced):
    arrays = {"x_train": X_TRAIN, "y_train": Y_TRAIN, "x_test": X_TEST, "y_test": Y_TEST} | replaced
    with open(path, "wb") as file:
        np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})
    return path


def tutorial_pairs():
    pairs = [(X_TRAIN[:10], Y_TRAIN[:10]), (X_TRAIN[10:], Y_TRAIN[10:]), (X_TEST, Y_TEST)]
    return [((x.reshape(-1, 784) / 256).astype(np.float32), y.astype(np.int64)) for x, y in pairs]


def write_pickle(path, pairs=None, proto=2):
    data = pickle.dumps(tuple(pairs or tutorial_pairs()), proto)
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


WRITERS = {
    "idx.gz": lambda folder: write_idx(folder),
    "idx": lambda folder: write_idx(folder, gz=False),
    "npz": lambda folder: write_npz(folder / "mnist.npz"),
    "npz with x_valid": lambda folder: write_npz(
        folder / "mnist.npz",
        x_train=X_TRAIN[:10],
        y_train=Y_TRAIN[:10],
        x_valid=X_TRAIN[10:],
        y_valid=Y_TRAIN[10:],
    ),
    "npz of rows": lambda folder: write_npz(folder / "m.npz", x_train=X_TRAIN.reshape(12, 784)),
    "npz of floats": lambda folder: write_npz(folder / "m.npz", x_train=X_TRAIN / 256.0),
    "npz, column-major": lambda folder: write_npz(folder / "m.npz", x_train=np.asfortranarray(X_TRAIN)),
    **{f"pickle {n}": lambda folder, n=n: write_pickle(folder / "mnist.pkl.gz", proto=n) for n in range(6)},
    "bare pickle": lambda folder: write_pickle(folder / "mnist.pkl"),
    "bare pickle called .gz": lambda folder: write_pickle(folder / "m.pkl").rename(folder / "mnist.pkl.gz"),
    "pickle of bytes": lambda folder: write_pickle(
        folder / "m.pkl", [((x * 256).astype(np.uint8), y) for x, y in tutorial_pairs()]
    ),
    "pickle of doubles": lambda folder: write_pickle(
        folder / "m.pkl", [(x.astype(np.float64), y.astype(np.int8)) for x, y in tutorial_pairs()]
    ),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_every_format_gives_bitwise_the_same_arrays(tmp_path, writer):
    splits = read_splits(writer(tmp_path))
    for (x, y), (expected_x, expected_y) in zip(splits, tutorial_pairs(), strict=True):
        assert x.dtype == np.float32 and y.dtype == np.int32
        assert x.flags.c_contiguous and x.flags.writeable and y.flags.writeable
        assert x.tobytes() == expected_x.tobytes()
        np.testing.assert_array_equal(y, expected_y)


def test_a_pixel_is_its_byte_over_256(tmp_path):
    x = np.zeros((6, 28, 28), np.uint8)
    x[0, 0, :3] = 1, 128, 255
    path = write_npz(tmp_path / "m.npz", x_train=x, y_train=Y_TRAIN[:6])
    (images, _labels), _valid, _test = read_splits(path)
    assert images[0, :4].tolist() == [0.00390625, 0.5, 0.99609375, 0]  # by hand


@pytest.mark.parametrize("n, n_valid", [(6, 1), (59_999, 9_999), (60_000, 10_000), (60_006, 10_000)])
def test_the_last_10000_images_or_the_last_sixth_of_fewer_are_for_validation(n, n_valid):
    x = np.broadcast_to(np.arange(n, dtype=np.uint32).astype(np.uint8)[:, None], (n, 784))
    y = np.arange(n) % 10
    (x_train, y_train), (x_valid, y_valid) = formats._hold_out(x, y, "here")
    assert (len(x_train), len(x_valid)) == (n - n_valid, n_valid)
    np.testing.assert_array_equal(np.concatenate([y_train, y_valid]), y)
    np.testing.assert_array_equal(np.concatenate([x_train[:, 0], x_valid[:, 0]]), x[:, 0])


def test_compressed_idx_files_are_preferred(tmp_path):
    write_idx(tmp_path)
    (tmp_path / IDX_FILES[0]).write_bytes(b"an unfinished copy")
    assert len(read_splits(tmp_path)[0][0]) == 10


def changed(array, value):
    array = array.copy()
    array.flat[-1] = value
    return array


FLOATS = X_TRAIN / np.float32(256)


@pytest.mark.parametrize(
    "replaced, message",
    [
        ({"x_train": None}, "lacks x_train; it needs the arrays x_train, y_train, x_test, y_test"),
        ({"x_valid": X_TRAIN}, "lacks y_valid"),
        ({"x_train": X_TRAIN[:, :27]}, r"training set: images have shape \(12, 27, 28\); use \(n, 784\)"),
        ({"x_test": X_TEST[0]}, r"test set: images have shape \(28, 28\)"),
        ({"y_train": Y_TRAIN[:, None]}, r"labels have shape \(12, 1\)"),
        ({"y_train": Y_TRAIN[:-1]}, "training set: 12 images but 11 labels"),
        ({"x_train": X_TRAIN[:0], "y_train": Y_TRAIN[:0]}, "training set: it has no images"),
        ({"x_train": X_TRAIN[:5], "y_train": Y_TRAIN[:5]}, "holds 5 training images; give 6 or more"),
        ({"x_test": X_TEST[:0], "y_test": Y_TEST[:0]}, "test set: it has no images"),
        ({"y_train": changed(Y_TRAIN, 10)}, "training set: it has the label 10; labels are digits 0 to 9"),
        ({"y_test": changed(Y_TEST.astype(int), -1)}, "test set: it has the label -1"),
        ({"y_test": Y_TEST / 2.0}, "labels are float64; store them as integers"),
        ({"y_test": Y_TEST.astype(bool)}, "labels are bool"),
        ({"x_train": X_TRAIN.astype(int)}, "pixels are int64; store bytes"),
        ({"x_train": changed(FLOATS, np.nan)}, "it has the pixel nan"),
        ({"x_train": changed(FLOATS, np.inf)}, "it has the pixel inf"),
        ({"x_train": changed(FLOATS, -0.25)}, "it has the pixel -0.25"),
        ({"x_train": changed(FLOATS, 1.5)}, "it has the pixel 1.5; float pixels must be finite and from 0"),
    ],
)
def test_the_error_for_anything_but_digits_has_file_value_and_fix(tmp_path, replaced, message):
    path = write_npz(tmp_path / "wrong.npz", **replaced)
    with pytest.raises(ValueError, match=f"wrong.npz.*{message}"):
        read_splits(path)


def test_arrays_of_objects_in_an_npz_are_rejected(tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    path = write_npz(tmp_path / "m.npz", y_test=np.array([Hostile()], dtype=object))
    with pytest.raises(ValueError, match="m.npz: y_test is not an array of numbers"):
        read_splits(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "pairs, message",
    [
        (tutorial_pairs()[:2], "holds 2 pairs of arrays; it needs three"),
        ([tutorial_pairs()[0]] * 2 + [(X_TEST, Y_TEST[:4])], "test set: 5 images but 4 labels"),
        ([tutorial_pairs()[0]] * 2 + [(np.full((1, 784), np.nan), Y_TEST[:1])], "it has the pixel nan"),
    ],
)
def test_a_pickle_of_something_else_is_rejected(tmp_path, pairs, message):
    path = write_pickle(tmp_path / "m.pkl.gz", pairs)
    with pytest.raises(ValueError, match=f"m.pkl.gz.*{message}"):
        read_splits(path)


@pytest.mark.parametrize("content", [b"", b"<html>no</html>", b"\x00" * 100, b"PK\x03\x04", b"\x1f\x8b"])
def test_a_file_in_an_unknown_format_is_rejected(tmp_path, content):
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="mnist.pkl.gz.*replace it"):
        read_splits(path)


@pytest.mark.parametrize(
    "replaced, message",
    [
        ({"train_images": Y_TRAIN}, "train-images.*.gz begins with 0x00000801, not 0x00000803 as IDX images"),
        ({"t10k_labels": X_TEST}, "t10k-labels.*.gz begins with 0x00000803, not 0x00000801 as IDX labels"),
        ({"train_labels": b"<html>"}, "train-labels-idx1-ubyte.gz begins with 0x3c68746d"),
        ({"train_labels": b""}, "train-labels.* is damaged or cut short .*within its header"),
        ({"train_images": idx_bytes(X_TRAIN)[:9]}, "train-images.* is damaged .*within its header"),
        ({"train_images": idx_bytes(X_TRAIN)[:-1]}, "train-images.*9407 bytes where its header says 9408"),
        ({"t10k_labels": idx_bytes(Y_TEST) + b"\x00"}, "t10k-labels.*has more than the 5 bytes"),
        ({"train_images": X_TRAIN[:, :, :27]}, r"claims shape \(12, 28, 27\); use \(n, 28, 28\)"),
        ({"train_images": b"\x00\x00\x08\x03" + b"\xff" * 12}, r"claims shape \(4294967295, "),
        ({"train_labels": Y_TRAIN[:11]}, "train-images.* and train-labels.*: 12 images but 11 labels"),
        ({"t10k_images": X_TEST[:4]}, "t10k-images.* and t10k-labels.*: 4 images but 5 labels"),
        ({"t10k_labels": changed(Y_TEST, 77)}, "t10k-labels.*: it has the label 77"),
    ],
)
@pytest.mark.parametrize("gz", [True, False])
def test_wrong_idx_files_are_rejected_by_name(tmp_path, replaced, message, gz):
    message = message if gz else message.replace(".gz", "")
    with pytest.raises(ValueError, match=message):
        read_splits(write_idx(tmp_path / "idx", gz, **replaced))


def test_a_folder_that_lacks_a_file_is_rejected(tmp_path):
    (write_idx(tmp_path) / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"lacks t10k-images-idx3-ubyte \(.gz or not\); put all four"):
        read_splits(tmp_path)


def test_the_error_for_a_folder_without_idx_files_lists_its_contents(tmp_path):
    for name in ("mnist_train.csv", "mnist_test.csv", *(f"x{n}" for n in range(1000))):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="lacks train-.* It holds: mnist_test.csv, mnist_train") as caught:
        read_splits(tmp_path)
    assert len(str(caught.value)) < 1500
    with pytest.raises(ValueError, match="train.csv: csv is not supported; replace it by"):
        read_splits(tmp_path / "mnist_train.csv")


LAYOUTS = {
    "torchvision's root": "MNIST/raw/{}",
    "torchvision's data set": "raw/{}",
    "dots": "{dotted}",
    "dots, compressed": "{dotted}.gz",
    "Kaggle's folders": "{}/{}",
    "Kaggle's folders and dots": "{dotted}/{dotted}",
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_idx_files_are_found_in_every_known_layout(tmp_path, layout):
    whole = write_idx(tmp_path / "whole", gz=layout.endswith(".gz"))
    for path in whole.iterdir():
        name = path.name.removesuffix(".gz")
        there = tmp_path / "root" / layout.format(name, name, dotted=name.replace("-idx", ".idx"))
        there.parent.mkdir(parents=True, exist_ok=True)
        path.rename(there)
    expected = read_splits(write_npz(tmp_path / "m.npz"))
    for found, pair in zip(read_splits(tmp_path / "root"), expected, strict=True):
        for array, expected_array in zip(found, pair, strict=True):
            np.testing.assert_array_equal(array, expected_array)


def test_files_of_two_data_sets_are_not_mixed(tmp_path):
    write_idx(tmp_path / "raw", train_images=X_TRAIN[::-1].copy())
    (write_idx(tmp_path) / "t10k-images-idx3-ubyte.gz").unlink()
    [(x, _y), *_others] = read_splits(tmp_path)
    np.testing.assert_array_equal(x[0] * 256, X_TRAIN[-1].ravel())


@pytest.mark.parametrize("cut", [".gz", ""])
@pytest.mark.parametrize("name", IDX_FILES)
def test_a_truncated_copy_beside_a_whole_one_is_skipped_with_a_note(tmp_path, capsys, cut, name):
    write_idx(tmp_path, gz=True)
    write_idx(tmp_path, gz=False)
    path = tmp_path / f"{name}{cut}"
    path.write_bytes(path.read_bytes()[:-5])
    expected = read_splits(write_npz(tmp_path / "m.npz"))
    for found, pair in zip(read_splits(tmp_path), expected, strict=True):
        np.testing.assert_array_equal(found[0], pair[0])
        np.testing.assert_array_equal(found[1], pair[1])
    err = capsys.readouterr().err
    if cut:
        assert err.startswith(f"Reading {tmp_path / name} instead: {path} is damaged or cut short (")
    else:
        assert err == ""
    (tmp_path / f"{name}{'' if cut else '.gz'}").unlink()
    with pytest.raises(ValueError, match=f"{path.name} is damaged or cut short"):
        read_splits(tmp_path)


@pytest.mark.parametrize("shape", [(1, 28, 28), (28, 28, 1)])
@pytest.mark.parametrize("writer", ["pickle", "npz"])
def test_images_with_a_channel_axis_are_accepted(tmp_path, shape, writer):
    pairs = [(x.reshape(-1, *shape), y) for x, y in tutorial_pairs()]
    if writer == "pickle":
        path = write_pickle(tmp_path / "m.pkl", pairs)
    else:
        path = write_npz(
            tmp_path / "m.npz", x_train=X_TRAIN.reshape(-1, *shape), x_test=X_TEST.reshape(-1, *shape)
        )
    for (x, y), (expected_x, expected_y) in zip(read_splits(path), tutorial_pairs(), strict=True):
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)


def test_the_error_for_a_single_idx_file_names_its_folder(tmp_path):
    write_idx(tmp_path)
    with pytest.raises(ValueError, match=f"one of the four IDX files; give their folder, {tmp_path}"):
        read_splits(tmp_path / "train-images-idx3-ubyte.gz")


@pytest.mark.parametrize("writer", ["idx.gz", "idx", "npz", "pickle 2", "pickle 5", "bare pickle"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9, 0.999])
def test_truncated_files_are_rejected_by_name(tmp_path, writer, part):
    path = WRITERS[writer](tmp_path)
    if path.is_dir():
        [path] = path.glob("train-images*")
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ValueError, match=path.name):
        read_splits(tmp_path if writer.startswith("idx") else path)


@pytest.mark.parametrize("writer", ["idx.gz", "npz", "pickle 2"])
def test_damaged_bytes_raise_value_error_or_nothing(tmp_path, writer):
    rng = np.random.default_rng(5)
    path = WRITERS[writer](tmp_path)
    if path.is_dir():
        [path] = path.glob("train-labels*")
    whole = path.read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        # Half of them near the end, where an .npz has its directory and gzip its checksum.
        start = rng.choice([0, max(0, len(data) - 300)])
        data[rng.integers(start, len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(data))
        try:
            read_splits(tmp_path if writer.startswith("idx") else path)
        except ValueError as error:
            assert path.name in str(error)


def test_a_flipped_bit_in_the_pixels_is_detected(tmp_path):
    path = write_pickle(tmp_path / "m.pkl.gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # in gzip's checksum
    path.write_bytes(data)
    with pytest.raises(ValueError, match="m.pkl.gz is damaged"):
        read_splits(path)


def bomb_idx(folder):
    return write_idx(folder, train_labels=idx_bytes(Y_TRAIN) + bytes(1 << 25))


def bomb_npz(folder):
    return write_npz(folder / "m.npz", x_test=np.zeros(1 << 25, np.uint8))


def bomb_lying_npz(folder):
    """Claim 1 KiB for a member that unpacks to 32 MiB."""
    path = bomb_npz(folder)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("x_test.npy").file_size
    path.write_bytes(data.replace(struct.pack("<I", size), struct.pack("<I", 1024)))
    return path


def bomb_pickle(folder):
    return write_pickle(folder / "m.pkl.gz", [(np.zeros(1 << 25, np.uint8), Y_TEST)], proto=4)


def bomb_behind_a_pickle(folder):
    path = write_pickle(folder / "m.pkl.gz")
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(1 << 25), 1))
    return path


@pytest.mark.parametrize("bomb", [bomb_idx, bomb_npz, bomb_lying_npz, bomb_pickle, bomb_behind_a_pickle])
def test_a_decompression_bomb_is_rejected_before_it_unpacks(tmp_path, monkeypatch, bomb):
    path = bomb(tmp_path)
    monkeypatch.setattr(formats, "MAX_BYTES", 1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="has more than the|unpacks to|asks for more|Bad CRC"):
            read_splits(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_is_idx_is_false_for_a_file_that_cannot_be_read(tmp_path):
    write_idx(tmp_path)
    image, label = (tmp_path / f"{name}.gz" for name in IDX_FILES[:2])
    assert formats.is_idx(image)
    label.write_bytes(label.read_bytes()[:9])
    assert not formats.is_idx(label)
    assert not formats.is_idx(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="absent"):
        formats.first_bytes(tmp_path / "absent")


@pytest.mark.parametrize("max_images", [11, 16])
def test_too_many_images_in_all_splits_together_are_rejected(tmp_path, monkeypatch, max_images):
    monkeypatch.setattr(formats, "MAX_IMAGES", max_images)
    paths = write_npz(tmp_path / "m.npz"), write_idx(tmp_path / "idx"), write_pickle(tmp_path / "m.pkl")
    for path in paths:
        with pytest.raises(ValueError, match=f"at most {max_images}"):
            read_splits(path)


def test_idx_files_that_only_claim_to_be_large_allocate_no_memory(tmp_path):
    claim = struct.pack(">4B3I", 0, 0, 8, 3, 300_000, 28, 28)
    for gz in (True, False):
        folder = write_idx(tmp_path / f"idx{gz}", gz, train_images=claim)
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match="0 bytes where its header says 235200000"):
                read_splits(folder)
            assert tracemalloc.get_traced_memory()[1] < 1 << 22
        finally:
            tracemalloc.stop()


def test_an_npz_with_a_damaged_directory_is_rejected_by_name(tmp_path):
    path = write_npz(tmp_path / "m.npz")
    whole = path.read_bytes()
    start = whole.rindex(b"PK\x05\x06")
    # The directory's offset, the version that a member requires, and the encoding of a member's name.
    for position, value in ((start + 16, 255), (whole.index(b"PK\x01\x02") + 6, 255), (start - 1, 0xDA)):
        damaged = bytearray(whole)
        damaged[position] = value
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="m.npz"):
            read_splits(path)


def triple(x, y, n=(5, 2, 3)):
    """Three pairs of the first examples of ``x`` and ``y``."""
    return [(x[:length], y[:length]) for length in n]


WIDE = RNG.normal(scale=100, size=(5, 3072))
CLASSES = np.array([40, 0, 3, 3, 99])
# Examples, targets, and the targets' data type when they are read.
ANYTHING = {
    "3072 pixels": (WIDE.astype("float32"), CLASSES, "int32"),
    "doubles": (WIDE, CLASSES, "int32"),
    "whole pixels": ((WIDE * 10).astype("int64"), CLASSES, "int32"),
    "bytes": (RNG.integers(256, size=(5, 3072), dtype=np.uint8), CLASSES, "int32"),
    "colours": (WIDE.reshape(5, 3, 32, 32), CLASSES, "int32"),
    "pixels beyond 1": (RNG.normal(size=(5, 784)), CLASSES, "int32"),
    "not a number": (np.full((5, 784), np.nan), CLASSES, "int32"),
    "one number each": (np.arange(5.0), CLASSES, "int32"),
    "labels as floats": (WIDE, CLASSES.astype("float32"), "int32"),
    "labels below zero": (WIDE, -CLASSES, "int32"),
    "true and false": (WIDE > 0, CLASSES > 2, "int32"),
    "one of n": (WIDE, np.eye(5, 7, dtype="float32"), "int32"),
    "targets": (WIDE, RNG.uniform(size=(5, 2)).astype("float32"), "float32"),
    "targets, some whole": (WIDE, np.array([0.0, 1, 2, 3, 0.5]), "float64"),
    "large targets": (WIDE, np.array([0.0, 1, 2, 3, 1e12]), "float64"),
    "unknown targets": (WIDE, np.array([0, 1, 2, 3, np.nan], "float32"), "float32"),
    "large bytes first": (WIDE.astype(">f4"), CLASSES.astype(">i2"), "int32"),
}


@pytest.mark.parametrize("kind", ANYTHING)
@pytest.mark.parametrize("proto", [0, 2, 5])
def test_any_pickled_triple_of_matching_pairs_is_read_as_stored(tmp_path, kind, proto):
    x, y, dtype = ANYTHING[kind]
    path = write_pickle(tmp_path / "m.pkl.gz", triple(x, y), proto)
    for (read_x, read_y), n in zip(read_pairs(path), (5, 2, 3), strict=True):
        assert read_y.dtype == dtype and read_x.dtype == x.dtype.newbyteorder("=")
        assert all(array.flags.c_contiguous and array.flags.writeable for array in (read_x, read_y))
        np.testing.assert_array_equal(read_x, x[:n])
        np.testing.assert_array_equal(read_y, y[:n])


def test_an_npz_may_hold_any_matching_pairs(tmp_path):
    x, y = np.concatenate([WIDE, WIDE]), np.concatenate([CLASSES, CLASSES])
    path = write_npz(tmp_path / "m.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    for (read_x, read_y), rows in zip(read_pairs(path), (slice(9), [9], [0, 1]), strict=True):
        np.testing.assert_array_equal(read_x, x[rows])
        np.testing.assert_array_equal(read_y, y[rows])


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_read_pairs_and_read_splits_agree_on_mnist(tmp_path, writer):
    path = writer(tmp_path)
    for arrays, expected in zip(read_pairs(path), read_splits(path), strict=True):
        for array, right in zip(arrays, expected, strict=True):
            assert array.shape == right.shape
            np.testing.assert_array_equal(array, right)


@pytest.mark.parametrize(
    "pairs, message",
    [
        (triple(WIDE, CLASSES)[:2], "holds 2 pairs of arrays; it needs three"),
        (
            [*triple(WIDE, CLASSES)[:2], (WIDE[:2], CLASSES[:1])],
            "test set: 2 examples but 1 targets; give one",
        ),
        (
            [*triple(WIDE, CLASSES)[:2], (WIDE[:, :9], CLASSES)],
            r"test set: x has shape \(5, 9\), that of the training set \(5, 3072\); only the first",
        ),
        (
            [triple(WIDE, CLASSES)[0], (WIDE, np.eye(5)), triple(WIDE, CLASSES)[1]],
            r"valid set: y has shape \(5, 5\), that of the training set \(5,\)",
        ),
        (triple(WIDE, CLASSES, (5, 0, 1)), r"valid set: x has shape \(0, 3072\); give at least one example"),
        ([(np.array(1.0), np.array(2))] * 3, r"train set: x has shape \(\)"),
        (triple(WIDE, CLASSES + 2**31), "train set: y has whole numbers outside int32; store them as floats"),
    ],
)
def test_pairs_that_do_not_match_are_rejected(tmp_path, pairs, message):
    path = write_pickle(tmp_path / "m.pkl.gz", pairs)
    with pytest.raises(ValueError, match=f"m.pkl.gz.*{message}"):
        read_pairs(path)


def test_a_hostile_pickled_triple_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    path = write_pickle(tmp_path / "m.pkl.gz", [*triple(WIDE, CLASSES)[:2], (WIDE, Hostile())])
    with pytest.raises(ValueError, match="m.pkl.gz.*do not trust it"):
        read_pairs(path)
    assert not (tmp_path / "ran").exists()
