"""Call the kernels with arrays beside memory that cannot be read; test_fenced.py runs this as a process.

All arrays, the kernels' own too, end where such memory begins, and in a second call begin where it ends. They
are filled with other bytes each time, so what depends on elements that nobody has written changes as well.

    python fenced.py
"""

import ctypes
import itertools
import mmap

import llvmlite.binding
import numpy as np
import pytensor
import pytensor.tensor as pt
from numba.core.registry import cpu_target
from numba.core.runtime import _nrt_python, rtsys
from pytensor.gradient import grad, pushforward

from deeplearning_tutorial.nnet import conv2d, pool_2d
from deeplearning_tutorial.nnet.conv import conv_output_length
from deeplearning_tutorial.nnet.dispatch.numba import memory, threads
from deeplearning_tutorial.nnet.fused.linear_log_likelihood import LinearLogLikelihood
from deeplearning_tutorial.nnet.pool import pool_output_length

RNG = np.random.default_rng(14)
new_owned_memory = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.py_object)(
    _nrt_python.c_helpers["meminfo_new_from_pyobject"]
)
protect = ctypes.CDLL(None, use_errno=True).mprotect
placement = {"at_end": True, "byte": 0}
ALIGNMENT = 8


def fenced(size):
    """Map ``size`` bytes beside a page that is not readable; return the mapping, their place and address."""
    page = mmap.PAGESIZE
    room = -(-size // page) * page
    mapped = mmap.mmap(-1, room + 2 * page)
    start = page + (room - size if placement["at_end"] else 0)
    mapped[start : start + size] = bytes([placement["byte"]]) * size
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    for fence in (address, address + page + room):
        if protect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    return mapped, start, address + start


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
def allocate_owned(size, _alignment):
    mapped, _, address = fenced(size)
    return new_owned_memory(address, mapped)


# What a kernel allocates for itself, by address.
scratch = {}


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)
def allocate_scratch(size):
    # Of the room to align elements a kernel leaves one byte at the end, if the address is this much beside.
    mapped, _, address = fenced(-(-size // ALIGNMENT) * ALIGNMENT - 1)
    scratch[address] = mapped
    return address


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def free_scratch(address):
    del scratch[address]


def fence_off(array):
    if array.size == 0:
        return array
    mapped, start, _ = fenced(array.nbytes)
    copy = np.frombuffer(mapped, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    return copy


def check(f, *arrays):
    results = []
    for at_end, byte in ((True, 0xFF), (False, 0x40)):
        placement.update(at_end=at_end, byte=byte)
        results.append([np.asarray(result).tobytes() for result in f(*map(fence_off, arrays))])
    assert results[0] == results[1], [array.shape for array in arrays]


def drawn(shape, density=1):
    values = RNG.normal(size=shape).astype("float32")
    values[RNG.random(shape) >= density] = 0
    return values


def tensors(n_dimensions):
    return [pt.tensor(dtype="float32", shape=(None,) * n) for n in n_dimensions]


def check_convolutions():
    x, w, g = tensors([4, 4, 4])
    for options, pads, groups in (
        ({}, ((0, 0), (0, 0)), 1),
        ({"border_mode": (1, 2), "subsample": (2, 3), "num_groups": 3}, ((1, 1), (2, 2)), 3),
    ):
        y = conv2d(x, w, **options)
        f = pytensor.function([x, w, g], [y, *grad(None, [x, w], known_grads={y: g})], mode="NUMBA")
        for batch, channels, n_filters, lengths, k in (
            (1, 1, 1, (1, 3), (1, 1)),
            (3, 1, 2, (7, 5), (3, 2)),
            (2, 1, 1, (6, 9), (4, 3)),
            (2, 3, 9, (5, 7), (5, 3)),
            (17, 5, 33, (4, 6), (1, 1)),
            (1, 17, 70, (6, 5), (2, 3)),
            (2, 4, 8, (6, 7), (1, 1)),
        ):
            stride = options.get("subsample", (1, 1))
            lengths_out = map(conv_output_length, lengths, k, pads, stride, (1, 1))
            shape = (batch, groups * n_filters, *lengths_out)
            images, filters = drawn((batch, groups * channels, *lengths)), drawn((shape[1], channels, *k))
            for density in (1, 0.2):
                check(f, images, filters, drawn(shape, density))


def check_fused_layers():
    x, w, g = tensors([4, 4, 4])
    y = pool_2d(conv2d(x, w), (2, 2), ignore_border=True)
    f = pytensor.function([x, w, g], [y, *grad((y * g).sum(), [x, w])], mode="NUMBA")
    for batch, channels, n_filters, (rows, cols), (filter_rows, filter_cols) in (
        # Without a row or a column of windows.
        (2, 1, 1, (6, 5), (5, 5)),
        (2, 16, 3, (5, 6), (5, 5)),
        (1, 1, 1, (2, 2), (1, 1)),
        (3, 2, 9, (9, 8), (3, 2)),
        (17, 5, 70, (6, 5), (2, 3)),
        (2, 17, 20, (9, 12), (5, 5)),
        (1, 16, 65, (7, 41), (5, 5)),
    ):
        shape = batch, n_filters, (rows - filter_rows + 1) // 2, (cols - filter_cols + 1) // 2
        images, filters = drawn((batch, channels, rows, cols)), drawn((*shape[1:2], channels, 1, 1))
        check(f, images, filters * np.ones((filter_rows, filter_cols), "float32"), drawn(shape, 0.7))
        check(f, images, drawn((n_filters, channels, filter_rows, filter_cols)), drawn(shape))


def check_poolings():
    x, g, dx = tensors([3, 3, 3])
    ws, stride, pad = pt.lvectors(3)
    for mode in ("max", "average_exc_pad"):
        y = pool_2d(x, ws, True, stride, pad, mode=mode)
        outputs = [y, *grad(None, [x], known_grads={y: g}), pushforward(y, x, dx, use_op_pushforward=True)]
        f = pytensor.function([x, g, dx, ws, stride, pad], outputs, mode="NUMBA")
        for shape, values in itertools.product(
            ((3, 7, 5), (1, 17, 33), (2, 2, 3)),
            (
                ((2, 2), (2, 2), (0, 0)),
                ((3, 2), (1, 1), (2, 1)),
                ((2, 3), (3, 4), (1, 2)),
                ((5, 3), (2, 2), (0, 0)),
                ((40, 50), (9, 11), (30, 20)),
                ((10**12, 10**12), (10**12, 10**12), (10**12 - 1, 10**12 - 1)),
            ),
        ):
            geometry = list(zip(*values, strict=True))
            lengths = [pool_output_length(n, *of, True) for n, of in zip(shape[1:], geometry, strict=True)]
            arrays = drawn(shape), drawn((shape[0], *lengths)), drawn(shape)
            check(f, *arrays, *(np.array(pair) for pair in values))


def check_products():
    a, b, W = tensors([2, 2, 2])
    c, g = tensors([1, 1])
    y = pt.lvector()
    f = pytensor.function([a, b], [pt.dot(a, b), pt.dot(b.T, a.T)], mode="NUMBA")
    for rows, inner, cols in itertools.product((1, 2, 5, 131), (1, 17, 50), (1, 2, 7, 13, 33)):
        check(f, drawn((rows, inner)), drawn((inner, cols)))
    f = pytensor.function([a, W, c, y, g], LinearLogLikelihood()(a, W, c, y, g), mode="NUMBA")
    for batch, features, classes in ((1, 1, 1), (33, 17, 3), (130, 50, 14)):
        labels = RNG.integers(-classes, classes, batch)
        check(f, drawn((batch, features), 0.3), drawn((features, classes)), drawn(classes), labels, drawn(1))


if __name__ == "__main__":
    # Python allocates, so the kernels have to stay on the thread that calls them.
    threads._BUSY.value = 1
    # Other kernels than those that are cached: elements may lie at any multiple of 8 bytes.
    memory._ALIGNMENT = ALIGNMENT
    pytensor.config.numba__cache = False
    rtsys.initialize(cpu_target.target_context)
    for name, function in {
        "MemInfo_alloc_aligned": allocate_owned,
        "MemInfo_alloc_safe_aligned": allocate_owned,
        "Allocate": allocate_scratch,
        "Free": free_scratch,
    }.items():
        llvmlite.binding.add_symbol(f"NRT_{name}", ctypes.cast(function, ctypes.c_void_p).value)
    check_convolutions()
    check_fused_layers()
    check_poolings()
    check_products()
