from fractions import Fraction

import numpy as np
import pytensor
import pytest

from deeplearning_tutorial.training.checks import (
    check_choice,
    check_positive_int,
    check_positive_ints,
    check_rate,
    check_seed,
    count_minibatches,
)

DIVISION = "; Python 2's division of integers, 24 / 2, is 24 // 2 in Python 3"


@pytest.mark.parametrize("value", [1, 7, np.int8(3), np.uint64(2)])
def test_positive_ints_of_python_and_numpy_pass(value):
    check_positive_int("n", value, 5)
    check_positive_ints("ns", [value, 2], 2, (5, 5))


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "3", None, np.float32(2), np.bool_(True)])
def test_anything_but_a_positive_int_is_refused_with_its_name_and_an_example(value):
    with pytest.raises(ValueError) as caught:
        check_positive_int("n", value, 5)
    assert str(caught.value).removesuffix(DIVISION) == f"n={value!r} is not a positive integer; use e.g. n=5"
    with pytest.raises(ValueError) as caught:
        check_positive_ints("ns", (4, value), 2, (5, 6))
    told = f"ns={(4, value)!r} holds something other than positive integers; use e.g. ns=(5, 6)"
    assert str(caught.value).removesuffix(DIVISION) == told


@pytest.mark.parametrize("value", [5, (5,), (5, 5, 5), "55", None, {5: 6, 7: 8}])
def test_anything_but_a_sequence_of_the_right_length_is_refused(value):
    with pytest.raises(ValueError) as caught:
        check_positive_ints("ns", value, 2, (5, 6))
    assert str(caught.value) == f"ns={value!r} is not a tuple of 2 integers; use e.g. ns=(5, 6)"


@pytest.mark.parametrize("value", ["mean", "", None, 3, ["max"]])
def test_anything_but_one_of_the_choices_is_refused_and_they_are_listed(value):
    check_choice("mode", "sum", {"max": 1, "sum": 2})
    with pytest.raises(ValueError) as caught:
        check_choice("mode", value, ("max", "sum"))
    assert str(caught.value) == f"mode={value!r} is unknown; use one of 'max', 'sum'"


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), np.float64(0.25), Fraction(1, 4)])
def test_a_rate_comes_back_as_a_float_of_python(value):
    rate = check_rate("rate", value, 0.1)
    assert type(rate) is float and rate == 0.25


def test_a_rate_may_be_zero_only_where_that_is_allowed():
    assert check_rate("rate", 0, 0.1, minimum_excluded=False) == 0
    with pytest.raises(ValueError, match=r"^rate=0 is not a positive finite number; use e.g. rate=0.1$"):
        check_rate("rate", 0, 0.1)


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf"), True, "0.1", None, 1j])
def test_anything_but_a_finite_rate_is_refused(value):
    with pytest.raises(ValueError) as caught:
        check_rate("rate", value, 0.1, minimum_excluded=False)
    assert str(caught.value) == f"rate={value!r} is not a non-negative finite number; use e.g. rate=0.1"


@pytest.mark.parametrize("value", [0, 1234, 2**32 - 1, np.int64(7)])
def test_a_seed_is_what_numpys_generator_takes(value):
    check_seed("seed", value, 5)
    np.random.RandomState(value)


@pytest.mark.parametrize("value", [-1, 2**32, 1.5, None, "7", True])
def test_any_other_seed_is_refused_with_an_example(value):
    with pytest.raises(ValueError) as caught:
        check_seed("seed", value, 5)
    expected = f"seed={value!r} is not an integer from 0 to 4294967295; use e.g. seed=5"
    assert str(caught.value).removesuffix(DIVISION) == expected


@pytest.mark.parametrize("value", [12.0, 2.5, np.float32(12)])
def test_where_an_integer_is_a_float_python_2s_division_is_named(value):
    for check in (
        lambda: check_positive_int("n", value, 5),
        lambda: check_positive_ints("n", (1, value), 2, (1, 2)),
        lambda: check_seed("n", value, 5),
    ):
        with pytest.raises(ValueError) as caught:
            check()
        assert str(caught.value).endswith(DIVISION)


@pytest.mark.parametrize("value", [0, -3, None, "12", True])
def test_what_no_division_gives_is_refused_without_it(value):
    with pytest.raises(ValueError) as caught:
        check_positive_int("n", value, 5)
    assert "division" not in str(caught.value)


def test_none_stands_for_an_unknown_integer_where_that_is_allowed():
    check_positive_ints("n", (None, 2), 2, (1, 2), none_allowed=True)
    for value, allowed in (((None, 2), False), ((None, 0), True), ((None,), True)):
        with pytest.raises(ValueError, match="^n="):
            check_positive_ints("n", value, 2, (1, 2), none_allowed=allowed)


def test_whole_minibatches_are_counted_per_split():
    a, b = (pytensor.shared(np.zeros((n, 2))) for n in (7, 3))
    assert count_minibatches(3, training=a, test=b) == [2, 1]


def test_a_split_smaller_than_one_minibatch_is_refused_by_name():
    a, b = (pytensor.shared(np.zeros((n, 2))) for n in (7, 3))
    with pytest.raises(ValueError, match="batch_size=4 is larger than the test set of 3 examples; use .*=3 "):
        count_minibatches(4, training=a, test=b)
