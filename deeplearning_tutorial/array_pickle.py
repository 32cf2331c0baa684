"""Read pickles that hold NumPy arrays, and nothing that a pickle could run.

A pickle is a program: it names functions and calls them. Here each name that an honest pickle of arrays
uses stands for a method of the reader itself, which checks what it is given; any other name is refused.
No function of NumPy is ever called with arguments from the file.
"""

import math
import pickle
import re
import struct

import numpy as np

from deeplearning_tutorial.bounded import PIECE, read_up_to

# An opcode of one byte can make an object of 64: so many take less memory than the 60,000 images of MNIST.
# Arrays need a few hundred reads, labels as a list of integers three for each of 70,000.
MAX_READS = 500_000

_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
    SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT
    GLOBAL STACK_GLOBAL REDUCE BUILD
""".split()
# Text is ASCII or bytes spelled as latin1; a single character beyond would make all of them four bytes wide.
_WIDE = {"utf-8": re.compile(rb"[\xc4-\xff]"), "raw-unicode-escape": re.compile(rb"\\u(?!00)|\\U")}
_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"}


class BoundedReader:
    """The reading half of a file, refusing to yield more than ``limit`` bytes."""

    def __init__(self, file, limit):
        self.file = file
        self.limit = self.left = limit
        self.reads = 0

    def take(self, n):
        """Charge ``n`` bytes before they are made."""
        self.left -= n
        if self.left < 0:
            raise pickle.UnpicklingError(f"it asks for more than {self.limit} bytes")

    def read(self, n):
        """Read exactly ``n`` bytes."""
        self.reads += 1
        if self.reads > MAX_READS:
            raise pickle.UnpicklingError(f"it has more than {MAX_READS} parts")
        self.take(n)
        data = self.file.read(n) if n <= PIECE else read_up_to(self.file, n)
        if len(data) < n:
            raise EOFError("it ends too early")
        return data

    def readline(self):
        """Read up to and with the next newline."""
        line = self.file.readline(self.left + 1)
        self.take(len(line))
        return line


class _Dtype:
    """What stands for ``numpy.dtype`` while a pickle is read."""

    def __init__(self, code):
        if not isinstance(code, str) or code not in _DTYPES:
            raise pickle.UnpicklingError("it holds an array of something else than plain numbers")
        self.value = np.dtype(code)

    def build(self, state):
        _version, order, *_rest = state
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("it holds a dtype of unknown byte order")
        self.value = self.value.newbyteorder(order)


class _Array:
    """What stands for an array while a pickle is read: made empty, filled by its BUILD."""

    value = None


class _ArrayUnpickler(pickle._Unpickler):
    # The C unpickler reserves memory for whatever length or memo index the file claims; the Python one asks
    # its reader first, and has its opcodes in a table from which the ones that make objects can be left out.
    dispatch = {getattr(pickle, op)[0]: pickle._Unpickler.dispatch[getattr(pickle, op)[0]] for op in _OPCODES}

    def __init__(self, reader):
        super().__init__(reader, encoding="latin1")  # Python 2 pickled bytes as str
        self.reader = reader
        multiarray = {"_reconstruct": self.reconstruct, "scalar": self.scalar}
        numeric = {"_frombuffer": self.array}
        self.admitted = {
            "numpy": {"ndarray": "ndarray", "dtype": self.dtype},
            "numpy.core.multiarray": multiarray,
            "numpy._core.multiarray": multiarray,
            "numpy.core.numeric": numeric,
            "numpy._core.numeric": numeric,
            "_codecs": {"encode": self.encode},
        }

    def find_class(self, module, name):
        try:
            return self.admitted[module][name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module[:60]}.{name[:60]}, which no array needs; do not trust it"
            ) from None

    def dtype(self, code, align=False, copy=False):
        return _Dtype(code)

    def encode(self, text, encoding):
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("it encodes something else than bytes spelled as latin1")
        self.reader.take(len(text))
        return text.encode("latin1")

    def reconstruct(self, kind, shape, code):
        if kind != "ndarray":
            raise pickle.UnpicklingError("it rebuilds something else than an ndarray")
        return _Array()

    def array(self, data, dtype, shape, order):
        if isinstance(data, str):
            data = self.encode(data, "latin1")
        array = _Array()
        # Lengths are bounded before they are multiplied: a pickle can spell integers of many megabytes.
        plausible = len(shape) <= 4 and all(type(n) is int and 0 <= n <= self.reader.limit for n in shape)
        if not plausible or order not in ("C", "F"):
            raise pickle.UnpicklingError("it holds an array of impossible shape")
        if len(data) != math.prod(shape) * dtype.value.itemsize:
            raise pickle.UnpicklingError(f"it holds {len(data)} bytes for an array of shape {shape}")
        array.value = np.frombuffer(data, dtype.value).reshape(shape, order=order)
        return array

    def scalar(self, dtype, data):
        return self.array(data, dtype, (), "C").value.item()

    def load_frame(self):
        # Frames only gather small reads; skipping their length leaves every byte to the bounded reader.
        self.read(8)

    def load_bytearray8(self):
        [length] = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    def load_dict(self):
        # Its keys would be hashed, and a deeply nested one overflows the stack of the interpreter.
        raise pickle.UnpicklingError("it holds a dict, not a tuple of pairs (images, labels)")

    def text(self, data, encoding):
        if _WIDE[encoding].search(data):
            raise pickle.UnpicklingError("it holds a text that is not latin1")
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
        # Of a text unpacking would make an object for each character.
        value = self.stack.pop()
        if type(value) is not tuple:
            raise pickle.UnpicklingError("it has no tuple where an array's parts should be")
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
            raise pickle.UnpicklingError("it sets the state of something else than an array")

    dispatch[pickle.FRAME[0]] = load_frame
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.EMPTY_DICT[0]] = load_dict
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.UNICODE[0]] = load_unicode
    dispatch[pickle.BINUNICODE[0]] = load_binunicode
    dispatch[pickle.BINUNICODE8[0]] = load_binunicode8
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build


def _plain(value):
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
        Binary; read to its end, so that a compressed file's checksum is tested.
    limit : int
        Bytes that may be read and made, before anything more is refused.

    Returns
    -------
    list of pairs of numpy.ndarray
        The arrays may be read-only views of the file's bytes.

    Raises
    ------
    ValueError
        If the pickle is damaged, asks for anything but arrays, passes the limit, or holds anything else
        than pairs of arrays. Nothing the pickle names has then been run.
    """
    reader = BoundedReader(file, limit)
    try:
        pairs = _ArrayUnpickler(reader).load()
        while rest := file.read(1 << 16):
            reader.take(len(rest))
    except OSError:
        raise
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # a hostile or broken pickle can fail in every way there is
        raise ValueError(f"it is not a pickle of arrays ({type(error).__name__})") from error
    if not isinstance(pairs, (tuple, list)):
        raise ValueError(f"it holds a {type(pairs).__name__}, not a tuple of pairs (images, labels)")
    plain = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"it holds a {type(pair).__name__} where a pair (images, labels) should be")
        arrays = [_plain(item) for item in pair]
        if any(array is None for array in arrays):
            kinds = ", ".join(type(item).__name__ for item in pair)
            raise ValueError(f"it holds the pair ({kinds}) where two arrays should be")
        plain.append(tuple(arrays))
    return plain
