"""The memory of kernels: a failed allocation becomes a status, and what was allocated before it is freed.

Numba counts the references to its arrays, and if an exception passes through a function it never frees those
that the function holds. The memory that a kernel allocates for itself belongs to the call of the kernel:
`empty` adds it to a list, which the caller of the kernel frees, however the call ended. No references are
counted when such an array is sliced or passed on; counting is atomic, and took a third of the time of an
inner loop.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import INDEX

NO_MEMORY = "there is not enough memory for what a kernel computes; use a smaller minibatch"

# That of a line of the cache and of the widest vector.
_ALIGNMENT = 64


def _array_type(shape, like):
    """Return the type of an array of one or several lengths, with the data type of an array or a scalar."""
    ndim = len(shape) if isinstance(shape, types.BaseTuple) else 1
    return types.Array(like.dtype, ndim, "C")


def _bytes_of(context, builder, array_type, shape_type, shape):
    """Return the lengths, strides and size in bytes of an array, and whether the size overflows."""
    kind = types.UniTuple(types.intp, array_type.ndim)
    if not isinstance(shape_type, types.BaseTuple):
        shape, shape_type = context.make_tuple(builder, types.UniTuple(shape_type, 1), [shape]), kind
    lengths = cgutils.unpack_tuple(builder, context.cast(builder, shape, shape_type, kind))
    size = INDEX(context.get_abi_sizeof(context.get_data_type(array_type.dtype)))
    overflow, strides = ir.IntType(1)(0), []
    for length in reversed(lengths):
        strides.insert(0, size)
        product = builder.smul_with_overflow(length, size)
        size = builder.extract_value(product, 0)
        overflow = builder.or_(overflow, builder.extract_value(product, 1))
    return lengths, strides, size, overflow


def _make_array(context, builder, array_type, lengths, strides, data, meminfo=None):
    array = context.make_array(array_type)(context, builder)
    context.populate_array(
        array,
        data=builder.bitcast(data, array.data.type),
        shape=lengths,
        strides=strides,
        itemsize=context.get_abi_sizeof(context.get_data_type(array_type.dtype)),
        meminfo=meminfo,
    )
    return array._getvalue()


def free_listed(context, builder, head):
    """Emit code that frees all memory in a list; ``head`` points to the address of its first element."""
    condition = builder.append_basic_block("any_left")
    body = builder.append_basic_block("free")
    after = builder.append_basic_block("freed")
    builder.branch(condition)
    builder.position_at_end(condition)
    first = builder.load(head)
    builder.cbranch(builder.icmp_unsigned("==", first, first.type(None)), after, body)
    builder.position_at_end(body)
    builder.store(builder.load(builder.bitcast(first, head.type)), head)
    context.nrt.free(builder, first)
    builder.branch(condition)
    builder.position_at_end(after)


def _scratch(zeroed):
    @intrinsic
    def scratch(typingctx, memory, shape, like):
        """Return an array that lasts for a call of a kernel; raise MemoryError if there is no memory.

        ``memory`` is the first argument of the kernel, ``like`` an array or a scalar type.
        """
        array_type = _array_type(shape, like)

        def codegen(context, builder, signature, arguments):
            memory, shape, _ = arguments
            lengths, strides, size, overflow = _bytes_of(
                context, builder, array_type, signature.args[1], shape
            )
            # Before the elements stands the address of the previous allocation.
            place = context.nrt.allocate_unchecked(builder, builder.add(size, INDEX(2 * _ALIGNMENT)))
            failed = builder.or_(overflow, cgutils.is_null(builder, place))
            with builder.if_then(failed, likely=False):
                context.call_conv.return_user_exc(builder, MemoryError, (NO_MEMORY,))
            head = builder.inttoptr(memory, place.type.as_pointer())
            builder.store(builder.load(head), builder.bitcast(place, head.type))
            builder.store(place, head)
            address = builder.add(builder.ptrtoint(place, INDEX), INDEX(2 * _ALIGNMENT - 1))
            data = builder.inttoptr(builder.and_(address, INDEX(-_ALIGNMENT)), place.type)
            if zeroed:
                cgutils.memset(builder, data, size, 0)
            return _make_array(context, builder, array_type, lengths, strides, data)

        return array_type(types.int64, shape, like), codegen

    return scratch


empty, zeros = _scratch(zeroed=False), _scratch(zeroed=True)


@intrinsic
def result(typingctx, shape, like):
    """Return an array that outlives the kernel; its data pointer is null if there is no memory for it.

    It must be passed to a kernel, which then only fails, or to `missing`.
    """
    array_type = _array_type(shape, like)

    def codegen(context, builder, signature, arguments):
        lengths, strides, size, overflow = _bytes_of(
            context, builder, array_type, signature.args[0], arguments[0]
        )
        # More than any machine has.
        size = builder.select(overflow, INDEX((1 << 63) - 4 * _ALIGNMENT), size)
        align = ir.IntType(32)(_ALIGNMENT)
        meminfo = context.nrt.meminfo_alloc_aligned_unchecked(builder, size, align)
        null = cgutils.is_null(builder, meminfo)
        with builder.if_else(null, likely=False) as (without, otherwise):
            with without:
                block_without = builder.block
            with otherwise:
                found = context.nrt.meminfo_data(builder, meminfo)
                block_found = builder.block
        data = builder.phi(found.type)
        data.add_incoming(found.type(None), block_without)
        data.add_incoming(found, block_found)
        return _make_array(context, builder, array_type, lengths, strides, data, meminfo)

    return array_type(shape, like), codegen


def is_missing(context, builder, array_type, array):
    """Emit whether an array has elements but no memory for them."""
    array = context.make_array(array_type)(context, builder, array)
    null = cgutils.is_null(builder, array.data)
    return builder.and_(null, builder.icmp_signed(">", array.nitems, INDEX(0)))


@intrinsic
def missing(typingctx, array):
    """Tell whether there was no memory for a `result`."""

    def codegen(context, builder, signature, arguments):
        return is_missing(context, builder, array, arguments[0])

    return types.boolean(array), codegen


@intrinsic
def as_contiguous(typingctx, array):
    """Return the same array, with a type that says that its elements are in C order."""
    array_type = types.Array(array.dtype, array.ndim, "C")

    def codegen(context, builder, signature, arguments):
        original = context.make_array(array)(context, builder, arguments[0])
        return _make_array(
            context, builder, array_type, cgutils.unpack_tuple(builder, original.shape),
            cgutils.unpack_tuple(builder, original.strides), original.data,
        )  # fmt: skip

    return array_type(array), codegen


@intrinsic
def copy_values(typingctx, copy, array):
    """Copy an array to one of the same shape and data type. No shapes are compared.

    For ``copy[...] = array`` Numba also compiles the text of an error, which takes seconds.
    """

    def codegen(context, builder, signature, arguments):
        to, source = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        lengths = cgutils.unpack_tuple(builder, source.shape)
        with cgutils.loop_nest(builder, lengths, INDEX) as indices:
            places = [
                cgutils.get_item_pointer2(
                    context, builder, view.data, lengths, cgutils.unpack_tuple(builder, view.strides),
                    kind.layout, indices,
                )
                for kind, view in zip(signature.args, (to, source), strict=True)
            ]  # fmt: skip
            builder.store(builder.load(places[1]), places[0])
        return context.get_dummy_value()

    return types.void(copy, array), codegen
