"""Recognise max-pooling of a convolution, and its gradients."""

from functools import cache

import pytensor.tensor as pt
from pytensor.gradient import pullback
from pytensor.graph.rewriting.basic import GraphRewriter
from pytensor.scalar.basic import Add, Tanh
from pytensor.tensor.elemwise import DimShuffle
from pytensor.tensor.math import Sum

from deeplearning_tutorial.nnet.conv import Conv2d, Conv2dGradFilters, Conv2dGradInput
from deeplearning_tutorial.nnet.fused.conv_pool import (
    MAX_POSITIONS,
    ConvMaxPool,
    ConvMaxPoolGradFilters,
    ConvMaxPoolGradInput,
    plain_conv2d,
)
from deeplearning_tutorial.nnet.pool import MaxPoolGrad, Pool
from deeplearning_tutorial.nnet.rewrites.pattern import (
    applies,
    clients_of,
    is_elementwise,
    matches,
    only_client,
)


class ConvPoolFusion(GraphRewriter):
    """Replace ``tanh(pool_2d(conv2d(x, W)) + b)``, with or without tanh and bias, and its gradients.

    A convolution whose output is used in any other way is left alone.
    """

    def apply(self, fgraph):
        for node in fgraph.toposort():
            if _is_fusable_pool(node):
                _fuse(fgraph, node)


def _is_fusable_pool(node):
    op = node.op
    return (
        isinstance(op, Pool)
        and op.mode == "max"
        and op.ignore_border
        and op.ws is not None
        and op.stride == op.ws
        and op.pad == (0, 0)
        and op.ws[0] * op.ws[1] <= MAX_POSITIONS
        and applies(node.inputs[0], Conv2d)
        and node.inputs[0].owner.op == plain_conv2d(Conv2d, node.inputs[0].owner.op.filter_flip)
    )


def _fuse(fgraph, pool_node):
    [maps] = pool_node.inputs
    [pooled] = pool_node.outputs
    conv_node = maps.owner
    flip, ws = conv_node.op.filter_flip, pool_node.op.ws
    pool_gradients = [node for node in clients_of(fgraph, maps) if node is not pool_node]
    expected = MaxPoolGrad(True, ws, ws, (0, 0))
    if any(node.op != expected or node.inputs[:2] != [maps, pooled] for node in pool_gradients):
        return
    conv_gradients = [node for gradient in pool_gradients for node in clients_of(fgraph, gradient.out)]
    fused_gradients = {
        plain_conv2d(Conv2dGradFilters, flip): ConvMaxPoolGradFilters,
        plain_conv2d(Conv2dGradInput, flip): ConvMaxPoolGradInput,
    }
    for node in conv_gradients:
        if node.op not in fused_gradients or node.inputs[:2] != conv_node.inputs:
            return
        if not applies(node.inputs[2], MaxPoolGrad):
            return

    output, bias, tanh = _find_bias_and_tanh(fgraph, pooled, pool_gradients)
    fused, mask = ConvMaxPool(flip, ws, bias is not None, tanh)(
        *conv_node.inputs, *([] if bias is None else [bias])
    )
    replacements = [(output, fused)]
    for node in conv_gradients:
        pooled_gradient = node.inputs[2].owner.inputs[2]
        output_gradient = _gradient_after_tanh(output, pooled_gradient) if tanh else None
        last_inputs = [pooled_gradient] if output_gradient is None else [output_gradient, fused]
        op = fused_gradients[node.op](flip, ws, tanh=output_gradient is not None)
        fused_node = op.make_node(*conv_node.inputs, mask, *last_inputs)
        replacements.append((node.out, fused_node.outputs[0]))
        if isinstance(op, ConvMaxPoolGradFilters):
            bias_gradient = fused_node.outputs[1]
            replacements += [(s.out, bias_gradient) for s in _bias_gradients(fgraph, pooled_gradient)]
    fgraph.replace_all_validate(replacements, reason="conv_pool_fusion")


def _bias_gradients(fgraph, pooled_gradient):
    return [
        node
        for node in clients_of(fgraph, pooled_gradient)
        if isinstance(node.op, Sum) and node.op.axis == (0, 2, 3) and node.out.dtype == pooled_gradient.dtype
    ]


@cache
def _tanh_gradient(type):
    x, cotangent = type(), type()
    return x, cotangent, pullback(pt.tanh(x), x, cotangent)


def _gradient_after_tanh(output, gradient):
    """Return the gradient of ``output``, a tanh, if ``gradient`` is computed from it; else None."""
    [before] = output.owner.inputs
    x, cotangent, pattern = _tanh_gradient(before.type)
    found = {x: before}
    return found[cotangent] if matches(pattern, gradient, found) else None


def _find_bias_and_tanh(fgraph, pooled, pool_gradients):
    """Return the last variable that can be fused, the bias vector or None, and whether tanh is fused.

    A bias or tanh is fused if nothing else uses its input; the pooling's gradient needs only the mask.
    """
    output, bias = pooled, None
    node = only_client(fgraph, pooled, pool_gradients)
    if is_elementwise(node, Add):
        bias = _bias_added(node, pooled)
        if bias is not None:
            output = node.out
            node = only_client(fgraph, output)
    tanh = is_elementwise(node, Tanh)
    return (node.out if tanh else output), bias, tanh


def _bias_added(node, pooled):
    """Return the vector of one bias per filter that ``node`` adds to ``pooled``, or None."""
    others = [variable for variable in node.inputs if variable is not pooled]
    if len(node.inputs) != 2 or len(others) != 1 or not applies(others[0], DimShuffle):
        return None
    [broadcast] = others
    if broadcast.owner.op.new_order != ("x", 0, "x", "x") or broadcast.type.broadcastable[1]:
        return None
    return broadcast.owner.inputs[0] if broadcast.dtype == pooled.dtype else None
