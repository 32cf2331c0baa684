"""Numba kernels of the log-likelihood of labels under a softmax."""

import numpy as np

from deeplearning_tutorial.nnet.dispatch.numba.kernel import kernel_njit, register_kernel
from deeplearning_tutorial.nnet.log_likelihood import LogLikelihood, LogLikelihoodGrad

# PyTensor's cache of compiled functions does not see an edited kernel: count up whenever one changes.
CACHE_VERSION = 2


@kernel_njit
def log_likelihood(x, y):
    """Compute `LogLikelihood`."""
    batch, classes = x.shape
    if len(y) > batch:
        raise IndexError("there are more labels than examples")
    softmax = np.empty((batch, classes), x.dtype)
    chosen = np.empty(len(y), x.dtype)
    for i in range(batch):
        largest = x[i, 0]
        for j in range(1, classes):
            largest = max(largest, x[i, j])
        total = x.dtype.type(0)
        for j in range(classes):
            softmax[i, j] = np.exp(x[i, j] - largest)
            total += softmax[i, j]
        for j in range(classes):
            softmax[i, j] /= total
        if i < len(y):
            if not -classes <= y[i] < classes:
                raise IndexError("a label is not one of the classes")
            chosen[i] = x[i, y[i]] - largest - np.log(total)
    return chosen, softmax


@kernel_njit
def log_likelihood_grad(softmax, y, output_gradient):
    """Compute `LogLikelihoodGrad`."""
    if len(output_gradient) not in (1, len(y)) or len(y) > len(softmax):
        raise ValueError("output_gradient has another length than y")
    gradient = np.zeros(softmax.shape, softmax.dtype)
    for i in range(len(y)):
        here = output_gradient[i if len(output_gradient) > 1 else 0]
        for j in range(softmax.shape[1]):
            gradient[i, j] = -here * softmax[i, j]
        gradient[i, y[i]] += here
    return gradient


@register_kernel(LogLikelihood)
def make_log_likelihood(op, node, **kwargs):
    """Compile `LogLikelihood`."""
    return log_likelihood, CACHE_VERSION


@register_kernel(LogLikelihoodGrad)
def make_log_likelihood_grad(op, node, **kwargs):
    """Compile `LogLikelihoodGrad`."""
    return log_likelihood_grad, CACHE_VERSION
