"""Implementations of the Ops for PyTensor's back ends, one package or module per back end.

Numba is PyTensor's default, so its kernels are registered at once.
"""

from deeplearning_tutorial.nnet.dispatch import numba  # noqa: F401
