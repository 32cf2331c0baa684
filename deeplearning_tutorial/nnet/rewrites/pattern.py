"""Compare parts of graphs.

What is large to look for is written as PyTensor itself writes it, whose gradients differ from release to
release.
"""

import numpy as np
from pytensor.graph.basic import Constant
from pytensor.tensor.elemwise import Elemwise


def matches(pattern, variable, found):
    """Tell whether ``variable`` is computed as ``pattern`` is; note in ``found`` what stands for what."""
    if pattern in found:
        return found[pattern] is variable
    found[pattern] = variable
    if isinstance(pattern, Constant):
        return isinstance(variable, Constant) and np.array_equal(pattern.data, variable.data)
    if pattern.owner is None:
        return variable.type.ndim == pattern.type.ndim and variable.type.dtype == pattern.type.dtype
    if variable.owner is None or variable.owner.op != pattern.owner.op:
        return False
    inputs, pattern_inputs = variable.owner.inputs, pattern.owner.inputs
    return len(inputs) == len(pattern_inputs) and all(
        matches(*pair, found) for pair in zip(pattern_inputs, inputs, strict=True)
    )


def applies(variable, op_class):
    """Tell whether ``variable`` is computed by an Op of ``op_class``."""
    return variable.owner is not None and isinstance(variable.owner.op, op_class)


def is_elementwise(node, scalar_op_class):
    """Tell whether ``node``, which may be None, applies an elementwise Op of that kind."""
    op = None if node is None else node.op
    return isinstance(op, Elemwise) and isinstance(op.scalar_op, scalar_op_class)
