"""How kernels are compiled, run on Numba's threads, and made known to PyTensor.

A kernel does one block of the work. It is compiled once for each data type, into a library of its own, and
called through a pointer: Numba would otherwise compile it anew within each function that calls it, directly
or not.
"""

import ctypes
import hashlib
import inspect
import os
import sys
from functools import partial
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import pytensor
from llvmlite import ir
from numba import cfunc, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from pytensor.link.numba.cache import compile_numba_function_src
from pytensor.link.numba.dispatch.basic import numba_njit, register_funcify_default_op_cache_key

# Only the fused multiply-add. PyTensor's own choice also lets sums be reordered, which undoes steps that rely
# on rounding, such as the exact reduction in the hyperbolic tangent.
kernel_njit = partial(numba_njit, fastmath={"contract"})

# For functions that hold most of a kernel, which LLVM would optimise by themselves and again in each caller.
kernel_inline = partial(kernel_njit, inline="always")


def _digest_of_sources():
    """Return a number that changes with the kernels, and with the Ops' functions that they compile."""
    nnet = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted([*nnet.glob("*.py"), *nnet.glob("dispatch/numba/*.py")]):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:6], "big")


# PyTensor's and Numba's caches see neither an edited kernel nor that one calls another, by a name that the
# other has no longer: what they kept of other sources must never be loaded.
VERSION = _digest_of_sources()

_INDEX = ir.IntType(64)
_KERNEL = ir.FunctionType(ir.VoidType(), [_INDEX] * 3)

# 1 while a kernel uses Numba's threads, and for good in the forked child of a process that has started them.
# Compiled code, cached or not, finds it by its name.
_BUSY = ctypes.c_int64(0)
_BUSY_NAME = "deeplearning_tutorial.threads_busy"
llvmlite.binding.add_symbol(_BUSY_NAME, ctypes.addressof(_BUSY))
_threads_started = False


def _leave_threads_to_parent():
    _BUSY.value = int(_threads_started)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_threads_to_parent)


