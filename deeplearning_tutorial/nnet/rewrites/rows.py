"""Replace the softmax and the argmax of a matrix's rows."""

from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.tensor.math import Argmax
from pytensor.tensor.special import Softmax

from deeplearning_tutorial.nnet.fused.rows import RowArgmax, RowSoftmax


def _is_of_rows(node):
    [x] = node.inputs
    return x.ndim == 2 and node.op.axis == (1,) and x.dtype in ("float32", "float64")


@node_rewriter([Softmax])
def row_softmax(fgraph, node):
    """Replace the softmax of the rows of a matrix of floats."""
    return [RowSoftmax()(*node.inputs)] if _is_of_rows(node) else None


@node_rewriter([Argmax])
def row_argmax(fgraph, node):
    """Replace the argmax of the rows of a matrix of floats."""
    return [RowArgmax()(*node.inputs)] if _is_of_rows(node) else None


RowSoftmaxRewriter = in2out(row_softmax)
RowArgmaxRewriter = in2out(row_argmax)
