"""Shapes that the caller knows beforehand: made static, and checked when the function runs."""

from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.tensor import tensor

from deeplearning_tutorial.nnet.integers import division_note, folded_tuple, is_integer
from deeplearning_tutorial.nnet.sizes import check_sizes


class ShapeHint(Op):
    """Return ``x`` with the given lengths in its static shape; raise ValueError if its data has others."""

    __props__ = ("name", "shape")
    view_map = {0: [0]}

    def __init__(self, name, shape):
        self.name = name
        self.shape = shape

    def make_node(self, x):
        lengths = [
            known if hint is None else hint for known, hint in zip(x.type.shape, self.shape, strict=True)
        ]
        return Apply(self, [x], [tensor(dtype=x.dtype, shape=tuple(lengths))])

    def infer_shape(self, *args):
        *_, node, [shape] = args
        return [tuple(n if hint is None else hint for n, hint in zip(shape, self.shape, strict=True))]

    def pullback(self, inputs, outputs, cotangents):
        return [cotangents[0]]

    def pushforward(self, inputs, outputs, tangents):
        return [tangents[0]]

    def perform(self, node, inputs, outputs):
        [x] = inputs
        if any(hint not in (None, n) for n, hint in zip(x.shape, self.shape, strict=True)):
            raise ValueError(self.message(), x.shape)
        outputs[0][0] = x

    def message(self):
        """Return the error's message; the data's shape is the error's second argument."""
        return f"{self.name}={self.shape} contradicts the data, whose shape follows; correct one of them"


def lengths_of(x):
    """Return the lengths of ``x``: ints where they are static, else symbolic."""
    return [x.shape[axis] if n is None else n for axis, n in enumerate(x.type.shape)]


def apply_shape_hint(name, x, shape):
    """Give ``x`` the static shape ``shape``.

    Parameters
    ----------
    name : str
        Name of the argument ``shape`` in the caller, for messages.
    x : TensorVariable
    shape : tuple of (int, constant or None), or None

    Returns
    -------
    TensorVariable
        ``x`` itself if its static shape already has these lengths.

    Raises
    ------
    ValueError
        If ``shape`` does not have one length per dimension, or contradicts the static shape.
    """
    if shape is None:
        return x
    shape = folded_tuple(shape)
    if not isinstance(shape, tuple) or len(shape) != x.type.ndim:
        raise ValueError(
            f"{name}={shape!r} is not a tuple of {x.type.ndim} lengths; use None for an unknown one"
        )
    for hint in shape:
        if hint is not None and (not is_integer(hint) or hint < 0):
            raise ValueError(
                f"{name}={shape!r} holds {hint!r}; use ints or constants, or None for an unknown length"
                f"{division_note(hint)}"
            )
    check_sizes(name, shape, [hint for hint in shape if hint is not None])
    known = x.type.shape
    if any(None not in (n, hint) and n != hint for n, hint in zip(known, shape, strict=True)):
        raise ValueError(f"{name}={shape} contradicts the static shape {known}; correct one of them")
    if all(hint is None or n is not None for n, hint in zip(known, shape, strict=True)):
        return x
    return ShapeHint(name, tuple(None if hint is None else int(hint) for hint in shape))(x)
