"""Pooling as a layer of its own, including the trained one of 1998."""

import numpy as np
import pytensor

from deeplearning_tutorial.nnet import max_pool, sum_pool
from deeplearning_tutorial.nnet.poolings import POOLINGS_BY_NAME

POOLINGS = (*POOLINGS_BY_NAME, "1998")


class Subsampling:
    """Pooling of a `Convolution`.

    Parameters
    ----------
    below : Convolution
    n_maps : int
        Its filters.
    pooling : {'max', 'average', 'sum', 'l2', '1998'}
        What to take of each window: see `max_pool`, `average_pool`, `sum_pool` and `l2_pool`. '1998'
        multiplies the sum by a coefficient, adds a bias, both trained and one of each per map, and applies
        ``activation`` (LeCun et al., 1998, section II.B).
    activation : callable
        Elementwise and non-decreasing.
    poolsize, stride : tuple of int
        Rows and columns of the windows, and from one window to the next.

    Attributes
    ----------
    coefficient, b : shared variable
        With '1998' only; shape ``(n_maps,)``.
    params : list of shared variables
        ``[coefficient, b]`` with '1998', else none.
    output : TensorVariable
        Shape ``(batch, n_maps, rows', cols')``, as `pool_2d` has it with ``ignore_border=True``.

    Notes
    -----
    The coefficients start at one over the size of the windows, so that a sum begins as an average; ``b``
    starts at zero. The maximum is taken before bias and activation, which gives the same and computes less.
    """

    def __init__(self, below, n_maps, pooling, activation, *, poolsize=(2, 2), stride=(2, 2)):
        floatX = pytensor.config.floatX
        self.input = below.output
        self.params = []

        if pooling == "max":
            self.output = below.activate(max_pool(below.convolved, poolsize, stride))
        elif pooling == "1998":
            self.coefficient, self.b = self.params = [
                pytensor.shared(np.full((n_maps,), value, floatX), name=name, borrow=True, shape=(n_maps,))
                for name, value in (("coefficient", 1 / np.prod(poolsize)), ("b", 0))
            ]
            coefficient, b = (param.dimshuffle("x", 0, "x", "x") for param in self.params)
            self.output = activation(coefficient * sum_pool(below.output, poolsize, stride) + b)
        else:
            self.output = POOLINGS_BY_NAME[pooling](below.output, poolsize, stride)
