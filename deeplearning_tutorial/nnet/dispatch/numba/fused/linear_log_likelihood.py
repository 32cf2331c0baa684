"""Numba kernel of the log-likelihood of labels under a linear classifier, with its gradients.

A chunk of examples is multiplied by the weights and, while it is in the cache, by the gradient of its scores.
Vectors of zeros, as in the background of digits, are skipped.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from deeplearning_tutorial.nnet.dispatch.numba.arrays import all_finite, contiguous
from deeplearning_tutorial.nnet.dispatch.numba.fused.log_likelihood import check_labels, from_first
from deeplearning_tutorial.nnet.dispatch.numba.fused.matrix_product import (
    copy_block,
    in_row_order,
    steps,
    transposed_columns,
)
from deeplearning_tutorial.nnet.dispatch.numba.jit import exact_njit, kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.kernel import (
    block_of,
    check,
    parallel,
    register_kernel,
    tuple_type,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.emitter import REGISTER_BYTES
from deeplearning_tutorial.nnet.dispatch.numba.llvm.narrow_products import (
    INNER_COLUMNS,
    INNER_ROWS,
    OUTER_COLUMNS,
    OuterShape,
    add_outer_rows,
    inner_tile,
    list_vectors,
)
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import Grid, Rows
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import vector_add, vector_exp_of_negative
from deeplearning_tutorial.nnet.dispatch.numba.memory import empty, missing, result, zeros
from deeplearning_tutorial.nnet.dispatch.numba.transpose import transpose
from deeplearning_tutorial.nnet.fused.linear_log_likelihood import LinearLogLikelihood

# Examples in a block, each of which has a gradient of its own to add to the others.
BLOCK_ROWS = 128
# Examples that stay in the cache, with the weights and their gradient; at most 64 groups of INNER_ROWS.
CHUNK_ROWS = 32


class Classifier(NamedTuple):
    """The parameters of a linear classifier."""

    weights: Any
    biases: Any


class Results(NamedTuple):
    """Log-likelihoods, and the gradients of the classifier's parameters, or partial sums of them."""

    log_likelihoods: Any
    gradient: Any
    bias_gradient: Any


@exact_njit
def softmax_columns(scores, b, labels, log_likelihoods, maxima, totals):
    """Add ``b`` to the scores and replace them by exponentials, whose ratio to ``totals`` is the softmax.

    ``scores`` is (classes, rows): neighbouring elements belong to different examples, so that all loops
    become vectors. There may be more rows than labels. ``maxima`` is scratch.
    """
    classes, rows = scores.shape
    for r in range(rows):
        maxima[r] = -np.inf
        totals[r] = 0
    for c in range(classes):
        for r in range(rows):
            scores[c, r] += b[c]
            maxima[r] = max(maxima[r], scores[c, r])
    for c in range(classes):
        for r in range(rows):
            scores[c, r] -= maxima[r]
    for r in range(len(labels)):
        log_likelihoods[r] = scores[labels[r], r]
    vector_exp_of_negative(scores, 0, scores, 0, scores.size)
    for c in range(classes):
        for r in range(rows):
            totals[r] += scores[c, r]
    for r in range(len(labels)):
        log_likelihoods[r] -= np.log(totals[r])


