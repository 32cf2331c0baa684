"""Keep the logarithm of a softmax and its gradient finite where a probability is zero.

The logarithm's gradient divides by the probabilities, and the softmax's multiplies by them. PyTensor cancels
the two if nothing is between them; these rewrites also allow selecting, reordering and reshaping in between.
"""

import pytensor.tensor as pt
import pytensor.tensor.subtensor as selections
from pytensor.graph.rewriting.basic import node_rewriter, out2in
from pytensor.scalar.basic import Add, Log, Mul, TrueDiv
from pytensor.tensor.basic import get_underlying_scalar_constant_value
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.exceptions import NotScalarConstantError
from pytensor.tensor.shape import Reshape
from pytensor.tensor.special import Softmax

from deeplearning_tutorial.nnet.rewrites.pattern import applies, is_elementwise

# The Ops that select elements of an array, by the Ops of their gradients, which add elements to it.
_SELECTIONS = {
    selections.IncSubtensor: selections.Subtensor,
    selections.AdvancedIncSubtensor: selections.AdvancedSubtensor,
}
# Older versions of PyTensor have separate Ops for a single vector of indices.
if hasattr(selections, "AdvancedSubtensor1"):
    _SELECTIONS[selections.AdvancedIncSubtensor1] = selections.AdvancedSubtensor1
_MOVES = (*_SELECTIONS.values(), DimShuffle, Reshape)


@node_rewriter([Elemwise])
def log_of_softmax(fgraph, node):
    """Replace ``log(moved(softmax(x)))`` by ``moved(log_softmax(x))``."""
    if not isinstance(node.op.scalar_op, Log):
        return None
    moves, [values] = [], node.inputs
    while applies(values, _MOVES):
        moves.append(values.owner)
        values = values.owner.inputs[0]
    if not applies(values, Softmax):
        return None
    result = pt.special.log_softmax(*values.owner.inputs, axis=values.owner.op.axis)
    for move in reversed(moves):
        result = move.op(result, *move.inputs[1:])
    return [result]


@node_rewriter([Elemwise])
def softmax_of_log_gradient(fgraph, node):
    """Replace ``p * gradient`` of a softmax ``p`` if the gradient is a logarithm's, which divides by p."""
    if not isinstance(node.op.scalar_op, Mul) or len(node.inputs) != 2:
        return None
    for p, gradient in (node.inputs, node.inputs[::-1]):
        if applies(p, Softmax):
            terms = gradient.owner.inputs if is_elementwise(gradient.owner, Add) else [gradient]
            products = [_undivided(fgraph, term, p) for term in terms]
            if any(product is not None for product in products):
                products = [
                    p * term if product is None else product
                    for term, product in zip(terms, products, strict=True)
                ]
                return [pt.add(*products) if len(products) > 1 else products[0]]
    return None


def _undivided(fgraph, gradient, p):
    """Return ``gradient * p`` if ``gradient`` divides by p, or by elements moved out of p; else None."""
    node = gradient.owner
    if is_elementwise(node, TrueDiv):
        numerator, denominator = node.inputs
        if denominator is not p:
            return None
        return numerator if numerator.type.broadcastable == p.type.broadcastable else pt.second(p, numerator)
    if node is None:
        return None
    for client, position in fgraph.clients[p]:
        if position == 0 and _moves_back(node, client, p):
            divided_at = 1 if type(node.op) in _SELECTIONS else 0
            product = _undivided(fgraph, node.inputs[divided_at], client.outputs[0])
            if product is not None:
                inputs = [*node.inputs[:divided_at], product, *node.inputs[divided_at + 1 :]]
                return node.op(*inputs)
    return None


def _moves_back(node, client, p):
    """Tell whether ``node`` moves a gradient of ``client``'s output back to its place in ``p``."""
    op, move = node.op, client.op
    if isinstance(op, Reshape):
        return isinstance(move, Reshape) and op.ndim == p.ndim
    if isinstance(op, DimShuffle):
        if not isinstance(move, DimShuffle):
            return False
        order = [n if n == "x" else move.new_order[n] for n in op.new_order]
        return order == ["x" if n in move.drop else n for n in range(p.ndim)]
    return (
        type(op) in _SELECTIONS
        and isinstance(move, _SELECTIONS[type(op)])
        and not op.set_instead_of_inc
        and not getattr(op, "ignore_duplicates", False)
        and getattr(op, "idx_list", None) == getattr(move, "idx_list", None)
        and node.inputs[2:] == client.inputs[1:]
        and _is_zero(node.inputs[0])
    )


def _is_zero(variable):
    try:
        return get_underlying_scalar_constant_value(variable) == 0
    except NotScalarConstantError:
        return False


LogSoftmaxRewriter = out2in(log_of_softmax, softmax_of_log_gradient, name="log_softmax")
