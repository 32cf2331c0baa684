"""Random numbers that depend on a seed and a step alone, and are the same on every back end."""

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Variable

_ALL_BITS = 0xFFFFFFFF


def uniform_numbers(step, shape, seed, dtype):
    """Draw uniform random numbers between 0 and 1, both excluded.

    Parameters
    ----------
    step : tensor_like
        Integer scalar, at least 0; another step has other numbers.
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
    A number is a hash of the seed, the step and its place, so there is no state to keep, and a run that is
    taken up again at a step goes on as it would have (counter-based generators: Salmon et al., 2011,
    "Parallel random numbers: as easy as 1, 2, 3"). The hash is of 32 bits, with the constants that Wellons
    found in his search for hashes of little bias (2018, "Prospecting for hash functions"); its products stay
    below ``2**63``, for not every back end's integers overflow. It serves for sampling in training;
    simulations need longer words.

    The upper 23 bits are used, so that float32 holds each number exactly.
    """
    [start] = np.random.SeedSequence(seed).generate_state(1)
    x = _hash((pt.cast(pt.as_tensor_variable(step), "int64") + int(start)) & _ALL_BITS)
    # Axis by axis: the hash of a place is that of its coordinates.
    for n in shape:
        places = (pt if isinstance(n, Variable) else np).arange(n, dtype="int64")
        x = _hash((x[..., np.newaxis] + places) & _ALL_BITS)
    return (pt.cast(x // 2**9, dtype) + np.asarray(0.5, dtype)) * np.asarray(2.0**-23, dtype)


def _hash(x):
    """Mix the lower 32 bits of int64, the others being zero; dividing is shifting, which PyTensor has not."""
    x = (x ^ x // 2**16) * 0x21F0AAAD & _ALL_BITS
    x = (x ^ x // 2**15) * 0x735A2D97 & _ALL_BITS
    return x ^ x // 2**15
