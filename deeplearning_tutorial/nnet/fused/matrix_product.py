"""Products of two matrices as Ops, with which a rewrite replaces PyTensor's.

A BLAS has threads of its own, which compete with the kernels for the cores, and it adds in a different order
for each number of threads.
"""

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.tensor import tensor

from deeplearning_tutorial.nnet.sizes import check_shape


class MatrixProduct(Op):
    """Multiply matrices of one float type: ``(rows, inner)`` by ``(inner, cols)``."""

    __props__ = ()

    def make_node(self, a, b):
        return Apply(self, [a, b], [tensor(dtype=a.dtype, shape=(a.type.shape[0], b.type.shape[1]))])

    def infer_shape(self, *args):
        *_, node, [a_shape, b_shape] = args
        return [(a_shape[0], b_shape[1])]

    def perform(self, node, inputs, outputs):
        outputs[0][0] = np.dot(*inputs)


class BatchedMatrixProduct(Op):
    """Multiply the matrices of two stacks: ``(n, rows, inner)`` by ``(n, inner, cols)``."""

    __props__ = ()

    def make_node(self, a, b):
        n, rows, _ = a.type.shape
        n = b.type.shape[0] if n is None else n
        return Apply(self, [a, b], [tensor(dtype=a.dtype, shape=(n, rows, b.type.shape[2]))])

    def infer_shape(self, *args):
        *_, node, [a_shape, b_shape] = args
        return [(a_shape[0], a_shape[1], b_shape[2])]

    def perform(self, node, inputs, outputs):
        a, b = inputs
        check_shape("b", b.shape, (len(a), a.shape[2], b.shape[2]))
        outputs[0][0] = np.matmul(a, b)


class WeightUpdate(Op):
    """Compute ``weights - learning_rate * (dot(a, b) + weight_decay * weights)``, and ``(weights**2).sum()``.

    This is a step of gradient descent whose gradient is a product, which is never written to memory. The sum
    of squares, a penalty on the weights before the step, is computed if ``squares``, and the weights need not
    be read again for it. The two rates are matrices of one element, as elementwise Ops have them.
    """

    __props__ = ("inplace", "squares")

    def __init__(self, inplace=False, squares=True):
        self.inplace = inplace
        self.squares = squares
        if inplace:
            self.destroy_map = {0: [0]}

    def make_node(self, weights, a, b, learning_rate, weight_decay):
        squares = [tensor(dtype=weights.dtype, shape=())] if self.squares else []
        return Apply(self, [weights, a, b, learning_rate, weight_decay], [weights.type(), *squares])

    def infer_shape(self, *args):
        return [args[-1][0], *([()] if self.squares else [])]

    def perform(self, node, inputs, outputs):
        weights, a, b, learning_rate, weight_decay = inputs
        check_shape("weights", weights.shape, (len(a), b.shape[1]))
        check_shape("learning_rate", learning_rate.shape, (1, 1))
        check_shape("weight_decay", weight_decay.shape, (1, 1))
        step = learning_rate * (np.dot(a, b) + weight_decay * weights)
        if self.squares:
            outputs[1][0] = np.asarray(np.square(weights, dtype="float64").sum(), weights.dtype)
        outputs[0][0] = np.subtract(weights, step, out=weights if self.inplace else None)
