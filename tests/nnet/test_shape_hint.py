import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import pushforward, verify_grad

from deeplearning_tutorial.nnet.shape_hint import ShapeHint, apply_shape_hint


def test_known_lengths_become_static_and_none_asks_nothing():
    x = pt.tensor("x", dtype="float32", shape=(None, 3, None))
    assert apply_shape_hint("hint", x, (2, None, np.int64(5))).type.shape == (2, 3, 5)
    assert apply_shape_hint("hint", x, [None, 3, 5]).type.shape == (None, 3, 5)


@pytest.mark.parametrize(
    "shape",
    [
        (pt.constant(2), None, 5),
        (pt.constant(2, dtype="int8"), pt.constant(3), pt.constant(10) // 2),
        pt.constant([2, 3, 5]),
        np.array([2, 3, 5]),
        [np.array(2), np.uint8(3), 5],
        (pytensor.scalar.constant(2), 3, 5),
    ],
    ids=str,
)
def test_lengths_may_be_constants_of_the_graph(shape):
    x = pt.tensor("x", dtype="float32", shape=(None, 3, None))
    hinted = apply_shape_hint("hint", x, shape)
    assert hinted.type.shape == (2, 3, 5)
    assert all(n is None or type(n) is int for n in hinted.owner.op.shape)


def test_a_length_of_another_variable_that_is_known_is_a_constant():
    other = pt.tensor(shape=(2, None))
    assert apply_shape_hint("hint", pt.vector(), (other.shape[0],)).type.shape == (2,)
    with pytest.raises(ValueError, match="hint=.* holds Subtensor.*; use ints or constants"):
        apply_shape_hint("hint", pt.vector(), (other.shape[1],))


@pytest.mark.parametrize("shape", [None, (None, None, None), (None, 3, None)])
def test_a_hint_that_says_nothing_new_leaves_the_variable_alone(shape):
    x = pt.tensor("x", dtype="float32", shape=(None, 3, None))
    assert apply_shape_hint("hint", x, shape) is x


def test_data_of_the_promised_shape_pass_and_others_are_refused_naming_both(mode):
    x = pt.matrix("x", dtype="float64")
    f = pytensor.function([x], apply_shape_hint("hint", x, (2, None)) * 2, mode=mode)
    for cols in (0, 3, 5):
        np.testing.assert_array_equal(f(np.ones((2, cols))), np.full((2, cols), 2))
    for shape in ((3, 5), (0, 2), (1, 2)):
        with pytest.raises(ValueError) as error:
            f(np.ones(shape))
        assert f"hint={(2, None)} contradicts the data" in str(error.value)
        assert str(shape) in str(error.value)


def test_the_check_stays_where_only_a_gradient_is_used(mode):
    x, g = pt.vector("x", dtype="float64"), pt.vector("g", dtype="float64")
    hinted = apply_shape_hint("hint", x, (3,))
    f = pytensor.function([x, g], pytensor.gradient.grad(((hinted * g) ** 2).sum(), x), mode=mode)
    np.testing.assert_array_equal(f([1.0, 2, 3], [1.0, 1, 2]), [2, 4, 24])
    with pytest.raises(ValueError, match=r"hint=\(3,\) contradicts the data"):
        f([1.0, 2], [1.0, 1])


@pytest.mark.parametrize("mode", ["py"], indirect=True)
def test_gradients_and_forward_mode_pass_through(mode):
    def hinted(x):
        return apply_shape_hint("hint", x, (2, None)) ** 2

    verify_grad(hinted, [np.array([[1.0, 2, 3], [4, 5, 6]])], rng=np.random.default_rng(1), mode=mode)
    x, v = pt.matrix("x", dtype="float64"), pt.matrix("v", dtype="float64")
    for direct in (True, False):
        f = pytensor.function([x, v], pushforward(hinted(x), x, v, use_op_pushforward=direct), mode=mode)
        np.testing.assert_array_equal(f([[1.0], [2]], [[3.0], [4]]), [[6], [16]])


def test_the_shape_is_known_without_the_data(mode):
    x = pt.matrix("x", dtype="float64")
    f = pytensor.function([x], apply_shape_hint("hint", x, (2, None)).shape, mode=mode)
    assert ShapeHint not in {type(node.op) for node in f.maker.fgraph.apply_nodes}
    assert tuple(f(np.ones((2, 5)))) == (2, 5)


@pytest.mark.parametrize(
    "shape, message",
    [
        (3, r"hint=3 is not a tuple of 2 lengths"),
        ((3,), r"hint=\(3,\) is not a tuple of 2 lengths"),
        ((3, 4, 5), r"hint=\(3, 4, 5\) is not a tuple of 2 lengths"),
        ((3.0, 4), r"hint=\(3.0, 4\) holds 3.0"),
        ((24 / 2, 4), r"hint=\(12.0, 4\) holds 12.0.*Python 2's division of integers, 24 / 2, is 24 // 2"),
        ((pt.constant(2.0), 4), r"hint=\(2.0, 4\) holds 2.0.*Python 2's division"),
        (pt.constant([2.0, 4]), r"hint=\(2.0, 4.0\) holds 2.0"),
        ((True, 4), r"hint=\(True, 4\) holds True"),
        ((-1, 4), r"hint=\(-1, 4\) holds -1"),
        (("3", 4), r"hint=\('3', 4\) holds '3'"),
        ((3, 5), r"hint=\(3, 5\) contradicts the static shape \(None, 4\)"),
    ],
)
def test_a_wrong_hint_is_refused_by_name_and_value(shape, message):
    with pytest.raises(ValueError, match=message):
        apply_shape_hint("hint", pt.tensor(dtype="float64", shape=(None, 4)), shape)
