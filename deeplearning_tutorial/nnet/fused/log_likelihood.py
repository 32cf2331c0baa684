"""Log-likelihood of labels under a softmax as one Op, with which a rewrite replaces five.

Theano also had such an Op (``crossentropy_softmax_1hot``). Without it a softmax, its logarithm, advanced
indexing and the gradients of all three are computed one after another.
"""

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.tensor import tensor


def exponentials_of_rows(x):
    """Return each row minus its maximum, the exponentials of these, and their sums, with NumPy."""
    shifted = x - x.max(axis=1, keepdims=True, initial=-np.inf)
    exponentials = np.exp(shifted)
    return shifted, exponentials, exponentials.sum(axis=1, keepdims=True)


def log_likelihood(x, y):
    """Compute `LogLikelihood`'s outputs with NumPy."""
    shifted, exponentials, totals = exponentials_of_rows(x)
    return (shifted - np.log(totals))[np.arange(len(y)), y], exponentials / totals


def log_likelihood_grad(softmax, y, output_gradient):
    """Compute `LogLikelihoodGrad`'s output with NumPy."""
    n = len(y)
    gradient = np.zeros_like(softmax)
    gradient[:n] = -output_gradient[:, np.newaxis] * softmax[:n]
    gradient[np.arange(n), y] += output_gradient
    return gradient


class LogLikelihood(Op):
    """Compute ``log(softmax(x, axis=1))[arange(len(y)), y]`` and the softmax.

    ``x`` is (batch, classes); ``y`` holds integers, of which a negative one counts from the last class.
    """

    __props__ = ()

    def make_node(self, x, y):
        return Apply(self, [x, y], [tensor(dtype=x.dtype, shape=y.type.shape), x.type()])

    def infer_shape(self, *args):
        *_, node, [x_shape, y_shape] = args
        return [y_shape, x_shape]

    def perform(self, node, inputs, outputs):
        outputs[0][0], outputs[1][0] = log_likelihood(*inputs)


class LogLikelihoodGrad(Op):
    """Gradient of `LogLikelihood`'s first output with respect to x.

    ``output_gradient`` is (batch,), or (1,) if all are the same.
    """

    __props__ = ()

    def make_node(self, softmax, y, output_gradient):
        return Apply(self, [softmax, y, output_gradient], [softmax.type()])

    def infer_shape(self, *args):
        return [args[-1][0]]

    def perform(self, node, inputs, outputs):
        outputs[0][0] = log_likelihood_grad(*inputs)
