"""Numba kernels: each module mirrors the module of the Ops it implements."""

from deeplearning_tutorial.nnet.dispatch.numba import (  # noqa: F401
    ahead,
    compilation,
    conv,
    conv_gradients,
    fused,
    pool,
    shape_hint,
)
