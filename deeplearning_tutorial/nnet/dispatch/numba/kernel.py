"""How kernels are compiled, run on Numba's threads, and made known to PyTensor.

A kernel does one block of the work. It is compiled once for each data type, into a library of its own, and
called through a pointer: Numba would otherwise compile it anew within each function that calls it, directly
or not. A call returns a status, and frees what the kernel allocated: no exception passes a thread.
"""

import ctypes
import hashlib
import inspect
import os
import sys
from functools import cache, partial
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import pytensor
from llvmlite import ir
from numba import carray, cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from pytensor.link.numba.cache import compile_numba_function_src
from pytensor.link.numba.dispatch.basic import numba_njit, register_funcify_default_op_cache_key

from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import arrays_in
from deeplearning_tutorial.nnet.dispatch.numba.memory import (
    NO_MEMORY,
    as_contiguous,
    empty,
    free_listed,
    is_missing,
    missing,
    result,
)

# Only the fused multiply-add. PyTensor's own choice also lets sums be reordered, which undoes steps that rely
# on rounding, such as the exact reduction in the hyperbolic tangent.
kernel_njit = partial(numba_njit, fastmath={"contract"})

# For functions that hold most of a kernel, which LLVM would optimise by themselves and again in each caller.
kernel_inline = partial(kernel_njit, inline="always")


def sources_of_kernels(nnet):
    """List the files of the folder ``nnet`` that can change a kernel: those of the Ops and of the kernels."""
    return sorted([*nnet.glob("*.py"), *nnet.glob("fused/**/*.py"), *nnet.glob("dispatch/numba/**/*.py")])


def digest_of_sources(nnet):
    """Return a number that changes with the kernels, and with the Ops' functions that they compile."""
    digest = hashlib.sha256()
    for path in sources_of_kernels(nnet):
        digest.update(f"{path.relative_to(nnet).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:6], "big")


# PyTensor's and Numba's caches see neither an edited kernel nor that one calls another, by a name that the
# other has no longer: what they kept of other sources must never be loaded.
VERSION = digest_of_sources(Path(__file__).parents[2])

_INDEX = ir.IntType(64)
_KERNEL_ARGUMENTS = [types.int64] * 4

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
    """Call the kernel at an address; free what it allocated; return 1 if an exception ended it, else 0."""

    def codegen(context, builder, signature, arguments):
        address, *given = arguments
        allocated = cgutils.alloca_once(builder, cgutils.voidptr_t)
        builder.store(cgutils.voidptr_t(None), allocated)
        given.append(builder.ptrtoint(allocated, _INDEX))
        function_type = context.call_conv.get_function_type(types.none, _KERNEL_ARGUMENTS)
        function = builder.inttoptr(address, function_type.as_pointer())
        status, _ = context.call_conv.call_function(builder, function, types.none, _KERNEL_ARGUMENTS, given)
        free_listed(context, builder, allocated)
        return builder.zext(status.is_error, _INDEX)

    return types.int64(*[types.int64] * 4), codegen


@intrinsic
def _allocate(typingctx, size):
    """Return the address of ``size`` bytes, or 0 where there is no memory."""

    def codegen(context, builder, signature, arguments):
        return builder.ptrtoint(context.nrt.allocate_unchecked(builder, arguments[0]), _INDEX)

    return types.int64(types.int64), codegen


@intrinsic
def _free(typingctx, address):
    def codegen(context, builder, signature, arguments):
        context.nrt.free(builder, builder.inttoptr(arguments[0], cgutils.voidptr_t))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def _integers(typingctx, address):
    """Return the address of integers as a pointer, for `carray`."""
    pointer = types.CPointer(types.int64)

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], _INDEX.as_pointer())

    return pointer(types.int64), codegen


@intrinsic
def _number_of_threads(typingctx):
    def codegen(context, builder, signature, arguments):
        function = ir.FunctionType(_INDEX, [])
        return builder.call(_external(builder, partial(ir.Function, ftype=function), "get_num_threads"), [])

    return types.int64(), codegen


@intrinsic
def _let_other_callers_run(typingctx):
    """Let go of Python's lock for a moment, if the caller holds it.

    PyTensor's functions keep arguments and results in one place for all callers. Here neither is in use; in
    the next line of Python, where other threads that wait for the lock would get it, they are.
    """

    def codegen(context, builder, signature, arguments):
        python = context.get_python_api(builder)
        check = partial(ir.Function, ftype=ir.FunctionType(ir.IntType(32), []))
        held = builder.call(_external(builder, check, "PyGILState_Check"), [])
        with builder.if_then(builder.icmp_signed("!=", held, held.type(0))):
            python.restore_thread(python.save_thread())
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _share_among_threads(typingctx, function, threads, job):
    """Let each of Numba's threads call the function at an address with its number and the job.

    ``numba.prange`` would let go of Python's lock meanwhile.
    """

    def codegen(context, builder, signature, arguments):
        function, threads, job = arguments
        pointer = cgutils.voidptr_t
        # An array of pointers, one for each thread, whose distance to the job is the thread's number.
        first, length, step = (
            cgutils.alloca_once_value(builder, value) for value in (job, threads, _INDEX(1))
        )
        parallel_for = _external(
            builder,
            partial(ir.Function, ftype=ir.FunctionType(ir.VoidType(), [pointer] * 5 + [_INDEX] * 3)),
            "numba_parallel_for",
        )
        builder.call(
            parallel_for,
            [
                builder.inttoptr(function, pointer),
                *(builder.bitcast(place, pointer) for place in (first, length, step)),
                builder.inttoptr(job, pointer),
                _INDEX(0),
                _INDEX(1),
                threads,
            ],
        )
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


