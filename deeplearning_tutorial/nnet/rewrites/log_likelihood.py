"""Recognise the log-likelihood of labels under a softmax, and its gradient."""

from functools import cache
from typing import NamedTuple

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import pullback
from pytensor.graph.basic import Constant
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.scalar.basic import Log
from pytensor.tensor import TensorVariable
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.special import LogSoftmax, Softmax
from pytensor.tensor.subtensor import AdvancedSubtensor
from pytensor.tensor.type import integer_dtypes

from deeplearning_tutorial.nnet.fused.log_likelihood import LogLikelihood, LogLikelihoodGrad
from deeplearning_tutorial.nnet.rewrites.pattern import applies, is_elementwise, matches


class LogLikelihoodFusion(GraphRewriter):
    """Replace ``log(softmax(x, axis=1))[arange(len(y)), y]`` and its gradient with respect to x.

    The logarithm may also be taken after the selection, or be part of the softmax.
    """

    def apply(self, fgraph):
        nodes = fgraph.toposort()
        for node in nodes:
            pattern = _pattern_of(node)
            found = {}
            if pattern is None or not matches(pattern.log_likelihoods, node.out, found):
                continue
            x, rows, y = found[pattern.x], found[pattern.rows], found[pattern.y]
            if not _is_arange(rows, y, x):
                continue
            log_likelihoods, softmax = LogLikelihood()(x, y)
            replacements = [(node.out, log_likelihoods)]
            for other in nodes:
                found = {pattern.x: x, pattern.rows: rows, pattern.y: y}
                if other.op == pattern.gradient.owner.op and matches(pattern.gradient, other.out, found):
                    gradient = LogLikelihoodGrad()(softmax, y, _unbroadcast(found[pattern.cotangent]))
                    replacements.append((other.out, gradient))
            fgraph.replace_all_validate(replacements, reason="log_likelihood_fusion")


def _unbroadcast(vector):
    """Return the element, of shape (1,), that is broadcast to ``vector``, if the graph says so."""
    node = vector.owner
    if vector.type.broadcastable == (True,) or node is None or not isinstance(node.op, Elemwise):
        return vector
    if node.op == pt.second:
        return _unbroadcast(node.inputs[1])
    elements = [_unbroadcast(operand) for operand in node.inputs]
    return node.op(*elements) if all(e.type.broadcastable == (True,) for e in elements) else vector


class _Pattern(NamedTuple):
    x: TensorVariable
    rows: TensorVariable
    y: TensorVariable
    cotangent: TensorVariable
    log_likelihoods: TensorVariable
    gradient: TensorVariable


_EXPRESSIONS = {
    "index of log": lambda x, index: pt.log(pt.special.softmax(x, axis=1))[index],
    "log of index": lambda x, index: pt.log(pt.special.softmax(x, axis=1)[index]),
    "index of log_softmax": lambda x, index: pt.special.log_softmax(x, axis=1)[index],
}


@cache
def _pattern(form, x_type, rows_type, y_type):
    """Build the pattern with PyTensor itself, because its gradients differ from release to release."""
    x, rows, y = x_type(), rows_type(), y_type()
    log_likelihoods = _EXPRESSIONS[form](x, (rows, y))
    cotangent = log_likelihoods.type()
    return _Pattern(x, rows, y, cotangent, log_likelihoods, pullback(log_likelihoods, x, cotangent))


def _pattern_of(node):
    """Return the pattern for the types that ``node`` depends on, if it can be the log-likelihood."""
    form = "index of log"
    if is_elementwise(node, Log):
        form, node = "log of index", node.inputs[0].owner
    if node is None or not isinstance(node.op, AdvancedSubtensor) or len(node.inputs) != 3:
        return None
    values, *index = node.inputs
    if applies(values, LogSoftmax):
        form = "index of log_softmax"
    elif form == "index of log":
        if not is_elementwise(values.owner, Log):
            return None
        [values] = values.owner.inputs
    if not applies(values, (Softmax, LogSoftmax)):
        return None
    if any(labels.ndim != 1 or labels.dtype not in integer_dtypes for labels in index):
        return None
    [x] = values.owner.inputs
    if x.ndim != 2 or x.dtype not in ("float32", "float64"):
        return None
    return _pattern(form, x.type, *(labels.type for labels in index))


def _is_arange(rows, y, x):
    """Tell whether ``rows`` is known to be ``arange(len(y))``.

    Another number of labels is an error when the function runs, except for one label, which is broadcast.
    """
    [n] = y.type.shape
    if isinstance(rows, Constant):
        return n is not None and np.array_equal(rows.data, np.arange(n))
    lengths = [] if n is None else [n]
    if n is not None and n == x.type.shape[0]:
        lengths.append(x.shape[0])
    # Labels that are cast from another type have the same length.
    while True:
        lengths += [y.shape[0], y.size]
        if y.owner is None or not isinstance(y.owner.op, Elemwise) or len(y.owner.inputs) != 1:
            break
        [y] = y.owner.inputs
    return any(matches(pt.arange(n, dtype=rows.dtype), rows, {y: y, x: x}) for n in lengths)
