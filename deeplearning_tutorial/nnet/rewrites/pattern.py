"""Compare parts of graphs.

What to look for is written as PyTensor itself writes it, whose gradients differ from release to release.
"""

import numpy as np
from pytensor.graph.basic import Constant


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
