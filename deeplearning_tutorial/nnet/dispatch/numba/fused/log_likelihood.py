"""Numba kernels of the log-likelihood of labels under a softmax."""

import numpy as np

from deeplearning_tutorial.nnet.dispatch.numba.jit import exact_njit, kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    BLOCK_EXPONENTIALS,
    block_of,
    check,
    parallel,
    register_kernel,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import vector_exp_of_negative
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, missing, result
from deeplearning_tutorial.nnet.fused.log_likelihood import LogLikelihood, LogLikelihoodGrad


@parallel(lambda real: (real[:, :], real[:, ::1], real[::1], real[::1]))
def softmax_block(memory, block, blocks, x, softmax, maxima, log_totals):
    """Compute the softmax of a block of rows, and the two terms of the logarithm of each row's divisor."""
    classes = x.shape[1]
    begin, end = block_of(block, blocks, len(x))
    # All rows at once: with ten classes alone the processor would wait for each result.
    exponentials = empty(memory, (end - begin, classes), x)
    for i in range(begin, end):
        largest = x[i, 0]
        for j in range(1, classes):
            largest = max(largest, x[i, j])
        for j in range(classes):
            exponentials[i - begin, j] = x[i, j] - largest
        maxima[i] = largest
    vector_exp_of_negative(exponentials, 0, exponentials, 0, exponentials.size)
    for i in range(begin, end):
        total = x.dtype.type(0)
        for j in range(classes):
            total += exponentials[i - begin, j]
        for j in range(classes):
            softmax[i, j] = exponentials[i - begin, j] / total
        log_totals[i] = np.log(total)


@kernel_njit
def check_labels(y, classes, examples):
    """Raise IndexError if a label is none of the classes, or there are more labels than examples."""
    if len(y) > examples:
        raise IndexError("there are more labels y than examples", len(y), examples)
    for i in range(len(y)):
        if not -classes <= y[i] < classes:
            raise IndexError("a label in y is not one of the classes", np.int64(y[i]), classes)


@kernel_njit
def from_first(label, classes):
    """Return a label as an index from the first class; a negative one counts from the last class."""
    return np.int64(label) if label >= 0 else np.int64(label) + classes


@exact_njit
def softmax_and_divisors(x):
    """Return the softmax of all rows, and the two terms of the logarithm of each row's divisor."""
    softmax, maxima, log_totals = result(x.shape, x), result(len(x), x), result(len(x), x)
    if x.size:
        check(softmax_block(max(1, x.size // BLOCK_EXPONENTIALS), x, softmax, maxima, log_totals))
    return softmax, maxima, log_totals


@kernel_njit
def log_likelihood(x, y):
    """Compute `LogLikelihood`."""
    batch, classes = x.shape
    check_labels(y, classes, batch)
    softmax, maxima, log_totals = softmax_and_divisors(x)
    log_likelihoods = result(len(y), x)
    check(missing(log_likelihoods))
    for i in range(len(y)):
        log_likelihoods[i] = x[i, from_first(y[i], classes)] - maxima[i] - log_totals[i]
    return log_likelihoods, softmax


@kernel_njit
def log_likelihood_grad(softmax, y, output_gradient):
    """Compute `LogLikelihoodGrad`."""
    if len(output_gradient) not in (1, len(y)):
        raise ValueError("output_gradient has another length than y", output_gradient.shape, y.shape)
    check_labels(y, softmax.shape[1], len(softmax))
    gradient = result(softmax.shape, softmax)
    check(missing(gradient))
    # Rows without a label come last.
    gradient[len(y) :] = 0
    for i in range(len(y)):
        weight = output_gradient[i if len(output_gradient) > 1 else 0]
        for j in range(softmax.shape[1]):
            gradient[i, j] = -weight * softmax[i, j]
        gradient[i, from_first(y[i], softmax.shape[1])] += weight
    return gradient


@register_kernel(LogLikelihood, lambda op: softmax_block)
def make_log_likelihood(op, _kernel):
    """Compile `LogLikelihood`."""
    return log_likelihood


@register_kernel(LogLikelihoodGrad)
def make_log_likelihood_grad(op):
    """Compile `LogLikelihoodGrad`."""
    return log_likelihood_grad
