"""How the blocks of a kernel run on Numba's threads.

A call of a kernel returns a status, and frees what the kernel allocated: no exception passes a thread.
"""

import ctypes
import os
from functools import partial

import llvmlite.binding
import numba
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from deeplearning_tutorial.nnet.dispatch.numba import machine_code
from deeplearning_tutorial.nnet.dispatch.numba.jit import exact_njit, kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import INDEX
from deeplearning_tutorial.nnet.dispatch.numba.memory import free_listed
from deeplearning_tutorial.nnet.dispatch.numba.versions import version_of

KERNEL_ARGUMENTS = [types.int64] * 4

# 1 while a kernel uses Numba's threads, and always in the forked child of a process that has started them.
# Compiled code, cached or not, finds it by its name.
_BUSY = ctypes.c_int64(0)
_BUSY_NAME = "deeplearning_tutorial.threads_busy"
llvmlite.binding.add_symbol(_BUSY_NAME, ctypes.addressof(_BUSY))
_threads_started = False


def _leave_threads_to_parent():
    _BUSY.value = int(_threads_started)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_threads_to_parent)


def start_threads():
    """Start Numba's threads, unless they have been started.

    Numba starts them when it loads a parallel function from its cache, but not when it loads one that was
    compiled around a cached parallel function; calling that would crash.
    """
    global _threads_started
    numba.get_num_threads()
    _threads_started = True


def external(builder, kind, name):
    """Return what a module declares under a name, after declaring it if need be; ``kind`` makes it."""
    return builder.module.globals.get(name) or kind(builder.module, name=name)


def _busy_flag(builder):
    return external(builder, partial(ir.GlobalVariable, typ=INDEX), _BUSY_NAME)


def _exchange(builder, flag):
    """Set a flag to 1 if it is 0; return whether it was."""
    exchanged = builder.cmpxchg(flag, INDEX(0), INDEX(1), "acq_rel", "acquire")
    return builder.extract_value(exchanged, 1)


@intrinsic
def _acquire_threads(typingctx):
    """Acquire Numba's threads if no other caller uses them; return whether this succeeded."""

    def codegen(context, builder, signature, arguments):
        return _exchange(builder, _busy_flag(builder))

    return types.boolean(), codegen


@intrinsic
def _release_threads(typingctx):
    def codegen(context, builder, signature, arguments):
        builder.store_atomic(INDEX(0), _busy_flag(builder), "release", 8)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _claim_block(typingctx, claimed, block):
    """Claim a block if no other thread has; return whether this succeeded. The flags begin at ``claimed``."""

    def codegen(context, builder, signature, arguments):
        claimed, block = arguments
        flag = builder.gep(builder.inttoptr(claimed, INDEX.as_pointer()), [block])
        # Reading first: threads that only read do not slow each other.
        free = builder.icmp_signed("==", builder.load_atomic(flag, "monotonic", 8), INDEX(0))
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
        address, *passed = arguments
        allocated = cgutils.alloca_once(builder, cgutils.voidptr_t)
        builder.store(cgutils.voidptr_t(None), allocated)
        passed.append(builder.ptrtoint(allocated, INDEX))
        function_type = context.call_conv.get_function_type(types.none, KERNEL_ARGUMENTS)
        function = builder.inttoptr(address, function_type.as_pointer())
        status, _ = context.call_conv.call_function(builder, function, types.none, KERNEL_ARGUMENTS, passed)
        free_listed(context, builder, allocated)
        return builder.zext(status.is_error, INDEX)

    return types.int64(*[types.int64] * 4), codegen


@intrinsic
def _allocate(typingctx, size):
    """Return the address of ``size`` bytes, or 0 where there is no memory."""

    def codegen(context, builder, signature, arguments):
        return builder.ptrtoint(context.nrt.allocate_unchecked(builder, arguments[0]), INDEX)

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
        return builder.inttoptr(arguments[0], INDEX.as_pointer())

    return pointer(types.int64), codegen


@intrinsic
def _number_of_threads(typingctx):
    def codegen(context, builder, signature, arguments):
        function = ir.FunctionType(INDEX, [])
        return builder.call(external(builder, partial(ir.Function, ftype=function), "get_num_threads"), [])

    return types.int64(), codegen


