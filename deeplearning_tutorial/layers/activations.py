"""Activations by name, and the scale of the initial weights that each needs."""

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import ancestors

from deeplearning_tutorial.nnet import relu


def scaled_tanh(x):
    """Compute ``1.7159 * tanh(2 / 3 * x)``, which is 1 at 1 and -1 at -1 (LeCun et al., 1998, appendix A).

    Parameters
    ----------
    x : tensor_like
        Any shape.

    Returns
    -------
    TensorVariable
        The shape of ``x``.
    """
    return 1.7159 * pt.tanh(2 / 3 * x)


# All are non-decreasing, so a maximum may be taken before them.
ACTIVATIONS = {"tanh": pt.tanh, "relu": relu, "sigmoid": pt.sigmoid, "scaled_tanh": scaled_tanh}


def activation_name(activation):
    """Return the name by which files hold an activation: its name here, or else its module and name."""
    for name, known in ACTIVATIONS.items():
        if activation is known:
            return name
    name = getattr(activation, "__qualname__", None) or str(activation)
    return f"{getattr(activation, '__module__', None) or type(activation).__module__}.{name}"


def check_activation(activation):
    """Raise ValueError unless ``activation`` is a callable."""
    if not callable(activation):
        raise ValueError(
            f"activation={activation!r} is not a function; use e.g. activation=pytensor.tensor.tanh"
        )


def weight_factor(activation, output=None, x=None):
    """Return the factor of the initial weights: 4 for the sigmoid, else 1 (Glorot and Bengio, 2010).

    Parameters
    ----------
    activation : callable or None
        Elementwise.
    output, x : TensorVariable, optional
        What it returned, and its argument. Without them, it is called.

    Returns
    -------
    int
    """
    if activation is None or any(activation is known for known in ACTIVATIONS.values()):
        return 4 if activation is pt.sigmoid else 1
    if output is None:
        x = pt.dvector("x")
        output = activation(x)
    return 4 if is_sigmoid(output, x) else 1


def is_sigmoid(output, x):
    """Determine by its values whether ``output`` is the sigmoid of ``x``, which has many names and spellings.

    Parameters
    ----------
    output, x : TensorVariable
        What an activation returned, and its argument.

    Returns
    -------
    bool
        False if ``output`` depends on anything else as well.
    """
    # The commonest without an evaluation for each layer of each start.
    if output is x or (output.owner is not None and output.owner.op == pt.tanh):
        return False
    used = ancestors([output], blockers=[x])
    if any(leaf.owner is None and leaf is not x and not isinstance(leaf, Constant) for leaf in used):
        return False
    values = np.resize(np.linspace(-4, 4, 9), [9 if n is None else n for n in x.type.shape]).astype(x.dtype)
    # Op by Op: compiling would take longer than a single evaluation.
    mode = Mode(linker="py", optimizer=None)
    result = pytensor.function([x], output, mode=mode, on_unused_input="ignore")(values)
    return result.shape == values.shape and np.allclose(result, 1 / (1 + np.exp(-values)), rtol=1e-4, atol=0)
