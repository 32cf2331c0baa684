"""Log-likelihood of labels under a linear classifier, with its gradients, in one pass over the examples."""

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.tensor import tensor

from deeplearning_tutorial.nnet.fused.log_likelihood import log_likelihood, log_likelihood_grad
from deeplearning_tutorial.nnet.sizes import check_shape


class LinearLogLikelihood(Op):
    """Compute the log-likelihoods of labels, and the gradients of the classifier's parameters.

    With ``scores = dot(x, W) + b`` the outputs are ``log(softmax(scores, axis=1))[arange(len(y)), y]`` and
    the gradients of ``sum(output_gradient * log_likelihoods)`` with respect to ``W`` and ``b``. ``x`` is
    (batch, features), ``W`` (features, classes), ``b`` (classes,). ``y`` holds at most ``batch`` integers, of
    which a negative one counts from the last class; ``output_gradient`` has the length of ``y``, or 1 if all
    are the same. A training step reads its minibatch from main memory; this Op reads it only once.
    """

    __props__ = ()

    def make_node(self, x, W, b, y, output_gradient):
        log_likelihoods = tensor(dtype=x.dtype, shape=y.type.shape)
        return Apply(self, [x, W, b, y, output_gradient], [log_likelihoods, W.type(), b.type()])

    def infer_shape(self, *args):
        _, W_shape, b_shape, y_shape, _ = args[-1]
        return [y_shape, W_shape, b_shape]

    def perform(self, node, inputs, outputs):
        x, W, b, y, output_gradient = inputs
        check_shape("b", b.shape, W.shape[1:])
        x = x[: len(y)]
        outputs[0][0], softmax = log_likelihood(np.dot(x, W) + b, y)
        gradient = log_likelihood_grad(softmax, y, output_gradient)
        outputs[1][0], outputs[2][0] = np.dot(x.T, gradient), gradient.sum(axis=0)
