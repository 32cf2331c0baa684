"""Sizes that kernels cannot count with, or shapes that do not fit, are refused before anything is read."""

import sys

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import grad

from deeplearning_tutorial.nnet import bilinear_upsampling, conv2d, conv2d_transpose, pool_2d
from deeplearning_tutorial.nnet.dispatch.numba.conv_layout import conv_layout_of, tap_offsets
from deeplearning_tutorial.nnet.fused.conv_pool import (
    ConvMaxPool,
    ConvMaxPoolGradFilters,
    ConvMaxPoolGradInput,
)
from deeplearning_tutorial.nnet.fused.linear_log_likelihood import LinearLogLikelihood
from deeplearning_tutorial.nnet.fused.matrix_product import BatchedMatrixProduct, MatrixProduct, WeightUpdate
from deeplearning_tutorial.nnet.pool import AveragePoolGrad, MaxPoolGrad, MaxPoolGradGrad
from deeplearning_tutorial.nnet.sizes import MAX_ELEMENTS, MAX_SIZE, has_too_many

X, W = pt.tensor4("x", dtype="float32"), pt.tensor4("w", dtype="float32")


@pytest.mark.parametrize(
    "function, arguments, message",
    [
        (conv2d, {"subsample": (2**63, 1)}, r"subsample=\(9223372036854775808, 1\)"),
        (conv2d, {"subsample": (1, 2**62 + 1)}, "subsample=.* use 4611686018427387904 or less"),
        (conv2d, {"filter_dilation": (2**63 - 1, 1)}, "filter_dilation="),
        (conv2d, {"border_mode": ((0, 2**62 - 500), (0, 4)), "subsample": (2**62, 1)}, "border_mode="),
        (conv2d, {"border_mode": 2**64}, "border_mode=18446744073709551616 is too large"),
        (conv2d, {"num_groups": 2**63}, "num_groups=9223372036854775808"),
        (conv2d, {"input_shape": (None, 1, 2**63, 1)}, "input_shape="),
        (conv2d, {"filter_shape": (None, 1, 1, 2**63)}, "filter_shape="),
        (conv2d_transpose, {"output_shape": (1, 1, 2**63, 1)}, "output_shape="),
        (conv2d_transpose, {"output_shape": (1, 1, 1, 1), "input_dilation": (1, 2**63)}, "input_dilation="),
    ],
)
def test_a_size_of_a_convolution_that_is_too_large_is_refused_by_name(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(X, W, **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"ws": (2**63, 2)}, r"ws=\(9223372036854775808, 2\) is too large; use 4611686018427387904 or less"),
        ({"ws": (2, 2), "stride": (1, 2**64)}, "stride="),
        ({"ws": (2**63, 2), "pad": (2**63 - 1, 0)}, "ws="),
        ({"ws": pt.constant(np.array([2, 2**63], "uint64"))}, "ws="),
    ],
)
def test_a_size_of_a_pooling_that_is_too_large_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        pool_2d(X, ignore_border=True, **arguments)


def test_an_upsampling_that_is_too_large_is_refused_by_name():
    with pytest.raises(ValueError, match="ratio=9223372036854775808"):
        bilinear_upsampling(X, 2**63)


@pytest.mark.parametrize("mode", ["py", "NUMBA", "PYTORCH"], indirect=True)
def test_a_window_that_is_too_large_is_refused_when_it_becomes_known(mode):
    ws = pt.lvector("ws")
    f = pytensor.function([X, ws], pool_2d(X, ws, False), mode=mode)
    np.testing.assert_array_equal(f(np.ones((1, 1, 2, 3), "float32"), [MAX_SIZE, 2]), [[[[1, 1]]]])
    with pytest.raises(ValueError, match="ws"):
        f(np.ones((1, 1, 2, 3), "float32"), [2, 2**63 - 1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"border_mode": (2**40, 2**40)}, "border_mode"),
        ({"border_mode": "full", "filter_dilation": (2**47, 1)}, "border_mode"),
        ({"border_mode": "half", "filter_dilation": (MAX_ELEMENTS, 1)}, "filter_dilation|border_mode"),
    ],
)
def test_padding_that_no_memory_holds_is_refused_when_the_lengths_become_known(mode, options, message):
    f = pytensor.function([X, W], conv2d(X, W, **options), mode=mode)
    with pytest.raises(ValueError, match=message):
        f(np.ones((1, 1, 9, 9), "float32"), np.ones((1, 1, 3, 3), "float32"))


def test_a_stride_longer_than_the_image_leaves_the_first_position(mode):
    y = conv2d(X, W, subsample=(10**10, MAX_SIZE))
    f = pytensor.function([X, W], [y, *grad(y.sum(), [X, W])], mode=mode)
    x, w = np.array([[[[2, 3, 0], [7, 7, 7]]]], "float32"), np.array([[[[1, 10]]]], "float32")
    by_hand = [[[[23]]]], [[[[10, 1, 0], [0, 0, 0]]]], [[[[3, 2]]]]
    for result, expected in zip(f(x, w), by_hand, strict=True):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("mode", ["NUMBA"], indirect=True)
