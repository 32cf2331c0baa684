"""Numba kernels: each module mirrors the module of the Ops it implements."""

from deeplearning_tutorial.nnet.dispatch.numba import conv, conv_pool, pool, shape_hint  # noqa: F401
