"""Recognise the log-likelihood of labels under a softmax, and its gradient."""

from functools import cache
from typing import NamedTuple

import pytensor.tensor as pt
from pytensor.gradient import pullback
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.tensor import TensorVariable
from pytensor.tensor.special import Softmax
from pytensor.tensor.subtensor import AdvancedSubtensor
from pytensor.tensor.type import integer_dtypes

from deeplearning_tutorial.nnet.log_likelihood import LogLikelihood, LogLikelihoodGrad
from deeplearning_tutorial.nnet.rewrites.pattern import matches


class LogLikelihoodFusion(GraphRewriter):
    """Replace ``log(softmax(x, axis=1))[arange(y.shape[0]), y]`` and its gradient with respect to x."""

    def apply(self, fgraph):
        nodes = fgraph.toposort()
        for node in nodes:
            pattern = _pattern_of(node)
            found = {}
            if pattern is None or not matches(pattern.chosen, node.out, found):
                continue
            x, y = found[pattern.x], found[pattern.y]
            chosen, softmax = LogLikelihood()(x, y)
            replacements = [(node.out, chosen)]
            for other in nodes:
                found = {pattern.x: x, pattern.y: y}
                if other.op == pattern.gradient.owner.op and matches(pattern.gradient, other.out, found):
                    gradient = LogLikelihoodGrad()(softmax, y, _unspread(found[pattern.cotangent]))
                    replacements.append((other.out, gradient))
            fgraph.replace_all_validate(replacements, reason="log_likelihood_fusion")


def _unspread(vector):
    """Return the one element that fills ``vector``, shape (1,), where the graph says so."""
    node = vector.owner
    if node is not None and node.op == pt.second and node.inputs[1].type.broadcastable == (True,):
        return node.inputs[1]
    return vector


class _Pattern(NamedTuple):
    x: TensorVariable
    y: TensorVariable
    cotangent: TensorVariable
    chosen: TensorVariable
    gradient: TensorVariable


@cache
def _pattern(x_type, y_type):
    """Write what to look for as PyTensor itself writes it, whose gradients differ from release to release."""
    x, y = x_type(), y_type()
    chosen = pt.log(pt.special.softmax(x, axis=1))[pt.arange(y.shape[0]), y]
    cotangent = chosen.type()
    return _Pattern(x, y, cotangent, chosen, pullback(chosen, x, cotangent))


def _pattern_of(node):
    """Return the pattern for the types that ``node`` depends on, if it can be the indexing at the labels."""
    if not isinstance(node.op, AdvancedSubtensor) or len(node.inputs) != 3:
        return None
    log, _, labels = node.inputs
    if log.owner is None or log.owner.inputs[0].owner is None:
        return None
    softmax = log.owner.inputs[0].owner
    if not isinstance(softmax.op, Softmax) or labels.ndim != 1 or labels.dtype not in integer_dtypes:
        return None
    [x] = softmax.inputs
    return _pattern(x.type, labels.type) if x.ndim == 2 and x.dtype in ("float32", "float64") else None