# A job in memory: these, then a flag for each block that is taken.
_JOB_KERNEL, _JOB_BLOCKS, _JOB_FRAME, _JOB_THREADS, _JOB_FAILED, _JOB_TAKEN = range(6)


@kernel_njit
def _run_from(job, thread):
    """Call the kernel for the blocks of a thread's share, and then for the others, that nobody has taken."""
    values = carray(_integers(job), _JOB_TAKEN)
    kernel, blocks, frame = values[_JOB_KERNEL], values[_JOB_BLOCKS], values[_JOB_FRAME]
    first = thread * blocks // values[_JOB_THREADS]
    for i in range(first, first + blocks):
        block = i if i < blocks else i - blocks
        if _take_block(job + 8 * _JOB_TAKEN, block) and _call(kernel, block, blocks, frame):
            values[_JOB_FAILED] = 1


def _run_share(starts, lengths, steps, job):
    """Do a share of a job, as Numba's threads call it."""
    first = carray(starts, 1)[0] - job
    for thread in range(first, first + carray(lengths, 1)[0]):
        _run_from(job, thread)


@kernel_njit
def _run(share, kernel, blocks, frame):
    """Call the kernel for every block; return 1 if one failed, else 0.

    Each thread has its share, whose data may still be in its cache. When done it helps the others: threads
    start late, and cores are shared with other programs, or differ.

    Not every threading layer of Numba survives to be used by two threads of Python at once, or in a forked
    child. There the blocks run one after another on the caller's thread. No block may depend on another one,
    so the results are the same.
    """
    job = _allocate(8 * (_JOB_TAKEN + blocks)) if blocks > 1 else 0
    failed = 0
    if job and _take_threads():
        values = carray(_integers(job), _JOB_TAKEN + blocks)
        values[:] = 0
        threads = min(blocks, _number_of_threads())
        values[_JOB_KERNEL], values[_JOB_BLOCKS], values[_JOB_FRAME] = kernel, blocks, frame
        values[_JOB_THREADS] = threads
        _share_among_threads(share, threads, job)
        failed = values[_JOB_FAILED]
        _release_threads()
    else:
        for block in range(blocks):
            failed |= _call(kernel, block, blocks, frame)
    if job:
        _free(job)
        _let_other_callers_run()
    return failed


def _without_owners(context, builder, numba_type, value):
    """Return a value whose arrays have no owner: nothing is counted when they are sliced or passed on."""
    if isinstance(numba_type, types.BaseTuple):
        fields = zip(numba_type, cgutils.unpack_tuple(builder, value), strict=True)
        return context.make_tuple(
            builder, numba_type, [_without_owners(context, builder, *field) for field in fields]
        )
    if not isinstance(numba_type, types.Array):
        return value
    array = context.make_array(numba_type)(context, builder, value)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    array.parent = cgutils.get_null_value(array.parent.type)
    return array._getvalue()


def _cast(context, builder, value, from_type, to_type):
    """Cast a value, or each field of a tuple; Numba itself does not cast named tuples."""
    if not isinstance(to_type, types.BaseTuple):
        return context.cast(builder, value, from_type, to_type)
    fields = zip(cgutils.unpack_tuple(builder, value), from_type, to_type, strict=True)
    return context.make_tuple(builder, to_type, [_cast(context, builder, *field) for field in fields])


def _any_missing(context, builder, numba_type, value):
    """Emit whether an array, or one in a tuple, has elements and no memory for them."""
    if isinstance(numba_type, types.Array):
        return is_missing(context, builder, numba_type, value)
    found = ir.IntType(1)(0)
    if isinstance(numba_type, types.BaseTuple):
        for field_type, field in zip(numba_type, cgutils.unpack_tuple(builder, value), strict=True):
            found = builder.or_(found, _any_missing(context, builder, field_type, field))
    return found


def tuple_type(named_tuple, *fields):
    """Return the Numba type of a named tuple whose fields have these types."""
    return types.BaseTuple.from_types(fields, named_tuple)


@kernel_inline
def check(failed):
    """Raise MemoryError if a kernel failed, or a result is missing.

    Inline, for what the caller holds is then freed.
    """
    if failed:
        raise MemoryError(NO_MEMORY)