@intrinsic
def _let_other_callers_run(typingctx):
    """Release Python's lock for a moment, if the caller holds it.

    PyTensor's functions keep arguments and results in one place for all callers. Neither is in use now, but
    both are in the next line of Python, where threads that wait for the lock would otherwise get it.
    """

    def codegen(context, builder, signature, arguments):
        python = context.get_python_api(builder)
        check = partial(ir.Function, ftype=ir.FunctionType(ir.IntType(32), []))
        held = builder.call(external(builder, check, "PyGILState_Check"), [])
        with builder.if_then(builder.icmp_signed("!=", held, held.type(0))):
            python.restore_thread(python.save_thread())
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _share_among_threads(typingctx, function, threads, job):
    """Let each of Numba's threads call the function at an address with its number and the job.

    ``numba.prange`` would release Python's lock meanwhile.
    """

    def codegen(context, builder, signature, arguments):
        function, threads, job = arguments
        pointer = cgutils.voidptr_t
        # An array of pointers, one for each thread, whose distance to the job is the thread's number.
        first, length, step = (
            cgutils.alloca_once_value(builder, value) for value in (job, threads, INDEX(1))
        )
        parallel_for = external(
            builder,
            partial(ir.Function, ftype=ir.FunctionType(ir.VoidType(), [pointer] * 5 + [INDEX] * 3)),
            "numba_parallel_for",
        )
        builder.call(
            parallel_for,
            [
                builder.inttoptr(function, pointer),
                *(builder.bitcast(place, pointer) for place in (first, length, step)),
                builder.inttoptr(job, pointer),
                INDEX(0),
                INDEX(1),
                threads,
            ],
        )
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


# A job in memory: these, then a flag for each block, which is 1 once a thread has claimed it.
_JOB_KERNEL, _JOB_BLOCKS, _JOB_FRAME, _JOB_THREADS, _JOB_FAILED, _JOB_CLAIMED = range(6)


@kernel_njit
def _run_from(job, thread):
    """Call the kernel for the blocks of a thread's share, then for others that no thread has claimed."""
    values = carray(_integers(job), _JOB_CLAIMED)
    kernel, blocks, frame = values[_JOB_KERNEL], values[_JOB_BLOCKS], values[_JOB_FRAME]
    first = thread * blocks // values[_JOB_THREADS]
    for i in range(first, first + blocks):
        block = i if i < blocks else i - blocks
        if _claim_block(job + 8 * _JOB_CLAIMED, block) and _call(kernel, block, blocks, frame):
            values[_JOB_FAILED] = 1


def run_share(starts, lengths, steps, job):
    """Do a share of a job, as Numba's threads call it."""
    first = carray(starts, 1)[0] - job
    for thread in range(first, first + carray(lengths, 1)[0]):
        _run_from(job, thread)


@kernel_njit
def run_blocks(share, kernel, blocks, frame):
    """Call the kernel for every block; return 1 if one failed, else 0.

    Each thread has its share, whose data may still be in its cache. When it has finished it helps the others:
    threads start late, and cores are shared with other programs, or differ.

    Not every threading layer of Numba can be used by two threads of Python at once, or in a forked child.
    Then the blocks run one after another on the caller's thread. No block may depend on another one, so the
    results are the same.
    """
    job = _allocate(8 * (_JOB_CLAIMED + blocks)) if blocks > 1 else 0
    failed = 0
    if job and _acquire_threads():
        values = carray(_integers(job), _JOB_CLAIMED + blocks)
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


SHARE = f"{__name__}.run_share-{version_of(__name__)}"


def load_share():
    """Make `run_share` known to all code that Numba compiles, as a function of C."""

    def compile_share():
        integers = types.CPointer(types.int64)
        signature = types.void(integers, integers, integers, types.int64)
        compiled = exact_njit(signature, no_cfunc_wrapper=False)(run_share)
        [overload] = compiled.overloads.values()
        return overload.library, overload.fndesc.llvm_cfunc_wrapper_name

    machine_code.load(SHARE, compile_share)
