"""The hyperbolic tangent as an Op, with which a rewrite replaces the elementwise one."""

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op


class VectorTanh(Op):
    """Compute ``tanh(x)``, vector by vector where the elementwise Op calls a function for each element."""

    __props__ = ()

    def make_node(self, x):
        return Apply(self, [x], [x.type()])

    def infer_shape(self, *args):
        return args[-1]

    def perform(self, node, inputs, outputs):
        outputs[0][0] = np.tanh(inputs[0])
