"""What the layers of a network are: their shapes, parameters and connections, as a table."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class LayerSummary(NamedTuple):
    """What a layer is, for one image.

    A connection is an input, or the bias, that one unit takes. ``parameter_shapes`` has the shapes of arrays
    by name, ``parameters`` the number of values that are trained: weights without a connection do not count.
    """

    name: str
    shape: tuple[int, ...]
    parameter_shapes: Mapping[str, tuple[int, ...]] = {}
    parameters: int = 0
    connections: int = 0


def fully_connected(name, below, n_out):
    """Return the `LayerSummary` of ``n_out`` units, each of which takes all units of the layer ``below``."""
    n_in = int(np.prod(below.shape))
    count = (n_in + 1) * n_out
    return LayerSummary(name, (n_out,), {"W": (n_in, n_out), "b": (n_out,)}, count, count)


def parameter_shapes(layers):
    """Return the shape of each parameter of several layers by its name, such as ``C1.W``."""
    return {
        f"{layer.name}.{name}": shape for layer in layers for name, shape in layer.parameter_shapes.items()
    }


def summary_table(layers):
    """Return a table of the layers: output, trained parameters and connections, and their sums."""
    parameters = sum(layer.parameters for layer in layers)
    connections = sum(layer.connections for layer in layers)
    lines = [f"{'layer':8}{'output':14}{'parameters':>12}{'connections':>14}"]
    for layer in [*layers, LayerSummary("total", (), {}, parameters, connections)]:
        shape = " x ".join(map(str, layer.shape))
        lines.append(f"{layer.name:8}{shape:14}{layer.parameters:12,}{layer.connections:14,}")
    return "\n".join(lines)


def does_not_fit(argument, value, what, size, below):
    """Return a ValueError: ``what`` has sides of ``size``, more than the layer ``below`` gives it.

    Parameters
    ----------
    argument : str
        Name of the argument to correct.
    value
        What it was.
    what : str
        E.g. "the filters of C1".
    size : int
    below : LayerSummary
    """
    side = below.shape[1]
    return ValueError(
        f"{argument}={value} does not fit: {what} are {size}x{size}, {below.name} gives them only "
        f"{side}x{side}; use {side} or less there, or smaller filters, windows or strides below it"
    )
