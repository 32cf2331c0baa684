"""Numba kernels of the Ops in `deeplearning_tutorial.nnet.fused`, module by module."""

from deeplearning_tutorial.nnet.dispatch.numba.fused import (  # noqa: F401
    column_sums,
    conv_pool,
    conv_pool_gradients,
    linear_log_likelihood,
    log_likelihood,
    matrix_product,
    rows,
    sum_of_squares,
    tanh,
)
