"""Random numbers that depend only on a seed and a step, and are the same on every back end."""

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Variable

_ALL_BITS = 0xFFFFFFFF


def uniform_numbers(step, shape, seed, dtype):
    """Draw uniform random numbers between 0 and 1, both excluded.

    Parameters
    ----------
    step : tensor_like
        Integer scalar, at least 0; each step has different numbers.
    shape : tuple of (int or scalar)
    seed : int
        At least 0.
    dtype : {'float32', 'float64'}

    Returns
    -------
    TensorVariable
        Of the given shape and dtype.

    Notes
    -----
    A number is a hash of the seed, the step and its position, so there is no state to store, and a run that
    is resumed at a step continues as it would have (counter-based generators: Salmon et al., 2011, "Parallel
    random numbers: as easy as 1, 2, 3"). The hash has 32 bits, with the constants that Wellons found in his
    search for hashes of little bias (2018, "Prospecting for hash functions"); its products stay below
    ``2**63``, because integers do not wrap around on every back end. It is good enough for sampling in
    training; simulations need longer words.

    The upper 23 bits are used, so that float32 holds each number exactly.
    """
    [start] = np.random.SeedSequence(seed).generate_state(1)
    x = _hash((pt.cast(pt.as_tensor_variable(step), "int64") + int(start)) & _ALL_BITS)
    # Axis by axis: the hash of a position is that of its coordinates.
    for n in shape:
        positions = (pt if isinstance(n, Variable) else np).arange(n, dtype="int64")
        x = _hash((x[..., np.newaxis] + positions) & _ALL_BITS)
    return (pt.cast(x // 2**9, dtype) + np.asarray(0.5, dtype)) * np.asarray(2.0**-23, dtype)


def _hash(x):
    """Mix the lower 32 bits of int64, of which the others are zero; divisions stand for shifts."""
    x = (x ^ x // 2**16) * 0x21F0AAAD & _ALL_BITS
    x = (x ^ x // 2**15) * 0x735A2D97 & _ALL_BITS
    return x ^ x // 2**15
