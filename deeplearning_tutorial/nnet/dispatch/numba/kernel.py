"""How every kernel is compiled and made known to PyTensor."""

from functools import partial

import numba
from pytensor.link.numba.dispatch import basic
from pytensor.link.numba.dispatch.basic import register_funcify_default_op_cache_key

# Only the fused multiply-add. PyTensor's own choice also lets sums be reordered, which undoes steps that rely
# on rounding, such as the exact reduction in the hyperbolic tangent.
kernel_njit = partial(basic.numba_njit, fastmath={"contract"})


def register_kernel(op_class):
    """Register ``make_kernel(op, node) -> (function, cache version)`` for an Op.

    PyTensor's cache of compiled functions does not see an edited kernel: count the version up.
    """

    def decorator(make_kernel):
        @register_funcify_default_op_cache_key(op_class)
        def numba_funcify(op, node, **kwargs):
            # Numba starts its threads when it loads a parallel function from its cache, but not when it loads
            # one that was compiled around a cached parallel function; calling that would crash.
            numba.get_num_threads()
            return make_kernel(op, node, **kwargs)

        return make_kernel

    return decorator
