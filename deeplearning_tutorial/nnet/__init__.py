"""Convolution, pooling and the other functions of ``theano.tensor.nnet`` and ``theano.tensor.signal``."""

from deeplearning_tutorial.nnet import conv, dispatch, downsample, pool, rewrites
from deeplearning_tutorial.nnet.abstract_conv import conv2d
from deeplearning_tutorial.nnet.activations import relu, sigmoid, softmax, softplus
from deeplearning_tutorial.nnet.crossentropy import binary_crossentropy, categorical_crossentropy
from deeplearning_tutorial.nnet.local_contrast_normalisation import local_contrast_normalisation
from deeplearning_tutorial.nnet.local_response_normalisation import local_response_normalisation
from deeplearning_tutorial.nnet.pool import pool_2d
from deeplearning_tutorial.nnet.poolings import (
    average_pool,
    deformation_constrained_pool,
    l2_pool,
    max_pool,
    stochastic_pool,
    sum_pool,
)
from deeplearning_tutorial.nnet.uniform_numbers import uniform_numbers
from deeplearning_tutorial.nnet.upsampling import bilinear_upsampling, conv2d_transpose

__all__ = [
    "average_pool",
    "bilinear_upsampling",
    "binary_crossentropy",
    "categorical_crossentropy",
    "conv",
    "conv2d",
    "conv2d_transpose",
    "deformation_constrained_pool",
    "dispatch",
    "downsample",
    "l2_pool",
    "local_contrast_normalisation",
    "local_response_normalisation",
    "max_pool",
    "pool",
    "pool_2d",
    "relu",
    "rewrites",
    "sigmoid",
    "softmax",
    "softplus",
    "stochastic_pool",
    "sum_pool",
    "uniform_numbers",
]
