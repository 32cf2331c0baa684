"""Numba implementation of the check of shape hints."""

from pytensor.link.numba.dispatch.basic import numba_njit, register_funcify_default_op_cache_key

from deeplearning_tutorial.nnet.shape_hint import ShapeHint


@register_funcify_default_op_cache_key(ShapeHint)
def numba_funcify_ShapeHint(op, node, **kwargs):
    """Compile `ShapeHint`: compare the lengths, copy nothing."""
    message = op.message()
    # Numba has no tuples that mix ints and None: an unknown length is -1.
    lengths = tuple(-1 if hint is None else hint for hint in op.shape)

    @numba_njit
    def shape_hint(x):
        for axis in range(x.ndim):
            if lengths[axis] >= 0 and lengths[axis] != x.shape[axis]:
                raise ValueError(message, x.shape)
        return x

    return shape_hint, 1
