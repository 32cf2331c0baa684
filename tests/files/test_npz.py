import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from deeplearning_tutorial.files.npz import NpzReader, read_uncompressed

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def member(header, data=b"", version=(1, 0)):
    """A ``.npy`` file with ``header`` as it stands."""
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + data


def header_of(descr="'<f4'", shape="(2, 3)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


def write(path, compression=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def read(path, name="x"):
    with NpzReader(path) as archive:
        return archive.array(name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["u1", "i8", "f2", "<f4", ">f4", "f8", "c8", "?"])
def test_arrays_come_back_as_they_were_saved(tmp_path, save, dtype):
    arrays = {"x": X.astype(dtype), "y": np.asfortranarray(X.astype(dtype)), "z": X[0, 0], "none": X[:0]}
    save(tmp_path / "m.npz", **arrays)
    with NpzReader(tmp_path / "m.npz") as archive:
        assert archive.names == list(arrays)
        for name, expected in arrays.items():
            header = archive.header(name)
            assert header[:2] == (expected.shape, expected.dtype) and header.nbytes == expected.nbytes
            found = archive.array(name)
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype and found.flags.f_contiguous == expected.flags.f_contiguous


def test_members_without_the_npy_suffix_are_ignored(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("x", b"named as an array would be")
        archive.writestr("readme.txt", b"")
    with NpzReader(tmp_path / "m.npz") as archive:
        assert archive.names == []


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "EOF"),
        (b"no array", "magic"),
        (member(header_of(), X.tobytes()[:-1]), "float32 of shape"),
        (member(header_of(), X.tobytes() + b"?"), "float32 of shape"),
        (member(header_of(shape="(1 << 40,)")), "malformed"),
        (member(header_of(shape="(1099511627776,)")), r"float32 of shape \(1099511627776,\)"),
        (member(header_of(shape=f"(0, {'9' * 4000})")), "float32 of shape"),
        (member(header_of(shape=f"({'9' * 9000},)")), "Cannot parse header"),
        (member(header_of(shape="(-2, -3)"), X.tobytes()), r"float32 of shape \(-2, -3\)"),
        (member(header_of(shape="(2, 3.0)"), X.tobytes()), "shape is not valid"),
        (member(header_of("'|O'", "()"), b"cposix\nsystem\n."), "object of shape"),
        (member(header_of("'|V0'", "(4294967296,)")), "of shape"),
        (member(header_of("'<U1'"), bytes(24)), "<U1 of shape"),
        (member(header_of("[('a', '<f4')]"), X.tobytes()), "of shape"),
        (member(header_of("()"), X.tobytes()), "index out of range"),
        (member(header_of("'x'"), X.tobytes()), "descr"),
        (member(b"{'descr': __import__('os').system('false')}\n"), "malformed"),
        (member(b"(" * 9000), "EOF|nested"),
        (member(b"-" * 9000 + b"1"), "MemoryError|stack|recursion"),
        (member(b"'\n"), "Cannot parse header|unterminated"),
        (member(b" " * 60_000), "large"),
        (member(header_of(), X.tobytes(), (2, 0)), r"format \(2, 0\)"),
        (member(header_of(), X.tobytes(), (3, 0)), r"format \(3, 0\)"),
        (member(header_of(), X.tobytes(), (9, 9)), r"format \(9, 9\)"),
    ],
)
def test_a_member_that_is_not_a_numeric_array_is_rejected_by_name(tmp_path, data, message):
    path = write(tmp_path / "m.npz", x=data, y=member(header_of(), X.tobytes()))
    with NpzReader(path) as archive:
        for method in (archive.header, archive.array):
            with pytest.raises(ValueError, match=f"x is not an array of numbers .*({message})") as caught:
                method("x")
            assert len(str(caught.value)) < 300
        np.testing.assert_array_equal(archive.array("y"), X)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_bounded_decompression_are_rejected(tmp_path, compression):
    path = write(tmp_path / "m.npz", compression, x=member(header_of(), X.tobytes()))
    with pytest.raises(ValueError, match="compression is neither stored nor deflate"):
        read(path)