def _keep_freed_memory():
    """Let glibc's malloc keep what is freed, unless the user's environment says how it should work.

    A training step frees its arrays and the next one allocates as many. Given back to the system in between,
    they cost a page fault for every 4 KiB: a tenth of LeNet's step, most of a pooling's time on large maps.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)  # else all above 32 MiB is mapped by itself, and given back at once
        mallopt(m_trim_threshold, 1 << 30)


def _external(builder, kind, name):
    return builder.module.globals.get(name) or kind(builder.module, name=name)


def _busy_flag(builder):
    return _external(builder, partial(ir.GlobalVariable, typ=_INDEX), _BUSY_NAME)


def _exchange(builder, flag):
    """Set a flag from 0 to 1; tell whether it was 0."""
    exchanged = builder.cmpxchg(flag, _INDEX(0), _INDEX(1), "acq_rel", "acquire")
    return builder.extract_value(exchanged, 1)


@intrinsic
def _take_threads(typingctx):
    """Return True, and keep others from the threads, if nobody uses them."""

    def codegen(context, builder, signature, arguments):
        return _exchange(builder, _busy_flag(builder))

    return types.boolean(), codegen


@intrinsic
def _release_threads(typingctx):
    def codegen(context, builder, signature, arguments):
        builder.store_atomic(_INDEX(0), _busy_flag(builder), "release", 8)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _take_block(typingctx, taken, block):
    """Return True, and keep others from a block, if nobody has it; ``taken`` is where the flags are."""

    def codegen(context, builder, signature, arguments):
        taken, block = arguments
        flag = builder.gep(builder.inttoptr(taken, _INDEX.as_pointer()), [block])
        # Reading first: threads that only read do not slow each other.
        free = builder.icmp_signed("==", builder.load_atomic(flag, "monotonic", 8), _INDEX(0))
        with builder.if_else(free) as (then, otherwise):
            with then:
                exchanged = _exchange(builder, flag)
                after_exchange = builder.block
            with otherwise:
                after_reading = builder.block
        result = builder.phi(free.type)
        result.add_incoming(exchanged, after_exchange)
        result.add_incoming(free.type(0), after_reading)
        return result

    return types.boolean(types.int64, types.int64), codegen


@intrinsic
def _call(typingctx, kernel, block, blocks, frame):
    """Call the kernel at an address."""

    def codegen(context, builder, signature, arguments):
        address, *rest = arguments
        builder.call(builder.inttoptr(address, _KERNEL.as_pointer()), rest)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@kernel_njit
def _run_from(kernel, first, blocks, frame, taken):
    """Call the kernel for ``first`` and all blocks after it, then those before, that nobody has taken."""
    if _take_block(taken, first):
        _call(kernel, first, blocks, frame)
        for i in range(first + 1, first + blocks):
            block = i if i < blocks else i - blocks
            if _take_block(taken, block):
                _call(kernel, block, blocks, frame)


@kernel_njit(parallel=True)
def _run_on_threads(kernel, blocks, frame, taken):
    for block in prange(blocks):
        _run_from(kernel, np.int64(block), blocks, frame, taken)


@kernel_njit
def _run(kernel, blocks, frame):
    """Call the kernel for every block.

    Each thread has its share, whose data may still be in its cache. When done it helps the others: threads
    start late, and cores are shared with other programs, or differ.

    Not every threading layer of Numba survives to be used by two threads of Python at once, or in a forked
    child. There the blocks run one after another on the caller's thread. No block may depend on another one,
    so the results are the same.
    """
    if blocks > 1 and _take_threads():
        taken = np.zeros(blocks, np.int64)
        _run_on_threads(kernel, blocks, frame, taken.ctypes.data)
        keep(taken)
        _release_threads()
    else:
        for block in range(blocks):
            _call(kernel, block, blocks, frame)


def _without_owners(context, builder, tuple_type, values):
    """Return a tuple whose arrays have no owner, so that nothing is counted when they are sliced or passed.

    Counting is atomic. In an inner loop it cost a third of the time, more where threads share the count.
    """
    elements = []
    for kind, value in zip(tuple_type, cgutils.unpack_tuple(builder, values), strict=True):
        if isinstance(kind, types.Array):
            array = context.make_array(kind)(context, builder, value)
            array.meminfo = cgutils.get_null_value(array.meminfo.type)
            array.parent = cgutils.get_null_value(array.parent.type)
            value = array._getvalue()
        elements.append(value)
    return context.make_tuple(builder, tuple_type, elements)


@intrinsic
def unowned(typingctx, arrays):
    """Return a tuple of arrays without owners, valid until `keep` is called with the same tuple."""

    def codegen(context, builder, signature, arguments):
        return _without_owners(context, builder, arrays, arguments[0])

    return arrays(arrays), codegen


@intrinsic
def keep(typingctx, arrays):
    """Do nothing, but be a use of an array or a tuple of them, before which Numba does not free them."""

    def codegen(context, builder, signature, arguments):
        return context.get_dummy_value()

    return types.void(arrays), codegen


@kernel_njit
def reported(pair):
    """Return two ints for an exception to hold, of a type that does not say their values.

    Numba makes a function that turns an exception's arguments into Python's, and names it by their layout in
    memory alone. One made for ints whose values their type says would return these for every exception of the
    process with arguments of that layout.
    """
    return np.int64(pair[0]), np.int64(pair[1])


@kernel_njit
def block_of(block, blocks, items):
    """First item of a block and of the next."""
    return block * items // blocks, (block + 1) * items // blocks


@kernel_njit
def all_finite(values):
    """Tell whether none is infinite or NaN, which times zero would not be zero."""
    finite = True
    # Numba does not make vectors of ``for value in values``.
    for i in range(len(values)):
        finite &= np.isfinite(values[i])
    return finite


def parallel(arguments, *parameters, uses=()):
    """Make a kernel of ``body(block, blocks, *arguments)``.

    Parameters
    ----------
    arguments : callable
        Takes the Numba type of the first array of floats; returns the Numba types of all arguments.
    *parameters
        What else the body's code depends on, where a factory makes several.
    uses : iterable of kernels
        Those that the body calls. Only a kernel that is called with a single block may have any.

    Returns
    -------
    callable
        For jitted code: ``kernel(blocks, *arguments)`` runs all blocks. In each process its attribute
        ``load(dtype)`` must be called before.
    """

    def decorator(body):
        loaded = {}

        def name_of(float_type):
            described = "_".join(map(str, (*parameters, float_type, VERSION)))
            return f"{body.__module__}.{body.__name__}_{described}"

        def load(dtype):
            for kernel in uses:
                kernel.load(dtype)
            float_type = numba.from_dtype(np.dtype(dtype))
            name = name_of(float_type)
            if name not in loaded:
                # Numba does not inline what takes ``*arguments``.
                compiled = kernel_njit if inspect.getfullargspec(body).varargs else kernel_inline
                loaded[name] = _compile(compiled(body), name, arguments(float_type))
                llvmlite.binding.add_symbol(name, loaded[name].address)

        @intrinsic
        def run(typingctx, blocks, *given):
            arrays = [argument for argument in given if isinstance(argument, types.Array)]
            float_type = next(array.dtype for array in arrays if array.dtype in types.real_domain)
            name, frame_type = name_of(float_type), types.Tuple(arguments(float_type))

            def codegen(context, builder, signature, values):
                blocks, given = values
                given = context.cast(builder, given, signature.args[1], frame_type)
                frame = cgutils.alloca_once(builder, context.get_data_type(frame_type))
                context.pack_value(builder, frame_type, given, frame)
                kernel = _external(builder, partial(ir.Function, ftype=_KERNEL), name)
                addresses = [builder.ptrtoint(pointer, _INDEX) for pointer in (kernel, frame)]
                run_type = typingctx.resolve_value_type(_run)
                run_signature = run_type.get_call_type(typingctx, [types.int64] * 3, {})
                context.get_function(run_type, run_signature)(builder, [addresses[0], blocks, addresses[1]])
                return context.get_dummy_value()

            return types.void(types.int64, types.StarArgTuple(given)), codegen

        run.load = load
        return run

    return decorator


def _compile(body, name, arguments):
    """Compile ``body`` as a C function of block, number of blocks and the address of the arguments."""
    frame_type = types.Tuple(arguments)

    @intrinsic
    def arguments_at(typingctx, address):
        def codegen(context, builder, signature, values):
            pointer = builder.inttoptr(values[0], context.get_data_type(frame_type).as_pointer())
            frame = context.unpack_value(builder, frame_type, pointer)
            return _without_owners(context, builder, frame_type, frame)

        return frame_type(types.int64), codegen

    given = ", ".join(f"given[{i}]" for i in range(len(arguments)))
    kernel = compile_numba_function_src(
        "def kernel(block, blocks, frame):\n"
        "    given = arguments_at(frame)\n"
        f"    body(block, blocks, {given})\n",
        "kernel",
        {"__name__": __name__, "body": body, "arguments_at": arguments_at},
        cache_key=name,
    )
    return cfunc(types.void(*[types.int64] * 3), cache=pytensor.config.numba__cache)(kernel)


def register_kernel(op_class):
    """Register ``make_kernel(op, node) -> function`` for an Op."""

    def decorator(make_kernel):
        @register_funcify_default_op_cache_key(op_class)
        def numba_funcify(op, node, **kwargs):
            # Numba starts its threads when it loads a parallel function from its cache, but not when it loads
            # one that was compiled around a cached parallel function; calling that would crash.
            global _threads_started
            numba.get_num_threads()
            if not _threads_started:
                _keep_freed_memory()
            _threads_started = True
            return make_kernel(op, node, **kwargs), VERSION

        return make_kernel

    return decorator
