import inspect

import pytensor.tensor as pt
import pytest

from deeplearning_tutorial.nnet import downsample
from deeplearning_tutorial.nnet.pool import Pool

X = pt.tensor4("x", dtype="float32")


def test_the_parameters_are_pool_2ds_under_their_old_names():
    pooled = downsample.max_pool_2d(
        input=X, ds=(3, 2), ignore_border=True, st=(2, 1), padding=(1, 0), mode="sum"
    )
    assert pooled.owner.op == Pool("sum", True, (3, 2), (2, 1), (1, 0))


def test_the_rest_is_pooled_unless_told_otherwise_without_a_warning():
    assert downsample.max_pool_2d(X, (3, 2)).owner.op == Pool("max", False, (3, 2), (3, 2), (0, 0))
    assert downsample.max_pool_2d(X, (3, 2), True).owner.op == Pool("max", True, (3, 2), (3, 2), (0, 0))


def test_no_window_is_refused():
    with pytest.raises(ValueError, match="needs a window"):
        downsample.max_pool_2d(X, None)


def test_the_parameters_are_theanos_in_their_order():
    names = "input ds ignore_border st padding mode"
    assert " ".join(inspect.signature(downsample.max_pool_2d).parameters) == names