def test_without_channels_and_filters_there_may_be_any_number_of_groups(mode):
    y = conv2d(X, W, num_groups=MAX_SIZE)
    f = pytensor.function([X, W], [y, *grad(y.sum(), [X, W])], mode=mode)
    shapes = [result.shape for result in f(np.ones((2, 0, 4, 5), "f4"), np.ones((0, 0, 3, 2), "f4"))]
    assert shapes == [(2, 0, 2, 4), (2, 0, 4, 5), (0, 0, 3, 2)]


def test_products_of_lengths_do_not_wrap_around():
    assert not has_too_many(2**16, 2**16, 2**16)
    assert has_too_many(2**16, 2**16, 2**16 + 1) and has_too_many(2**32, 2**32, 1)
    assert not has_too_many(2**62, 0, 2**62) and not has_too_many(0, 2**62, 2**62)


@pytest.mark.skipif(sys.platform != "linux", reason="needs files of which only what is written takes room")
def test_a_product_reads_a_matrix_of_more_than_two_to_the_31_elements(tmp_path):
    a, b = pt.fmatrices("ab")
    f = pytensor.function([a, b], pt.dot(a[:, :4].T, b), mode="NUMBA")
    base = np.asarray(np.memmap(tmp_path / "zeros", "float32", "w+", shape=(3, 2**30 + 8)))
    ones = np.ones((3, 20), "float32")
    base[:, :4] = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(f(base, ones), np.repeat([[12], [15], [18], [21]], 20, axis=1))


def test_taps_lie_where_they_are_in_an_image_of_more_than_two_to_the_31_elements():
    image, filters = np.empty((1, 1, 1, 1), "float32"), np.empty((1, 1, 2, 1), "float32")
    pads, dilation = ((0, 65536), (0, 32768)), (65536, 1)
    allocated = np.zeros(1, "int64")

    @numba.njit
    def last_offset(memory, image, filters):
        return tap_offsets(memory, conv_layout_of(image, filters, pads, (1, 1), dilation, 1, True))[-1]

    assert last_offset(allocated.ctypes.data, image, filters) == 65536 * 32769


# An Op, the shapes of its inputs, and of each the shapes that do not fit the others.
GEOMETRY = True, (2, 2), (2, 2), (0, 0)
FITS = {
    "MaxPoolGrad": (MaxPoolGrad(*GEOMETRY), [(4, 6), (2, 3), (2, 3)], {1: (1, 3), 2: (2, 1)}),
    "MaxPoolGradGrad": (MaxPoolGradGrad(*GEOMETRY), [(4, 6), (2, 3), (4, 6)], {1: (1, 1), 2: (2, 3)}),
    "AveragePoolGrad": (AveragePoolGrad("sum", *GEOMETRY), [(4, 6), (2, 3)], {1: (2, 1)}),
    "MatrixProduct": (MatrixProduct(), [(2, 3), (3, 4)], {1: (1, 4)}),
    "BatchedMatrixProduct": (BatchedMatrixProduct(), [(2, 2, 3), (2, 3, 4)], {0: (1, 2, 3), 1: (2, 1, 4)}),
    "WeightUpdate": (
        WeightUpdate(),
        [(2, 4), (2, 3), (3, 4), (1, 1), (1, 1)],
        {0: (1, 4), 1: (1, 3), 2: (3, 1), 3: (2, 4), 4: (0, 1)},
    ),
    "LinearLogLikelihood": (
        LinearLogLikelihood(),
        [(5, 3), (3, 4), (4,), "labels", (5,)],
        {0: (5, 1), 1: (1, 4), 2: (1,), 4: (3,)},
    ),
    "ConvMaxPool": (ConvMaxPool(True, (2, 2), bias=True), [(1, 1, 5, 6), (3, 1, 2, 2), (3,)], {2: (1,)}),
    **{
        op_class.__name__: (
            op_class(True, (2, 2), tanh=True),
            [(1, 1, 5, 6), (3, 1, 2, 2), "mask", (1, 3, 2, 2), (1, 3, 2, 2)],
            {0: (1, 1, 5, 9), 3: (1, 3, 1, 2), 4: (1, 1, 2, 2)},
        )
        for op_class in (ConvMaxPoolGradFilters, ConvMaxPoolGradInput)
    },
}
INTEGERS = {"labels": np.array([0, 1, 2, 3, -1]), "mask": np.ones((1, 2, 2, 4, 1), "uint64")}


@pytest.mark.parametrize("mode", ["py", "NUMBA"], indirect=True)
@pytest.mark.parametrize("name", FITS)
def test_inputs_that_do_not_fit_each_other_are_refused(mode, name):
    op, shapes, misfits = FITS[name]
    arrays = [INTEGERS[s] if isinstance(s, str) else np.ones(s, "float32") for s in shapes]
    symbols = [pt.tensor(dtype=array.dtype, shape=(None,) * array.ndim) for array in arrays]
    f = pytensor.function(symbols, op(*symbols, return_list=True), mode=mode)
    f(*arrays)
    for position, shape in misfits.items():
        wrong = [np.ones(shape, "float32") if i == position else array for i, array in enumerate(arrays)]
        with pytest.raises(ValueError):
            f(*wrong)


@pytest.mark.parametrize("mode", ["JAX", "PYTORCH"], indirect=True)
@pytest.mark.parametrize("name", ["MaxPoolGrad", "MaxPoolGradGrad", "AveragePoolGrad"])
def test_what_does_not_fit_a_pooling_is_refused_on_other_back_ends(mode, name):
    test_inputs_that_do_not_fit_each_other_are_refused(mode, name)
