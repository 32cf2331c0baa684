import numpy as np
import pytensor
import pytensor.tensor as pt
from numba.core.callconv import CPUCallConv

from deeplearning_tutorial.nnet import conv2d, pool_2d


def test_no_type_of_an_exceptions_arguments_says_their_values(monkeypatch):
    """Numba shares what unpacks the arguments among all exceptions with the same layout in memory."""
    types = []
    emit = CPUCallConv.emit_unwrap_dynamic_exception_fn

    def noted(self, module, layout, argument_types):
        types.extend(argument_types)
        return emit(self, module, layout, argument_types)

    monkeypatch.setattr(CPUCallConv, "emit_unwrap_dynamic_exception_fn", noted)
    x, w = pt.tensor4("x", dtype="float64"), pt.tensor4("w", dtype="float64")
    y = pool_2d(conv2d(x, w, num_groups=2), (2, 2), ignore_border=True, stride=(1, 3))
    with pytensor.config.change_flags(numba__cache=False):
        pytensor.function([x, w], y, mode="NUMBA")(np.ones((1, 2, 4, 4)), np.ones((2, 1, 1, 1)))
    assert types and "Literal" not in str(types)
