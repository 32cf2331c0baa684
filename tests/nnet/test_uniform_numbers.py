import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode
from scipy.stats import chisquare, kstest

from deeplearning_tutorial.nnet import uniform_numbers

# Op by Op, without compiling.
PLAIN = Mode(linker="py", optimizer=None)


def drawn(step, shape, seed=1, dtype="float64"):
    return uniform_numbers(pt.constant(step), shape, seed, dtype).eval(mode=PLAIN)


def python_hash(x):
    """The hash on Python's integers."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = ((x ^ x >> shift) * factor) % 2**32
    return x ^ x >> 15


def test_every_back_end_draws_the_same(mode):
    step = pytensor.shared(np.int64(4_000_000_000), name="step")
    shape = (2, 3, 4)
    f = pytensor.function([], uniform_numbers(step, shape, 7, "float32"), mode=mode)
    expected = np.empty(shape)
    [start] = np.random.SeedSequence(7).generate_state(1).tolist()
    for place in np.ndindex(*shape):
        x = python_hash((4_000_000_000 + start) % 2**32)
        for coordinate in place:
            x = python_hash((x + coordinate) % 2**32)
        expected[place] = ((x >> 9) + 0.5) / 2**23
    result = np.asarray(f())
    assert result.dtype == "float32"
    np.testing.assert_array_equal(result, expected)


def test_numbers_are_uniform_and_neighbours_independent():
    numbers = drawn(3, (60, 10, 12, 14))
    assert 0 < numbers.min() and numbers.max() < 1
    assert kstest(numbers.ravel(), "uniform").pvalue > 0.01
    for axis in range(4):
        first, second = (np.moveaxis(numbers, axis, 0)[part].ravel() for part in (slice(-1), slice(1, None)))
        cells = np.histogram2d(first, second, bins=8, range=[[0, 1], [0, 1]])[0]
        assert chisquare(cells.ravel()).pvalue > 0.001, axis


def test_each_step_and_each_seed_has_numbers_of_its_own():
    first = drawn(0, (5, 200))
    np.testing.assert_array_equal(drawn(0, (5, 200)), first)
    for other in (drawn(1, (5, 200)), drawn(0, (5, 200), seed=2)):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.1
        assert (first != other).mean() > 0.99
