"""What ``theano.tensor.nnet`` and ``theano.tensor.signal`` gave: convolution and pooling for PyTensor."""

from deeplearning_tutorial.nnet import conv, dispatch, downsample, pool, rewrites
from deeplearning_tutorial.nnet.abstract_conv import conv2d
from deeplearning_tutorial.nnet.activations import relu, sigmoid, softmax, softplus
from deeplearning_tutorial.nnet.crossentropy import binary_crossentropy, categorical_crossentropy
from deeplearning_tutorial.nnet.local_response_normalisation import local_response_normalisation
from deeplearning_tutorial.nnet.pool import pool_2d
from deeplearning_tutorial.nnet.upsampling import bilinear_upsampling, conv2d_transpose

__all__ = [
    "bilinear_upsampling",
    "binary_crossentropy",
    "categorical_crossentropy",
    "conv",
    "conv2d",
    "conv2d_transpose",
    "dispatch",
    "downsample",
    "local_response_normalisation",
    "pool",
    "pool_2d",
    "relu",
    "rewrites",
    "sigmoid",
    "softmax",
    "softplus",
]
