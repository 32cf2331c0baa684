"""The limits of sizes, for jitted code."""

from deeplearning_tutorial.nnet import sizes
from deeplearning_tutorial.nnet.dispatch.numba.jit import kernel_njit

has_too_many = kernel_njit(sizes.has_too_many)