def test_an_encrypted_member_is_rejected(tmp_path):
    path = write(tmp_path / "m.npz", x=member(header_of(), X.tobytes()))
    data = bytearray(path.read_bytes())
    data[6] |= 1  # in the member's own header
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="encrypted"):
        read(path)


def peak_of(path, message):
    """Peak memory in bytes until the archive is rejected."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_array_that_is_only_claimed_allocates_no_memory(tmp_path):
    """Directory and header agree on 1 GiB, but the member has 24 bytes."""
    size = 1 << 30
    header = header_of("'|u1'", f"({size},)")
    path = write(tmp_path / "m.npz", x=member(header, bytes(24)))
    data = path.read_bytes()
    old, new = (struct.pack("<I", len(member(header)) + n) for n in (24, size))
    path.write_bytes(data.replace(old, new))
    assert peak_of(path, "24 bytes for x, not 1073741824|damaged") < 1 << 22


def test_an_array_larger_than_its_header_says_is_rejected(tmp_path):
    path = write(tmp_path / "m.npz", x=member(header_of(), bytes(1 << 25)))
    assert path.stat().st_size < 1 << 16
    assert peak_of(path, "33554502 bytes for float32 of shape") < 1 << 20


def test_a_directory_of_a_million_bytes_is_rejected_before_it_is_read(tmp_path):
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member(header_of(), X.tobytes()))
    data = path.read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entries = data[start:end] * 30_000
    tail = data[end : end + 12] + struct.pack("<II", len(entries), start) + bytes(2)
    path.write_bytes(data[:start] + entries + tail)
    assert peak_of(path, r"damaged or cut short \(its directory takes \d{7} bytes\)") < 1 << 20


def test_a_flipped_bit_in_the_numbers_is_detected(tmp_path):
    path = write(tmp_path / "m.npz", zipfile.ZIP_STORED, x=member(header_of(), X.tobytes()))
    data = bytearray(path.read_bytes())
    data[data.index(X.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="Bad CRC"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"W = 1", X.tobytes()])
def test_a_file_that_is_not_an_archive_is_rejected(tmp_path, content):
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or cut short"):
        NpzReader(tmp_path / "m.npz")


def test_the_error_for_a_missing_file_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.npz"):
        NpzReader(tmp_path / "absent.npz")


@pytest.mark.parametrize("offset", [(1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1])
def test_a_member_with_an_offset_beyond_the_file_is_rejected(tmp_path, offset):
    path = write(tmp_path / "m.npz", x=member(header_of(), X.tobytes()))
    data = path.read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry = bytearray(data[start:end])
    entry[30:32] = struct.pack("<H", 12)
    entry[42:46] = b"\xff" * 4  # the offset is in the extra field
    entry += struct.pack("<HHQ", 1, 8, offset)
    tail = data[end : end + 12] + struct.pack("<II", len(entry), start) + bytes(2)
    path.write_bytes(data[:start] + entry + tail)
    with pytest.raises(ValueError, match="x is not an array|damaged or cut short"):
        read(path)


def test_the_file_is_closed_on_exit(tmp_path):
    np.savez(tmp_path / "m.npz", x=X)
    with NpzReader(tmp_path / "m.npz") as archive:
        pass
    with pytest.raises(ValueError, match="not an array|closed"):
        archive.array("x")


def test_read_uncompressed_reads_every_array_of_savez(tmp_path):
    np.savez(tmp_path / "m.npz", x=X, y=X.T, none=X[:0])
    arrays = read_uncompressed(tmp_path / "m.npz")
    assert list(arrays) == ["x", "y", "none"]
    np.testing.assert_array_equal(arrays["y"], X.T)


def test_read_uncompressed_rejects_a_decompression_bomb(tmp_path):
    np.savez_compressed(tmp_path / "m.npz", x=X, y=np.zeros(1 << 25, "u1"))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="it unpacks to 33554456 bytes, more than the file has"):
            read_uncompressed(tmp_path / "m.npz")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
