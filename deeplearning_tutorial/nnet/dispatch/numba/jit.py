"""How the functions of kernels are compiled."""

from functools import partial

from pytensor.link.numba.dispatch.basic import numba_njit

# Only the fused multiply-add. PyTensor's own choice also lets sums be reordered, which undoes steps that rely
# on rounding, such as the exact reduction in the hyperbolic tangent.
kernel_njit = partial(numba_njit, fastmath={"contract"})

# Where every operation is rounded by itself, unless the code says `multiply_add`. LLVM fuses multiply-adds in
# other places from release to release; the published figures depend on the last digits.
exact_njit = partial(numba_njit, fastmath=False, forceinline=True)
