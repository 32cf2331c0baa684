"""Replace the product of two matrices, and a step of gradient descent that adds one to weights."""

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.graph.traversal import ancestors
from pytensor.scalar.basic import Add, Mul, Sub
from pytensor.tensor.blas import BatchedDot
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.math import Dot

from deeplearning_tutorial.nnet.fused.matrix_product import BatchedMatrixProduct, MatrixProduct, WeightUpdate
from deeplearning_tutorial.nnet.fused.sum_of_squares import SumOfSquares
from deeplearning_tutorial.nnet.rewrites.pattern import applies, is_elementwise

# Products with fewer columns are computed by other loops.
MIN_COLUMNS = 32


@node_rewriter([Dot])
def matrix_product(fgraph, node):
    """Replace the product of two matrices of one float type."""
    a, b = node.inputs
    if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype or a.dtype not in ("float32", "float64"):
        return None
    # A matrix of one row or column would fill only a fraction of each tile.
    if a.type.shape[0] == 1 or b.type.shape[1] == 1:
        return None
    return [MatrixProduct()(a, b)]


@node_rewriter([BatchedDot])
def batched_matrix_product(fgraph, node):
    """Replace the products of two stacks of matrices of one float type."""
    a, b = node.inputs
    if a.dtype != b.dtype or a.dtype not in ("float32", "float64"):
        return None
    return [BatchedMatrixProduct()(a, b)]


@node_rewriter([Elemwise])
def weight_update(fgraph, node):
    """Replace ``W - rate * dot(a, b)`` and ``W - rate * (dot(a, b) + decay * W)``.

    The same Op then also computes the sum of squares of W, of which a penalty on the weights consists.
    """
    if not isinstance(node.op.scalar_op, Sub):
        return None
    weights, step = node.inputs
    if weights.ndim != 2 or weights.dtype != node.out.dtype or (weights.type.shape[1] or 0) < MIN_COLUMNS:
        return None
    rate, gradient = _scaled(step)
    if rate is None:
        return None
    product, decay = _without_decay(gradient, weights)
    if not applies(product, MatrixProduct):
        return None
    if any(len(fgraph.clients[variable]) > 1 for variable in (step, gradient, product)):
        return None
    if product.type.broadcastable != (False, False) or {rate.dtype, decay.dtype} != {weights.dtype}:
        return None
    updated, squares = WeightUpdate()(weights, *product.owner.inputs, rate, decay)
    replaced = {node.out: updated}
    needed = set(ancestors(updated.owner.inputs))
    for client, _ in fgraph.clients[weights]:
        if isinstance(client.op, SumOfSquares) and client.out not in needed:
            replaced[client.out] = squares
    return replaced


def _without_decay(gradient, weights):
    """Split ``other + decay * weights``; the decay is zero if ``gradient`` is not such a sum."""
    if is_elementwise(gradient.owner, Add) and len(gradient.owner.inputs) == 2:
        for other, penalty in (gradient.owner.inputs, gradient.owner.inputs[::-1]):
            decay, decaying = _scaled(penalty)
            if decaying is weights:
                return other, decay
    # Not an Alloc: constants are no longer folded at this point, and Numba takes seconds to compile one.
    return gradient, pt.constant(np.zeros((1, 1), weights.dtype))


def _scaled(variable):
    """Return the factor, of shape (1, 1), and the other one; None and None if there is no such factor."""
    if is_elementwise(variable.owner, Mul) and len(variable.owner.inputs) == 2:
        for factor, other in (variable.owner.inputs, variable.owner.inputs[::-1]):
            if factor.type.broadcastable == (True, True):
                return factor, other
    return None, None


@node_rewriter([WeightUpdate()], inplace=True)
def weight_update_inplace(fgraph, node):
    """Let the update overwrite the weights, and compute the sum of squares only if something needs it."""
    squares = bool(fgraph.clients[node.outputs[1]])
    outputs = WeightUpdate(inplace=True, squares=squares).make_node(*node.inputs).outputs
    return dict(zip(node.outputs, outputs, strict=False))


MatrixProductRewriter = in2out(matrix_product, batched_matrix_product, name="matrix_product")
WeightUpdateRewriter = in2out(weight_update)
WeightUpdateInplaceRewriter = in2out(weight_update_inplace)
