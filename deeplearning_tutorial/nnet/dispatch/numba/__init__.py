"""Numba kernels: each module mirrors the module of the Ops it implements."""

from deeplearning_tutorial.nnet.dispatch.numba import conv, pool, shape_hint  # noqa: F401
