"""Read pickles of NumPy arrays without running anything that a pickle names.

A pickle is a program: it names functions and calls them. Here each name that a pickle of arrays uses is
mapped to a method of the reader itself, which checks its arguments; any other name is rejected. No NumPy
function is ever called with unchecked arguments from the file.

The usual remedy, a ``find_class`` of the C ``pickle.Unpickler``, restricts names but not memory: it allocates
any length that a file claims. Scanners (``picklescan``, ``fickling``) check what a pickle calls, not what
it allocates, and ``numpy.load(allow_pickle=False)`` rejects every pickle.
"""

import math
import pickle
import re
import struct

import numpy as np

from deeplearning_tutorial.files.bounded import PIECE, read_up_to

# A one-byte opcode can create an object of 64 bytes; this many take less memory than MNIST's 60,000 images.
# Arrays need a few hundred reads; a list of 70,000 integer labels needs three for each.
MAX_READS = 500_000
MAX_DIMENSIONS = 8

_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
    SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT
    GLOBAL STACK_GLOBAL REDUCE BUILD
""".split()
# Text is ASCII, or bytes as latin1. A single wider character would make every character take four bytes.
_WIDE = {"utf-8": re.compile(rb"[\xc4-\xff]"), "raw-unicode-escape": re.compile(rb"\\u(?!00)|\\U")}
_DTYPES = {"b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"}


class BoundedReader:
    """The reading half of a file, limited to ``limit`` bytes in total."""

    def __init__(self, file, limit):
        self.file = file
        self.limit = self.remaining = limit
        self.reads = 0

    def charge(self, n):
        """Subtract ``n`` bytes from the limit before they are allocated."""
        self.remaining -= n
        if self.remaining < 0:
            raise pickle.UnpicklingError(f"it asks for more than {self.limit} bytes")

    def read(self, n):
        """Read exactly ``n`` bytes."""
        self.reads += 1
        if self.reads > MAX_READS:
            raise pickle.UnpicklingError(f"it has more than {MAX_READS} parts")
        self.charge(n)
        data = self.file.read(n) if n <= PIECE else read_up_to(self.file, n)
        if len(data) < n:
            raise EOFError("it ends too early")
        return data

    def readline(self):
        """Read through the next newline."""
        line = self.file.readline(self.remaining + 1)
        self.charge(len(line))
        return line


class _Dtype:
    """Stands for ``numpy.dtype`` while a pickle is read."""

    def __init__(self, code):
        if not isinstance(code, str) or code not in _DTYPES:
            raise pickle.UnpicklingError("it holds an array of something other than plain numbers")
        self.value = np.dtype(code)

    def build(self, state):
        _version, order, *_ = state
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("it holds a dtype of unknown byte order")
        self.value = self.value.newbyteorder(order)


class _Array:
    """Stands for an array while a pickle is read: created empty, filled by BUILD."""

    value = None


class _ArrayUnpickler(pickle._Unpickler):
    # The C unpickler allocates for any length or memo index that the file claims. The Python one reads first,
    # through `BoundedReader`, and opcodes that create objects can be left out of its table.
    dispatch = {getattr(pickle, op)[0]: pickle._Unpickler.dispatch[getattr(pickle, op)[0]] for op in _OPCODES}

    def __init__(self, reader):
        super().__init__(reader, encoding="latin1")  # Python 2 pickled bytes as str
        self.reader = reader
        multiarray = {"_reconstruct": self.reconstruct, "scalar": self.scalar}
        numeric = {"_frombuffer": self.array}
        self.allowed = {
            "numpy": {"ndarray": "ndarray", "dtype": self.dtype},
            "numpy.core.multiarray": multiarray,
            "numpy._core.multiarray": multiarray,
            "numpy.core.numeric": numeric,
            "numpy._core.numeric": numeric,
            "_codecs": {"encode": self.encode},
            # Protocols below 3 call it for an array without elements.
            "__builtin__": {"bytes": self.empty_bytes},
            "builtins": {"bytes": self.empty_bytes},
        }

    def find_class(self, module, name):
        try:
            return self.allowed[module][name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module[:60]}.{name[:60]}, which no array needs; do not trust it"
            ) from None

    def dtype(self, code, align=False, copy=False):
        return _Dtype(code)

    def encode(self, text, encoding):
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("it encodes something other than bytes as latin1")
        self.reader.charge(len(text))
        return text.encode("latin1")

    def empty_bytes(self):
        return b""

    def reconstruct(self, kind, shape, code):
        if kind != "ndarray":
            raise pickle.UnpicklingError("it rebuilds something other than an ndarray")
        return _Array()

    def array(self, data, dtype, shape, order):
        if isinstance(data, str):
            data = self.encode(data, "latin1")
        array = _Array()
        # Check each length before multiplying: a pickle can contain integers of many megabytes.
        plausible = all(type(n) is int and 0 <= n <= self.reader.limit for n in shape)
        if not plausible or len(shape) > MAX_DIMENSIONS or order not in ("C", "F"):
            raise pickle.UnpicklingError("it holds an array of impossible shape")
        if len(data) != math.prod(shape) * dtype.value.itemsize:
            raise pickle.UnpicklingError(f"it holds {len(data)} bytes for an array of shape {shape}")
        array.value = np.frombuffer(data, dtype.value).reshape(shape, order=order)
        return array

    def scalar(self, dtype, data):
        return self.array(data, dtype, (), "C").value.item()

    def load_frame(self):
        # A frame only batches small reads. Without it, every byte goes through the bounded reader.
        self.read(8)

    def load_bytearray8(self):
        [length] = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    def load_dict(self):
        # A dict hashes its keys, and hashing a deeply nested tuple overflows the interpreter's stack.
        raise pickle.UnpicklingError("it holds a dict, not a tuple of pairs (images, labels)")

    def text(self, data, encoding):
        if _WIDE[encoding].search(data):
            raise pickle.UnpicklingError("it holds text that is not latin1")
        self.append(str(data, encoding))

    def load_unicode(self):
        self.text(self.readline()[:-1], "raw-unicode-escape")

    def load_binunicode(self):
        [length] = struct.unpack("<I", self.read(4))
        self.text(self.read(length), "utf-8")

    def load_binunicode8(self):
        [length] = struct.unpack("<Q", self.read(8))
        self.text(self.read(length), "utf-8")

    def pop_tuple(self):
        # Unpacking a string would create an object for each character.
        value = self.stack.pop()
        if type(value) is not tuple:
            raise pickle.UnpicklingError("it has no tuple where the parts of an array should be")
        return value

    def load_reduce(self):
        arguments = self.pop_tuple()
        self.stack[-1] = self.stack[-1](*arguments)

    def load_build(self):
        state = self.pop_tuple()
        target = self.stack[-1]
        if isinstance(target, _Array):
            _version, shape, dtype, fortran, data = state
            target.value = self.array(data, dtype, shape, "F" if fortran else "C").value
        elif isinstance(target, _Dtype):
            target.build(state)
        else:
            raise pickle.UnpicklingError("it sets the state of something other than an array")

    dispatch[pickle.FRAME[0]] = load_frame
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.EMPTY_DICT[0]] = load_dict
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.UNICODE[0]] = load_unicode
    dispatch[pickle.BINUNICODE[0]] = load_binunicode
    dispatch[pickle.BINUNICODE8[0]] = load_binunicode8
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build


def _as_array(value):
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return np.array(value)
    return None


def load_pairs(file, limit):
    """Read a pickled tuple of pairs of arrays.

    Parameters
    ----------
    file : file object
        Binary. It is read to the end, which verifies a compressed file's checksum.
    limit : int
        Maximum number of bytes to read and to create.

    Returns
    -------
    list of pairs of numpy.ndarray
        The arrays may be read-only views of the file's bytes.

    Raises
    ------
    ValueError
        If the pickle is damaged, names anything that arrays do not need, exceeds the limit, or holds
        anything but pairs of arrays. Nothing that it names has been run.
    """
    reader = BoundedReader(file, limit)
    try:
        pairs = _ArrayUnpickler(reader).load()
        while trailing := file.read(1 << 16):
            reader.charge(len(trailing))
    except OSError:
        raise
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # a hostile or damaged pickle may raise anything
        raise ValueError(f"it is not a pickle of arrays ({type(error).__name__})") from error
    if not isinstance(pairs, (tuple, list)):
        raise ValueError(f"it holds a {type(pairs).__name__}, not a tuple of pairs (images, labels)")
    found = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"it holds a {type(pair).__name__} where a pair (images, labels) should be")
        arrays = [_as_array(item) for item in pair]
        if any(array is None for array in arrays):
            kinds = ", ".join(type(item).__name__ for item in pair)
            raise ValueError(f"it holds the pair ({kinds}) where two arrays should be")
        found.append(tuple(arrays))
    return found
