"""What the initial weights must know of an activation."""

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import ancestors


def is_sigmoid(output, x):
    """Tell by its values whether ``output`` is the sigmoid of ``x``, which has many names and spellings.

    Parameters
    ----------
    output, x : TensorVariable
        What an activation gives, and what it was given.

    Returns
    -------
    bool
        False where ``output`` depends on anything else, too.
    """
    # The tutorial's own, and none at all, without an evaluation for each layer of each start.
    if output is x or (output.owner is not None and output.owner.op == pt.tanh):
        return False
    used = ancestors([output], blockers=[x])
    if any(leaf.owner is None and leaf is not x and not isinstance(leaf, Constant) for leaf in used):
        return False
    values = np.resize(np.linspace(-4, 4, 9), [9 if n is None else n for n in x.type.shape]).astype(x.dtype)
    # Op by Op, for a single evaluation.
    mode = Mode(linker="py", optimizer=None)
    result = pytensor.function([x], output, mode=mode, on_unused_input="ignore")(values)
    return result.shape == values.shape and np.allclose(result, 1 / (1 + np.exp(-values)), rtol=1e-4, atol=0)
