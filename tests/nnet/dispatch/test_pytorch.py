import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.gradient import grad

from deeplearning_tutorial.nnet import conv2d, pool_2d

pytestmark = pytest.mark.parametrize("mode", ["PYTORCH"], indirect=True)


def test_pytorchs_compiler_takes_a_graph_with_the_ops_and_gives_the_same(mode):
    import torch

    x, w = pt.tensor4(dtype="float64"), pt.tensor4(dtype="float64")
    y = pt.tanh(pool_2d(conv2d(2 * x, w, input_shape=(None, 2, 7, 6)), (2, 3), ignore_border=False))
    outputs = [y, *grad((y**2).sum(), [x, w])]
    rng = np.random.default_rng(1)
    compiled = pytensor.function([x, w], outputs, mode=mode)
    reference = pytensor.function([x, w], outputs, mode=Mode("py", "fast_run"))
    with torch.compiler.set_stance("default"):
        for batch in (2, 3):
            arrays = rng.normal(size=(batch, 2, 7, 6)), rng.normal(size=(3, 2, 2, 2))
            for result, expected in zip(compiled(*arrays), reference(*arrays), strict=True):
                np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)
        with pytest.raises(ValueError, match=r"input_shape=\(None, 2, 7, 6\) contradicts the data"):
            compiled(np.ones((2, 2, 7, 5)), arrays[1])
        with pytest.raises(ValueError, match="the output would have no rows"):
            compiled(arrays[0], np.ones((3, 2, 8, 2)))


def test_a_symbolic_window_stride_or_padding_is_checked(mode):
    x, ws, stride, pad = pt.matrix(dtype="float64"), *(pt.lvector(name) for name in ("ws", "stride", "pad"))
    f = pytensor.function([x, ws, stride, pad], pool_2d(x, ws, True, stride, pad), mode=mode)
    with pytest.raises(ValueError, match="stride=.* has 3 elements"):
        f(np.ones((9, 7)), [2, 2], [1, 1, 1], [0, 0])
    with pytest.raises(NotImplementedError, match=r"pad=\(2, 0\) is not smaller than the window ws=\(2, 2\)"):
        f(np.ones((9, 7)), [2, 2], [1, 1], [2, 0])


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_argmax_is_numpys(mode, axis):
    x = pt.tensor3(dtype="float64")
    value = np.random.default_rng(3).integers(0, 3, (3, 4, 5)).astype("float64")
    result = pytensor.function([x], pt.argmax(x, axis=axis), mode=mode)(value)
    assert result.dtype == "int64"
    np.testing.assert_array_equal(result, value.argmax(axis=axis))


def test_equality_is_that_of_each_element(mode):
    x, y = pt.vector(dtype="float64"), pt.vector(dtype="float64")
    result = pytensor.function([x, y], pt.eq(x, y), mode=mode)([1.0, 2, np.nan], [1.0, 3, np.nan])
    assert result.tolist() == [True, False, False]


def test_a_slice_may_have_symbolic_bounds(mode):
    values = np.arange(12.0).reshape(6, 2)
    data, i = pytensor.shared(values, shape=values.shape), pt.lscalar()
    f = pytensor.function([i], data[i * 4 : (i + 1) * 4].sum(axis=0), mode=mode)
    for index in (0, 1, 2):
        np.testing.assert_array_equal(f(index), values[index * 4 : (index + 1) * 4].sum(axis=0))
