"""Softmax and argmax of a matrix's rows as Ops, with which rewrites replace PyTensor's.

A classifier's prediction needs both. PyTensor's Ops work along any axes of any array: Numba spent most of the
compilation of LeNet's errors on them.
"""

from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.tensor import tensor

from deeplearning_tutorial.nnet.fused.log_likelihood import exponentials_of_rows


class RowSoftmax(Op):
    """Compute ``softmax(x, axis=1)`` of a matrix ``(rows, cols)``."""

    __props__ = ()

    def make_node(self, x):
        return Apply(self, [x], [x.type()])

    def infer_shape(self, *args):
        return [args[-1][0]]

    def perform(self, node, inputs, outputs):
        _, exponentials, totals = exponentials_of_rows(*inputs)
        outputs[0][0] = exponentials / totals


class RowArgmax(Op):
    """Compute ``argmax(x, axis=1)`` of a matrix ``(rows, cols)``: the first NaN, else the first maximum.

    Raises
    ------
    ValueError
        If there are no columns when the Op runs.
    """

    __props__ = ()

    def make_node(self, x):
        return Apply(self, [x], [tensor(dtype="int64", shape=(x.type.shape[0],))])

    def infer_shape(self, *args):
        return [(args[-1][0][0],)]

    def perform(self, node, inputs, outputs):
        outputs[0][0] = inputs[0].argmax(axis=1)
