import io
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from deeplearning_tutorial.datasets.array_pickle import load_pairs

LIMIT = 1 << 20
X = np.arange(6, dtype=np.float32).reshape(2, 3) / 8
Y = np.array([7, 2])


def load(data, limit=LIMIT):
    return load_pairs(io.BytesIO(data), limit)


def assert_is_pair(pair):
    x, y = pair
    assert x.dtype == np.float32 and y.dtype.kind == "i"
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


def python_2(array, proto):
    """Pickle an array as Python 2's cPickle did: old module names, bytes as strings."""
    data, code = array.tobytes(), array.dtype.str[1:]
    if proto == 0:
        text = repr(data)[1:].encode()
        shape = b"".join(b"I%d\n" % n for n in array.shape)
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(" + shape + b"t"
            b"cnumpy\ndtype\n(S'" + code.encode() + b"'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
            b"S" + text + b"\ntb"
        )
    shape = b"".join(b"K" + bytes([n]) for n in array.shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01(" + shape + b"t"
        b"cnumpy\ndtype\nU\x02" + code.encode() + b"K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(data)) + data + b"tb"
    )


@pytest.mark.parametrize("proto", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_python_3_is_read(proto):
    pairs = load(pickle.dumps(((X, Y), (X, Y), (X, Y)), proto))
    assert len(pairs) == 3
    for pair in pairs:
        assert_is_pair(pair)


@pytest.mark.parametrize("proto", [0, 2])
def test_pickles_of_python_2_are_read(proto):
    head = b"\x80\x02" if proto else b""
    assert_is_pair(load(head + b"((" + python_2(X, proto) + python_2(Y, proto) + b"tt.")[0])


@pytest.mark.parametrize("core", [b"numpy.core.", b"numpy._core."])
def test_both_names_of_numpys_core_are_accepted(core):
    data = pickle.dumps(((X, Y),), 2)
    assert b"numpy._core." in data
    assert_is_pair(load(data.replace(b"numpy._core.", core))[0])


@pytest.mark.parametrize("proto", [0, 2, 5])
def test_column_major_and_big_endian_arrays_keep_their_values(proto):
    assert_is_pair(load(pickle.dumps(((np.asfortranarray(X), Y),), proto))[0])
    [(x, _y)] = load(pickle.dumps(((X.astype(">f4"), Y),), proto))
    np.testing.assert_array_equal(x, X)


@pytest.mark.parametrize("proto", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_may_be_empty_and_of_many_dimensions(proto):
    empty, deep, flags = np.empty((0, 3), "float32"), np.arange(48).reshape(2, 1, 3, 2, 4), Y > 5
    [(x, y), (z, _)] = load(pickle.dumps(((empty, deep), (flags, Y)), proto))
    for array, expected in ((x, empty), (y, deep), (z, flags)):
        assert array.dtype == expected.dtype and array.shape == expected.shape
        np.testing.assert_array_equal(array, expected)
    with pytest.raises(ValueError, match="impossible shape"):
        load(pickle.dumps(((np.zeros((1,) * 9), Y),), proto))


def test_bytes_takes_no_arguments():
    with pytest.raises(ValueError, match="not a pickle of arrays"):
        load(pickle.dumps(((Call(bytes, 10**12), Y),), 2))


def test_labels_may_be_a_list_of_integers():
    for labels in ([7, 2], list(Y)):
        assert_is_pair(load(pickle.dumps(((X, labels),), 4))[0])


class Call:
    def __init__(self, function, *args):
        self.parts = function, args

    def __reduce__(self):
        return self.parts


def write(path):
    open(path, "w").close()


@pytest.mark.parametrize("proto", [0, 2, 4])
@pytest.mark.parametrize(
    "function, args",
    [
        (os.system, ("touch {marker}",)),
        (eval, ("open({marker!r}, 'w').close()",)),
        (exec, ("open({marker!r}, 'w').close()",)),
        (open, ("{marker}", "w")),
        (getattr, (X, "tofile")),
        (np.save, ("{marker}", X)),
        (np.loadtxt, ("{marker}",)),
        (np.fromfile, ("{marker}",)),
        (np.empty, (10**12,)),
        (write, ("{marker}",)),
        (Call, (X.tofile, "{marker}")),
    ],
)
def test_a_function_is_rejected_and_not_called(tmp_path, function, args, proto):
    marker = tmp_path / "ran"
    args = [arg.format(marker=str(marker)) if isinstance(arg, str) else arg for arg in args]
    with pytest.raises(ValueError, match="do not trust it"):
        load(pickle.dumps(((Call(function, *args), Y),), proto))
    assert not marker.exists()


@pytest.mark.parametrize(
    "module, name",
    [
        ("posix", "system"),
        ("builtins", "getattr"),
        ("__builtin__", "eval"),
        ("builtins", "object"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "dtype.__class__.__base__"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy._core.multiarray", "fromfile"),
        ("numpy._core.multiarray", "__loader__"),
        ("numpy", "f2py.diagnose.os.system"),
        ("numpy.lib.format", "read_array"),
        ("_codecs", "decode"),
        ("_codecs", "lookup"),
        ("copyreg", "_reconstructor"),
        ("pickle", "loads"),
        ("functools", "partial"),
        ("imported_by_a_pickle", "anything"),
    ],
)
def test_a_name_that_no_array_needs_is_rejected_and_not_imported(tmp_path, monkeypatch, module, name):
    (tmp_path / "imported_by_a_pickle.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    by_line = f"c{module}\n{name}\n(S'x'\ntR.".encode()
    short = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)]
    by_stack = b"\x80\x04" + b"".join(short) + b"\x93\x8c\x01x\x85R."
    for data in (by_line, by_stack):
        with pytest.raises(ValueError, match="do not trust it"):
            load(data)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"(S'touch x'\niposix\nsystem\n.",  # INST
        b"(cnumpy\ndtype\nS'f4'\no.",  # OBJ
        b"cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"cnumpy\nndarray\n))\x92.",  # NEWOBJ_EX
        b"Pname\n.",
        b"S'name'\nQ.",
        b"\x82\x01.",  # EXT1
        b"\x97.",  # NEXT_BUFFER
        b"\x8f.",  # EMPTY_SET
    ],
)
def test_opcodes_that_arrays_do_not_need_are_rejected(data):
    with pytest.raises(ValueError, match="not a pickle of arrays|do not trust it"):
        load(data)


