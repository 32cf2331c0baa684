"""The sums of a matrix's columns, and of feature maps, as Ops with which a rewrite replaces PyTensor's.

They are the gradient of a bias. PyTensor's Op sums along any axes of any array, and Numba takes ten times as
long to compile it.
"""

from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.tensor import tensor


class _Sums(Op):
    """Compute the sums along ``axes``, all but the second, in float64."""

    __props__ = ()

    def make_node(self, x):
        return Apply(self, [x], [tensor(dtype=x.dtype, shape=(x.type.shape[1],))])

    def infer_shape(self, *args):
        return [(args[-1][0][1],)]

    def perform(self, node, inputs, outputs):
        [x] = inputs
        outputs[0][0] = x.sum(axis=self.axes, dtype="float64").astype(x.dtype)


class ColumnSums(_Sums):
    """Compute ``x.sum(axis=0)`` of a matrix ``(rows, cols)``, summed in float64."""

    axes = (0,)


class MapSums(_Sums):
    """Compute ``x.sum(axis=(0, 2, 3))`` of feature maps ``(batch, maps, rows, cols)``, summed in float64."""

    axes = (0, 2, 3)
