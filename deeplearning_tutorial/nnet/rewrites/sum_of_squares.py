"""Replace the sum of all squares of an array."""

from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.scalar.basic import Sqr
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import Sum

from deeplearning_tutorial.nnet.fused.sum_of_squares import SumOfSquares


@node_rewriter([Sum])
def sum_of_squares(fgraph, node):
    """Replace the sum over all axes of squares that nothing else uses."""
    [squares] = node.inputs
    square = squares.owner
    if node.op.axis not in (None, tuple(range(squares.ndim))) or len(fgraph.clients[squares]) > 1:
        return None
    if square is None or not isinstance(square.op, Elemwise) or not isinstance(square.op.scalar_op, Sqr):
        return None
    [x] = square.inputs
    if x.ndim == 0 or x.dtype != node.out.dtype or x.dtype not in ("float32", "float64"):
        return None
    return [SumOfSquares()(x)]


SumOfSquaresRewriter = in2out(sum_of_squares)
