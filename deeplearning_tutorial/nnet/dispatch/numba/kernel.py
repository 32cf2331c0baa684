"""How kernels are compiled and made known to PyTensor.

A kernel does one block of the work. It is compiled once for each data type, into a library of its own, and
called through a pointer: Numba would otherwise compile it again within each function that calls it, directly
or not.
"""

from functools import partial

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from pytensor.link.numba.dispatch.basic import register_funcify_default_op_cache_key

from deeplearning_tutorial.nnet.dispatch.numba import machine_code
from deeplearning_tutorial.nnet.dispatch.numba.jit import exact_njit, kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import INDEX
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import arrays_in
from deeplearning_tutorial.nnet.dispatch.numba.memory import NO_MEMORY, is_missing
from deeplearning_tutorial.nnet.dispatch.numba.threads import (
    KERNEL_ARGUMENTS,
    SHARE,
    external,
    load_share,
    run_blocks,
    start_threads,
)
from deeplearning_tutorial.nnet.dispatch.numba.versions import version_of

# Elements in a block, where each takes an addition and where it takes an exponential: for less than two
# blocks another thread costs more than it helps.
BLOCK_SUMS, BLOCK_EXPONENTIALS = 1 << 14, 1 << 12


def _borrowed(context, builder, numba_type, value):
    """Return a value whose arrays have no owner, so that Numba counts no references to them."""
    if isinstance(numba_type, types.BaseTuple):
        fields = zip(numba_type, cgutils.unpack_tuple(builder, value), strict=True)
        return context.make_tuple(
            builder, numba_type, [_borrowed(context, builder, *field) for field in fields]
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
    """Emit whether an array, or one in a tuple, has elements but no memory for them."""
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


@partial(kernel_njit, inline="always")
def check(failed):
    """Raise MemoryError if a kernel failed, or a result is missing.

    Inline, because the arrays that the caller holds are then freed.
    """
    if failed:
        raise MemoryError(NO_MEMORY)


@kernel_njit
def unliteral(pair):
    """Return two ints for an exception to hold, of a type that does not include their values.

    Numba makes a function that converts an exception's arguments to Python's, and names it by their layout in
    memory alone. One made for the types of literal ints would return these for every exception of the process
    whose arguments have that layout.
    """
    return np.int64(pair[0]), np.int64(pair[1])


@kernel_njit
def block_of(block, blocks, items):
    """Return the first item of a block and of the next."""
    return block * items // blocks, (block + 1) * items // blocks


def parallel(arguments, *parameters, uses=()):
    """Make a kernel of ``body(memory, block, blocks, *arguments)``.

    Parameters
    ----------
    arguments : callable
        Takes the Numba type of the first array of floats; returns the Numba types of all arguments.
    *parameters
        What else the body's code depends on, if a factory makes several kernels.
    uses : iterable of kernels
        Those that the body calls. Only a kernel that is called with a single block may call others.

    Returns
    -------
    callable
        For jitted code: ``kernel(blocks, *arguments)`` runs all blocks. It returns, for `check`, whether one
        of them failed, or an argument is missing. Each process must first call its attribute ``load(dtype)``.
        ``sources(dtype)`` returns what `machine_code.load` takes for it and for those that it uses, by name.
    """

    def decorator(body):
        def name_of(float_type):
            suffix = "-".join(map(str, (*parameters, float_type, version_of(body.__module__))))
            return f"{body.__module__}.{body.__name__}-{suffix}"

        def sources(dtype):
            float_type = numba.from_dtype(np.dtype(dtype))
            used = {name: compile_it for kernel in uses for name, compile_it in kernel.sources(dtype).items()}
            return used | {name_of(float_type): partial(_compile, body, arguments(float_type))}

        def load(dtype):
            load_share()
            for name, compile_it in sources(dtype).items():
                machine_code.load(name, compile_it)

        @intrinsic
        def run(typingctx, blocks, *passed):
            elements = [array.dtype for array in arrays_in(passed)]
            float_type = next(element for element in elements if element in types.real_domain)
            name, frame_type = name_of(float_type), types.Tuple(arguments(float_type))

            def codegen(context, builder, signature, values):
                blocks, passed = values
                passed = _cast(context, builder, passed, signature.args[1], frame_type)
                frame = cgutils.alloca_once(builder, context.get_data_type(frame_type))
                context.pack_value(builder, frame_type, passed, frame)
                any_missing = _any_missing(context, builder, frame_type, passed)
                symbol = partial(ir.GlobalVariable, typ=INDEX)
                share, kernel = (external(builder, symbol, called) for called in (SHARE, name))
                share, kernel, frame = (builder.ptrtoint(place, INDEX) for place in (share, kernel, frame))
                blocks = builder.select(any_missing, INDEX(0), blocks)
                run_type = typingctx.resolve_value_type(run_blocks)
                run_signature = run_type.get_call_type(typingctx, [types.int64] * 4, {})
                call = context.get_function(run_type, run_signature)
                failed = call(builder, [share, kernel, blocks, frame])
                return builder.or_(any_missing, builder.icmp_signed("!=", failed, INDEX(0)))

            return types.boolean(types.int64, types.StarArgTuple(passed)), codegen

        run.load, run.sources = load, sources
        return run

    return decorator


def _compile(body, arguments):
    """Compile ``body`` as a function of a block, the number of blocks and the addresses of its arguments.

    Returns
    -------
    library : CodeLibrary
    symbol : str
        The name of the function in the library, in Numba's own calling convention.
    """
    frame_type = types.Tuple(arguments)

    @intrinsic
    def arguments_at(typingctx, address):
        def codegen(context, builder, signature, values):
            pointer = builder.inttoptr(values[0], context.get_data_type(frame_type).as_pointer())
            frame = context.unpack_value(builder, frame_type, pointer)
            return _borrowed(context, builder, frame_type, frame)

        return frame_type(types.int64), codegen

    body = exact_njit(body)

    def kernel(block, blocks, frame, memory):
        body(memory, block, blocks, *arguments_at(frame))

    compiled = exact_njit(types.none(*KERNEL_ARGUMENTS))(kernel)
    [overload] = compiled.overloads.values()
    return overload.library, overload.fndesc.llvm_func_name


# What `register_kernel` has registered: by the Op's class, the function that returns an Op's kernel.
KERNELS = {}


def register_kernel(op_class, kernel_of=None):
    """Register ``make_function(op, kernel)``, which returns the jitted function that computes an Op.

    ``kernel_of(op)`` is the kernel that the function calls; it is loaded here, for the data type of the first
    output. Without it the function is ``make_function(op)``.
    """

    def decorator(make_function):
        if kernel_of is not None:
            KERNELS[op_class] = kernel_of

        @register_funcify_default_op_cache_key(op_class)
        def numba_funcify(op, node, **kwargs):
            start_threads()
            version = version_of(make_function.__module__)
            if kernel_of is None:
                return make_function(op), version
            kernel = kernel_of(op)
            kernel.load(node.outputs[0].dtype)
            return make_function(op, kernel), version

        return make_function

    return decorator
