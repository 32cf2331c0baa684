"""Rewrites that make lengths known that JAX needs to compile and that a graph computes.

A slice ``x[i * n : (i + 1) * n]`` has n elements whatever i is. The length of a convolution follows from
the lengths of its arguments.
"""

from collections import Counter

from pytensor.compile.mode import optdb
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.replace import clone_replace
from pytensor.graph.rewriting.basic import in2out, node_rewriter
from pytensor.scalar.basic import Add, Cast, Mul, Sub
from pytensor.tensor import arange
from pytensor.tensor.basic import Alloc, ScalarFromTensor, TensorFromScalar
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.shape import Shape_i
from pytensor.tensor.subtensor import Subtensor, indices_from_subtensor


@node_rewriter([Subtensor])
def slice_of_known_length(fgraph, node):
    """Take ``x[start : start + n]`` by its n indices.

    At the end of x the slice is not shorter in JAX: each index beyond the end selects the last row.
    """
    x, *inputs = node.inputs
    first, *rest = indices_from_subtensor(inputs, node.op.idx_list)
    if not isinstance(first, slice) or first.step is not None or None in (first.start, first.stop):
        return None
    if isinstance(first.start, Constant) and isinstance(first.stop, Constant):
        return None
    difference = linear_form(first.stop)
    difference.subtract(linear_form(first.start))
    n = difference.pop(None, 0)
    if any(difference.values()) or n < 1:
        return None
    rows = x[TensorFromScalar()(first.start) + arange(n)]
    return [rows[(slice(None), *rest)] if rest else rows]


def linear_form(scalar):
    """Return an integer scalar as a sum of multiples: factors by variable, and the constant under None."""
    if isinstance(scalar, Constant):
        return Counter({None: int(scalar.data)})
    if scalar.owner is None:
        return Counter({scalar: 1})
    op, inputs = scalar.owner.op, scalar.owner.inputs
    operation = op.scalar_op if isinstance(op, Elemwise) else op
    if isinstance(operation, (ScalarFromTensor, TensorFromScalar, Cast)):
        return linear_form(inputs[0])
    if isinstance(operation, Mul) and len(inputs) == 2:
        for factor, other in (inputs, inputs[::-1]):
            if isinstance(factor, Constant):
                return Counter({term: n * int(factor.data) for term, n in linear_form(other).items()})
    if isinstance(operation, (Add, Sub)):
        form = linear_form(inputs[0])
        combine = form.update if isinstance(operation, Add) else form.subtract
        for term in inputs[1:]:
            combine(linear_form(term))
        return form
    return Counter({scalar: 1})


class LengthOfLengths(Op):
    """Compute a length from other lengths. These are ints while JAX compiles, and so is the result."""

    def __init__(self, lengths, length):
        inputs = [variable.type() for variable in lengths]
        outputs = clone_replace([length], dict(zip(lengths, inputs, strict=True)))
        self.fgraph = FunctionGraph(inputs, outputs, clone=False)

    def make_node(self, *lengths):
        return Apply(self, list(lengths), [self.fgraph.outputs[0].type()])

    def perform(self, node, inputs, outputs):
        raise NotImplementedError("LengthOfLengths is for JAX; exclude the rewrite alloc_of_known_shape")


@node_rewriter([Alloc])
def alloc_of_known_shape(fgraph, node):
    """Separate the arithmetic of shapes from that of arrays, whose results JAX does not know."""
    value, *shape = node.inputs
    known = [known_length(length) for length in shape]
    return None if known == shape else [node.op(value, *known)]


def known_length(length):
    """Return ``length`` computed by `LengthOfLengths`, or itself if it is an input or depends on values."""
    lengths = lengths_under(length)
    if not lengths or length in lengths:
        return length
    if not all(variable.owner and isinstance(variable.owner.op, Shape_i) for variable in lengths):
        return length
    return LengthOfLengths(lengths, length)(*lengths)


def lengths_under(scalar):
    """Return the variables from which elementwise operations compute ``scalar``."""
    if isinstance(scalar, Constant):
        return []
    op = None if scalar.owner is None else scalar.owner.op
    if not isinstance(op, (Elemwise, ScalarFromTensor, TensorFromScalar)):
        return [scalar]
    return list(dict.fromkeys(v for operand in scalar.owner.inputs for v in lengths_under(operand)))


# Before shapes are inferred, at 0.1, and after all simplifications.
optdb.register("slice_of_known_length", in2out(slice_of_known_length), "jax", position=0.05)
optdb.register("alloc_of_known_shape", in2out(alloc_of_known_shape), "jax", position=99)
