"""Numba kernels: each module mirrors the module of the Ops it implements."""

from deeplearning_tutorial.nnet.dispatch.numba import (  # noqa: F401
    column_sums,
    conv,
    conv_gradients,
    conv_pool,
    conv_pool_gradients,
    linear_log_likelihood,
    log_likelihood,
    matrix_product,
    pool,
    rows,
    shape_hint,
    sum_of_squares,
    tanh,
)
