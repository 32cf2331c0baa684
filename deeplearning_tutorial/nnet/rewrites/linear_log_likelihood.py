"""Let the log-likelihood under a linear classifier and its gradients read the examples once."""

from pytensor.graph.rewriting.basic import node_rewriter, out2in
from pytensor.graph.traversal import ancestors
from pytensor.scalar.basic import Add
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import Sum

from deeplearning_tutorial.nnet.fused.linear_log_likelihood import LinearLogLikelihood
from deeplearning_tutorial.nnet.fused.log_likelihood import LogLikelihood, LogLikelihoodGrad
from deeplearning_tutorial.nnet.fused.matrix_product import MatrixProduct
from deeplearning_tutorial.nnet.rewrites.matrix_product import MIN_COLUMNS
from deeplearning_tutorial.nnet.rewrites.pattern import applies, is_elementwise, only_client


@node_rewriter([LogLikelihood])
def linear_log_likelihood(fgraph, node):
    """Replace the log-likelihood where only the gradients of ``W`` and ``b`` use the scores' gradient.

    That is the classifier of logistic regression, whose examples are data. Above a hidden layer the scores'
    gradient is also used for the gradients of that layer.
    """
    scores, y = node.inputs
    log_likelihoods, softmax = node.outputs
    product, b = _product_and_bias(scores)
    gradient_node = only_client(fgraph, softmax)
    if product is None or gradient_node is None or gradient_node.op != LogLikelihoodGrad():
        return None
    if only_client(fgraph, scores) is None or only_client(fgraph, product) is None:
        return None
    x, W = product.owner.inputs
    output_gradient = gradient_node.inputs[2]
    # With more classes, a product of matrices fills its tiles.
    if (W.type.shape[1] or MIN_COLUMNS) >= MIN_COLUMNS or output_gradient.dtype != x.dtype:
        return None
    # The Op needs an example's weight before it has its log-likelihood.
    if log_likelihoods in ancestors([output_gradient]):
        return None
    results = LinearLogLikelihood()(x, W, b, y, output_gradient)
    replacements = {log_likelihoods: results[0]}
    for client, _ in fgraph.clients[gradient_node.out]:
        if isinstance(client.op, MatrixProduct) and _is_transposed(client.inputs[0], x):
            replacements[client.out] = results[1]
        elif isinstance(client.op, Sum) and client.op.axis == (0,) and client.out.dtype == b.dtype:
            replacements[client.out] = results[2]
        else:
            return None
    return replacements if results[1] in replacements.values() else None


def _product_and_bias(scores):
    """Return the two terms of ``dot(x, W) + b``; None and None if ``scores`` is not such a sum."""
    if is_elementwise(scores.owner, Add) and len(scores.owner.inputs) == 2:
        for product, broadcast in (scores.owner.inputs, scores.owner.inputs[::-1]):
            if applies(product, MatrixProduct) and applies(broadcast, DimShuffle):
                [b] = broadcast.owner.inputs
                one_for_all = broadcast.type.broadcastable[1:] == (True,)
                if broadcast.owner.op.new_order == ("x", 0) and b.dtype == product.dtype and not one_for_all:
                    return product, b
    return None, None


def _is_transposed(variable, x):
    node = variable.owner
    return applies(variable, DimShuffle) and node.op.new_order == (1, 0) and node.inputs[0] is x


LinearLogLikelihoodRewriter = out2in(linear_log_likelihood)
