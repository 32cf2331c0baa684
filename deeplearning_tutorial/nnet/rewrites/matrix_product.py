"""Replace the product of two matrices."""

from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.tensor.math import Dot

from deeplearning_tutorial.nnet.matrix_product import MatrixProduct


@node_rewriter([Dot])
def matrix_product(fgraph, node):
    """Replace the product of two matrices of one float type."""
    a, b = node.inputs
    if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype or a.dtype not in ("float32", "float64"):
        return None
    # A vector as a matrix of one row or column would fill a fraction of each tile.
    if a.type.shape[0] == 1 or b.type.shape[1] == 1:
        return None
    return [MatrixProduct()(a, b)]


MatrixProductRewriter = in2out(matrix_product)
