"""Rewrites of PyTensor graphs, all but one for the Numba back end only.

These replace several Ops by one: ``conv_pool_fusion`` max-pooling of a convolution, with bias, tanh and
gradients; ``log_likelihood_fusion`` the logarithm of a softmax at integer labels, with its gradient;
``linear_log_likelihood`` that and the product of a classifier's weights and its examples; ``sum_of_squares``;
and ``weight_update`` a step of gradient descent.

These replace one of PyTensor's Ops: ``vector_tanh`` by a faster one, ``matrix_product`` by one that shares
the kernels' threads, and ``column_sums`` (of matrices, and of feature maps), ``row_softmax`` and
``row_argmax`` by ones that compile faster.

``updates_last`` changes no node. It runs updates in place last, so that a function that runs out of memory
has changed nothing. ``log_softmax``, also for the other back ends, prevents NaN where a probability is zero.

They are switched off like any of PyTensor's rewrites::

    pytensor.function(..., mode=pytensor.compile.get_default_mode().excluding("conv_pool_fusion"))
    PYTENSOR_FLAGS=optimizer_excluding=conv_pool_fusion:matrix_product python ...

The flag acts on PyTensor's default mode, not on one that ``mode=`` names.
"""

from pytensor.compile.mode import optdb

from deeplearning_tutorial.nnet.rewrites.column_sums import ColumnSumsRewriter
from deeplearning_tutorial.nnet.rewrites.conv_pool import ConvPoolFusion
from deeplearning_tutorial.nnet.rewrites.linear_log_likelihood import LinearLogLikelihoodRewriter
from deeplearning_tutorial.nnet.rewrites.log_likelihood import LogLikelihoodFusion
from deeplearning_tutorial.nnet.rewrites.log_softmax import LogSoftmaxRewriter
from deeplearning_tutorial.nnet.rewrites.matrix_product import (
    MatrixProductRewriter,
    WeightUpdateInplaceRewriter,
    WeightUpdateRewriter,
)
from deeplearning_tutorial.nnet.rewrites.rows import RowArgmaxRewriter, RowSoftmaxRewriter
from deeplearning_tutorial.nnet.rewrites.sum_of_squares import SumOfSquaresRewriter
from deeplearning_tutorial.nnet.rewrites.tanh import VectorTanhRewriter
from deeplearning_tutorial.nnet.rewrites.updates_last import UpdatesLastRewriter

# Before all simplifications, which begin at 0.6: the graph is then still as ``grad`` built it. They would
# also move the tanh past a reshape that follows it, and leave one tanh for the output and another for the
# gradient.
optdb.register("conv_pool_fusion", ConvPoolFusion(), "numba", position=0.5)
optdb.register("log_likelihood_fusion", LogLikelihoodFusion(), "numba", position=0.5)
# After the log-likelihoods have been recognised; on every back end, because it adds only PyTensor's Ops.
optdb.register("log_softmax", LogSoftmaxRewriter, "fast_run", position=0.51)
optdb.register("vector_tanh", VectorTanhRewriter, "numba", position=0.55)
# After the simplifications of products, before elementwise Ops are merged into loops, at 48.
optdb.register("matrix_product", MatrixProductRewriter, "numba", position=20)
optdb.register("row_softmax", RowSoftmaxRewriter, "numba", position=20)
optdb.register("row_argmax", RowArgmaxRewriter, "numba", position=20)
optdb.register("linear_log_likelihood", LinearLogLikelihoodRewriter, "numba", position=20.5)
optdb.register("weight_update", WeightUpdateRewriter, "numba", position=21)
optdb.register("sum_of_squares", SumOfSquaresRewriter, "numba", position=20)
# After the log-likelihood's gradients, of which the bias's is such a sum, have been recognised.
optdb.register("column_sums", ColumnSumsRewriter, "numba", position=22)
# Where PyTensor lets its products of matrices overwrite an input.
optdb.register("weight_update_inplace", WeightUpdateInplaceRewriter, "numba", "inplace", position=70)
# After all rewrites that make Ops work in place.
optdb.register("updates_last", UpdatesLastRewriter(), "numba", position=110)