@pytest.mark.parametrize("target", [b"c_codecs\nencode\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"]"])
def test_only_an_array_or_its_dtype_can_be_given_a_state(target):
    with pytest.raises(ValueError, match="something other than an array"):
        load(target + b"(NS'__code__'\ntb.")


def test_subclasses_of_arrays_are_rejected():
    with pytest.raises(ValueError, match="something other than an ndarray"):
        load(b"cnumpy.core.multiarray\n_reconstruct\n(S'matrix'\n(I0\ntS'b'\ntR.")


def test_arrays_of_objects_are_rejected():
    for array in (np.array([print, None]), np.array(["text"]), np.zeros(1, [("a", "f4")])):
        with pytest.raises(ValueError, match="plain numbers|do not trust it"):
            load(pickle.dumps(((array, Y),), 2))


@pytest.mark.parametrize("n", [0, 3, 1 << 70])
def test_a_shape_that_does_not_match_its_bytes_is_rejected(n):
    shape = b"K\x02" + pickle.dumps(n, 2)[2:-1] + b"\x86"
    data = pickle.dumps(((X, Y),), 2).replace(b"K\x02K\x03\x86", shape)
    if n == 3:
        assert_is_pair(load(data)[0])
    else:
        with pytest.raises(ValueError, match="24 bytes for an array|impossible shape"):
            load(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",  # BYTEARRAY8
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",  # BINBYTES8
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".",  # BINUNICODE8
        b"Nr\xff\xff\xff\x7f.",  # LONG_BINPUT, for which the C unpickler allocates 16 GiB
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",  # FRAME
        b"S'" + b"x" * 2 * LIMIT,
        b"B" + struct.pack("<I", 2 * LIMIT) + b"x" * 2 * LIMIT + b".",
        # The same 64 KiB encoded to bytes 60 times.
        b"X\x00\x00\x01\x00" + b"x" * 65536 + b"q\x00("
        + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 60 + b"l.",
    ],
)
def test_excessive_memory_is_rejected_before_it_is_allocated(data):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="asks for more than|holds a NoneType|not a pickle of arrays"):
            load(data)
        assert tracemalloc.get_traced_memory()[1] < 8 * LIMIT
    finally:
        tracemalloc.stop()