@kernel_njit
def _is_in_order(array):
    """Tell whether the elements lie in C order, one after the other."""
    step = array.itemsize
    for axis in range(array.ndim - 1, -1, -1):
        if array.shape[axis] != 1 and array.strides[axis] != step:
            return False
        step *= array.shape[axis]
    return True


@kernel_njit
def contiguous(memory, array):
    """Return an array with its elements in C order: the given one, if it is, else a copy for the kernel."""
    if _is_in_order(array):
        return as_contiguous(array)
    copy = empty(memory, array.shape, array)
    copy[...] = array
    return copy


def in_order(array):
    """Return an array with its elements in C order: the given one, if it is, else a copy, a `result`."""


@overload(in_order)
def _in_order(array):
    if array.layout == "C":
        return lambda array: array

    def copied(array):
        if _is_in_order(array):
            return as_contiguous(array)
        copy = result(array.shape, array)
        if not missing(copy):
            copy[...] = array
        return copy

    return copied


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
    """Make a kernel of ``body(memory, block, blocks, *arguments)``.

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
        For jitted code: ``kernel(blocks, *arguments)`` runs all blocks. It tells, for `check`, whether one of
        them failed, or an argument is missing. In each process its attribute ``load(dtype)`` must be called
        before.
    """

    def decorator(body):
        loaded = {}

        def name_of(float_type):
            described = "_".join(map(str, (*parameters, float_type, VERSION)))
            return f"{body.__module__}.{body.__name__}_{described}"

        def load(dtype):
            _load_share()
            for kernel in uses:
                kernel.load(dtype)
            float_type = numba.from_dtype(np.dtype(dtype))
            name = name_of(float_type)
            if name not in loaded:
                # Numba does not inline what takes ``*arguments``.
                compiled = kernel_njit if inspect.getfullargspec(body).varargs else kernel_inline
                loaded[name] = _compile(compiled(body), name, arguments(float_type))
                llvmlite.binding.add_symbol(name, _address_of(loaded[name]))

        @intrinsic
        def run(typingctx, blocks, *given):
            elements = [array.dtype for array in arrays_in(given)]
            float_type = next(element for element in elements if element in types.real_domain)
            name, frame_type = name_of(float_type), types.Tuple(arguments(float_type))

            def codegen(context, builder, signature, values):
                blocks, given = values
                given = _cast(context, builder, given, signature.args[1], frame_type)
                frame = cgutils.alloca_once(builder, context.get_data_type(frame_type))
                context.pack_value(builder, frame_type, given, frame)
                any_missing = _any_missing(context, builder, frame_type, given)
                symbol = partial(ir.GlobalVariable, typ=_INDEX)
                share, kernel = (_external(builder, symbol, called) for called in (_SHARE, name))
                share, kernel, frame = (builder.ptrtoint(place, _INDEX) for place in (share, kernel, frame))
                blocks = builder.select(any_missing, _INDEX(0), blocks)
                run_type = typingctx.resolve_value_type(_run)
                run_signature = run_type.get_call_type(typingctx, [types.int64] * 4, {})
                run_blocks = context.get_function(run_type, run_signature)
                failed = run_blocks(builder, [share, kernel, blocks, frame])
                return builder.or_(any_missing, builder.icmp_signed("!=", failed, _INDEX(0)))

            return types.boolean(types.int64, types.StarArgTuple(given)), codegen

        run.load = load
        return run

    return decorator


def _compile(body, name, arguments):
    """Compile ``body`` as a function of block, number of blocks and the addresses of arguments and memory."""
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
        "def kernel(block, blocks, frame, memory):\n"
        "    given = arguments_at(frame)\n"
        f"    body(memory, block, blocks, {given})\n",
        "kernel",
        {"__name__": __name__, "body": body, "arguments_at": arguments_at},
        cache_key=name,
    )
    signature = types.none(*_KERNEL_ARGUMENTS)
    return numba_njit(signature, fastmath=False, cache=pytensor.config.numba__cache)(kernel)


def _address_of(compiled):
    """Return the address of a function compiled for one signature, in Numba's own calling convention."""
    [overload] = compiled.overloads.values()
    return overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name)


_SHARE = f"{__name__}.run_share_{VERSION}"


@cache
def _load_share():
    """Compile `_run_share`, once in a process, and return what must be kept alive."""
    integers = types.CPointer(types.int64)
    share = compile_numba_function_src(
        "def share(starts, lengths, steps, job):\n    run_share(starts, lengths, steps, job)\n",
        "share",
        {"__name__": __name__, "run_share": kernel_inline(_run_share)},
        cache_key=_SHARE,
    )
    signature = types.void(integers, integers, integers, types.int64)
    compiled = cfunc(signature, cache=pytensor.config.numba__cache)(share)
    llvmlite.binding.add_symbol(_SHARE, compiled.address)
    return compiled


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
