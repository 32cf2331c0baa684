"""What ``theano.tensor.nnet`` and ``theano.tensor.signal`` gave: convolution and pooling for PyTensor."""

from deeplearning_tutorial.nnet import conv, dispatch, downsample, pool, rewrites
from deeplearning_tutorial.nnet.abstract_conv import conv2d
from deeplearning_tutorial.nnet.pool import pool_2d

__all__ = ["conv", "conv2d", "dispatch", "downsample", "pool", "pool_2d", "rewrites"]
