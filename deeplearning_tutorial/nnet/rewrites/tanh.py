"""Replace the elementwise hyperbolic tangent."""

from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.scalar.basic import Tanh
from pytensor.tensor.elemwise import Elemwise

from deeplearning_tutorial.nnet.fused.tanh import VectorTanh


@node_rewriter([Elemwise])
def vector_tanh(fgraph, node):
    """Replace tanh of an array of floats; a scalar would gain nothing."""
    if not isinstance(node.op.scalar_op, Tanh):
        return None
    [x] = node.inputs
    return [VectorTanh()(x)] if x.ndim and x.dtype in ("float32", "float64") else None


VectorTanhRewriter = in2out(vector_tanh)