LARGE_TEXT = b"X" + struct.pack("<I", LIMIT - 100) + b"x" * (LIMIT - 100)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"cnumpy\ndtype\n" + LARGE_TEXT + b"R.", "no tuple"),
        (b"cnumpy\ndtype\n(S'f4'\ntR" + LARGE_TEXT + b"b.", "no tuple"),
        (LARGE_TEXT[:-4] + "\U0001f600".encode() + b".", "not latin1"),
        (b"V" + b"x" * (LIMIT - 100) + b"\\U0001f600\n.", "not latin1"),
        (b"V" + b"x" * (LIMIT - 100) + b"\\u0100\n.", "not latin1"),
    ],
)
def test_data_that_would_expand_many_times_is_rejected(data, message):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            load(data)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * LIMIT
    finally:
        tracemalloc.stop()


def test_a_length_that_is_only_claimed_allocates_no_memory():
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="ends too early"):
            load(b"B" + struct.pack("<I", 1 << 29) + b"xyz", limit=1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_a_deeply_nested_dict_key_is_not_hashed():
    with pytest.raises(ValueError, match="it holds a dict"):
        load(b"})" + b"\x85" * 300_000 + b"Ns.")


@pytest.mark.parametrize("part", [b"]", b"]\x94", b"(", b"N\x85", b"G" + b"x" * 8])
def test_too_many_small_objects_are_rejected_before_they_fill_memory(part):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 500000 parts"):
            load(b"(" + part * 600_000, limit=1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 60_000 * 784
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("proto", [0, 2, 5])
def test_a_list_of_70000_labels_is_accepted(proto):
    labels = [n % 10 for n in range(70_000)]
    [(_, y)] = load(pickle.dumps(((X, labels),), proto), limit=1 << 30)
    np.testing.assert_array_equal(y, labels)


@pytest.mark.parametrize(
    "value, message",
    [
        ({"x": 1}, "holds a dict"),
        ((X, Y), "holds a _Array where a pair"),
        (((X, Y, Y),), "holds a tuple where a pair"),
        (((X, "labels"),), r"the pair \(_Array, str\)"),
        (((X, [1.5]),), r"the pair \(_Array, list\)"),
    ],
)
def test_anything_but_pairs_of_arrays_is_rejected(value, message):
    with pytest.raises(ValueError, match=message):
        load(pickle.dumps(value, 2))


@pytest.mark.parametrize("proto", [0, 2, 5])
def test_every_truncation_raises_value_error(proto):
    data = pickle.dumps(((X, Y),), proto)
    for n in range(len(data)):
        with pytest.raises(ValueError):
            load(data[:n])


@pytest.mark.parametrize("proto", [0, 2, 5])
def test_damaged_bytes_raise_value_error_or_nothing(proto):
    rng = np.random.default_rng(proto)
    whole = pickle.dumps(((X, Y),), proto)
    for _ in range(400):
        data = bytearray(whole)
        for position in rng.integers(len(data), size=3):
            data[position] = rng.integers(256)
        try:
            load(bytes(data))
        except ValueError:
            pass
