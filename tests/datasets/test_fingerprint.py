import re

import numpy as np
import pytensor

from deeplearning_tutorial.datasets.fingerprint import data_fingerprint


def shared_data(dtype="float32", pixel=0.25, label=1):
    x, y = np.full((3, 5), 0.5, dtype), np.array([0, 1, 2], "int32")
    x[2, 4], y[1] = pixel, label
    other = np.zeros((2, 5), dtype), np.zeros(2, "int32")
    return [tuple(map(pytensor.shared, pair)) for pair in ((x, y), other, other)]


def test_a_fingerprint_depends_on_the_data_but_not_on_floatX():
    fingerprint = data_fingerprint(shared_data())
    assert re.fullmatch("3 [+] 2 [+] 2 examples, SHA-256 [0-9a-f]{64}", fingerprint)
    assert data_fingerprint(shared_data("float64")) == fingerprint
    others = [shared_data(pixel=0.125), shared_data(label=7), shared_data()[::-1]]
    assert len({fingerprint, *map(data_fingerprint, others)}) == 4


def test_a_large_split_is_hashed_to_the_end():
    x, y = np.zeros((2001, 1), "float32"), np.zeros(2001, "int32")
    first = data_fingerprint([(pytensor.shared(x), pytensor.shared(y))])
    x[-1] = 1
    assert data_fingerprint([(pytensor.shared(x), pytensor.shared(y))]) != first