@parallel(
    lambda real: (
        real[:, :], tuple_type(Classifier, real[:, ::1], real[::1]), types.int64[::1], real[::1],
        tuple_type(Results, real[::1], real[:, :, ::1], types.float64[:, ::1]),
    ),
)  # fmt: skip
def rows_block(memory, block, blocks, x, classifier, labels, output_gradient, results):
    """Work on a block of examples; weights are (classes, features), gradients (blocks, classes, features)."""
    weights, gradients, bias_gradients = classifier.weights, results.gradient, results.bias_gradient
    classes, features = weights.shape
    x_step, _ = steps(x)
    n_vectors = features // (REGISTER_BYTES // x.itemsize)
    scores = zeros(memory, (classes, CHUNK_ROWS), x)
    maxima, totals = empty(memory, CHUNK_ROWS, x), empty(memory, CHUNK_ROWS, x)
    score_gradients = empty(memory, (CHUNK_ROWS, classes), x)
    numbers, masks = empty(memory, n_vectors, np.int64), empty(memory, n_vectors, np.int64)
    gradients[block] = 0
    bias_gradients[block] = 0
    # Zero times infinity or NaN is not zero.
    every = not all_finite(weights.reshape(weights.size))
    # Tiles of about equal width: a narrow last one would have to wait for its few sums.
    tiles = (classes + INNER_COLUMNS - 1) // INNER_COLUMNS
    tile_columns = (classes + tiles - 1) // tiles

    begin, end = block_of(block, blocks, len(labels))
    for first in range(begin, end, CHUNK_ROWS):
        n = min(CHUNK_ROWS, end - first)
        masks[:] = 0
        for r in range(0, n, INNER_ROWS):
            # A single row is multiplied twice.
            step = 1 if r + INNER_ROWS <= n else 0
            at = (first + r) * x_step
            examples = Rows(x, at, step * x_step)
            count = list_vectors(numbers, examples, features, every)
            for i in range(count):
                masks[numbers[i]] |= np.int64(1) << (r // INNER_ROWS)
            for c in range(0, classes, tile_columns):
                target = Grid(scores, c * CHUNK_ROWS + r, step, CHUNK_ROWS)
                columns, n_columns = Rows(weights, c * features, features), min(tile_columns, classes - c)
                inner_tile(target, examples, columns, numbers, count, features, n_columns)
        rows = slice(first, first + n)
        log_likelihoods = results.log_likelihoods[rows]
        softmax_columns(scores, classifier.biases, labels[rows], log_likelihoods, maxima, totals)

        score_gradients[:] = 0
        for r in range(n):
            weight = output_gradient[first + r if len(output_gradient) > 1 else 0]
            factor = -weight / totals[r]
            for c in range(classes):
                score_gradients[r, c] = factor * scores[c, r]
            score_gradients[r, labels[first + r]] += weight
            for c in range(classes):
                bias_gradients[block, c] += score_gradients[r, c]
        if not all_finite(score_gradients.reshape(score_gradients.size)):
            masks[:] = (np.int64(1) << ((n + INNER_ROWS - 1) // INNER_ROWS)) - 1
        for c in range(0, classes, OUTER_COLUMNS):
            add_outer_rows(
                Rows(gradients, (block * classes + c) * features, features),
                Rows(x, first * x_step, x_step),
                Rows(score_gradients, c, classes),
                OuterShape(n, min(OUTER_COLUMNS, classes - c), features),
                masks,
                CHUNK_ROWS * x_step,
            )


@parallel(
    lambda real: (
        real[:, :], tuple_type(Classifier, real[:, :], real[:]), types.int64[::1], real[:],
        tuple_type(Results, real[::1], real[:, ::1], real[::1]),
    ),
    uses=(copy_block, rows_block),
)  # fmt: skip
def all_rows(memory, block, blocks, x, classifier, labels, output_gradient, results):
    """Compute `LinearLogLikelihood` in a single block."""
    W = classifier.weights
    features, classes = W.shape
    # Without examples the gradients are zeros, which one block writes.
    blocks = max(1, len(labels) // BLOCK_ROWS)
    gradients = empty(memory, (blocks, classes, features), x)
    bias_gradients = empty(memory, (blocks, classes), np.float64)
    x, output_gradient = in_row_order(memory, x), contiguous(memory, output_gradient)
    by_classes = Classifier(transposed_columns(memory, W), contiguous(memory, classifier.biases))
    partial = Results(results.log_likelihoods, gradients, bias_gradients)
    check(rows_block(blocks, x, by_classes, labels, output_gradient, partial))
    for block in range(1, blocks):
        vector_add(gradients, 0, gradients, block * W.size, W.size)
        vector_add(bias_gradients, 0, bias_gradients, block * classes, classes)
    transpose(Rows(results.gradient, 0, classes), Rows(gradients, 0, features), classes, features)
    for c in range(classes):
        results.bias_gradient[c] = bias_gradients[0, c]


@register_kernel(LinearLogLikelihood, lambda op: all_rows)
def make_linear_log_likelihood(op, all_rows):
    """Compile `LinearLogLikelihood`."""

    @kernel_njit
    def linear_log_likelihood(x, W, b, y, output_gradient):
        features, classes = W.shape
        if x.shape[1] != features or len(b) != classes:
            raise ValueError("x, W and b do not fit each other", x.shape, W.shape, len(b))
        if len(output_gradient) not in (1, len(y)):
            raise ValueError("output_gradient has another length than y", output_gradient.shape, y.shape)
        check_labels(y, classes, len(x))
        labels = result(len(y), np.int64)
        check(missing(labels))
        for i in range(len(y)):
            labels[i] = from_first(y[i], classes)
        log_likelihoods, gradient, bias_gradient = result(len(y), x), result(W.shape, x), result(classes, x)
        results = Results(log_likelihoods, gradient, bias_gradient)
        check(all_rows(1, x, Classifier(W, b), labels, output_gradient, results))
        return log_likelihoods, gradient, bias_gradient

    return linear_log_likelihood
