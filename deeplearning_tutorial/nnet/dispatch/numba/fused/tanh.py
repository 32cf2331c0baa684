"""Numba kernel of the hyperbolic tangent."""

from deeplearning_tutorial.nnet.dispatch.numba.arrays import in_order
from deeplearning_tutorial.nnet.dispatch.numba.jit import kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    BLOCK_EXPONENTIALS,
    block_of,
    check,
    parallel,
    register_kernel,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import vector_tanh
from deeplearning_tutorial.nnet.dispatch.numba.memory import result
from deeplearning_tutorial.nnet.fused.tanh import VectorTanh


@parallel(lambda real: (real[::1], real[::1]))
def tanh_block(memory, block, blocks, x, out):
    """Compute a block of elements."""
    begin, end = block_of(block, blocks, len(x))
    vector_tanh(out, begin, x, begin, end - begin)


@register_kernel(VectorTanh, lambda op: tanh_block)
def make_tanh(op, tanh_block):
    """Compile `VectorTanh`."""

    @kernel_njit
    def tanh(x):
        out, flat = result(x.shape, x), in_order(x).reshape(x.size)
        check(tanh_block(max(1, x.size // BLOCK_EXPONENTIALS), flat, out.reshape(x.size)))
        return out

    return tanh
