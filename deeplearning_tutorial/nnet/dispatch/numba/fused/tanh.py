"""Numba kernel of the hyperbolic tangent."""

from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    check,
    in_order,
    kernel_njit,
    parallel,
    register_kernel,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import vector_tanh
from deeplearning_tutorial.nnet.dispatch.numba.memory import result
from deeplearning_tutorial.nnet.fused.tanh import VectorTanh

# Below twice as many elements another thread costs more than it helps.
BLOCK_ELEMENTS = 4096


@parallel(lambda real: (real[::1], real[::1]))
def tanh_block(memory, block, blocks, x, out):
    """Compute a block of elements."""
    begin, end = block_of(block, blocks, len(x))
    vector_tanh(out, begin, x, begin, end - begin)


@register_kernel(VectorTanh)
def make_tanh(op, node, **kwargs):
    """Compile `VectorTanh`."""
    tanh_block.load(node.outputs[0].dtype)

    @kernel_njit
    def tanh(x):
        out, flat = result(x.shape, x), in_order(x).reshape(x.size)
        check(tanh_block(max(1, x.size // BLOCK_ELEMENTS), flat, out.reshape(x.size)))
        return out

    return tanh
