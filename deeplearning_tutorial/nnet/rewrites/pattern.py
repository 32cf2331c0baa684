"""Compare parts of graphs.

A large pattern is built by PyTensor itself, because its gradients differ from release to release.
"""

import numpy as np
from pytensor.graph.basic import Constant
from pytensor.tensor.elemwise import Elemwise


def matches(pattern, variable, found):
    """Tell whether ``variable`` is computed as ``pattern`` is; add to ``found`` what each part stands for."""
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


def clients_of(fgraph, variable):
    """List the nodes that use ``variable``, and the graph's output if it is one, each once."""
    return list(dict.fromkeys(node for node, _index in fgraph.clients[variable]))


def only_client(fgraph, variable, ignored=()):
    """Return the only node that uses ``variable``, apart from those in ``ignored``; None if there is none."""
    clients = [node for node in clients_of(fgraph, variable) if node not in ignored]
    return clients[0] if len(clients) == 1 else None


def is_elementwise(node, scalar_op_class):
    """Tell whether ``node``, which may be None, applies an elementwise Op of that kind."""
    op = None if node is None else node.op
    return isinstance(op, Elemwise) and isinstance(op.scalar_op, scalar_op_class)
