"""Identify a data set by its contents, whatever its file format."""

import hashlib
import math

import numpy as np

# `data_fingerprint` of MNIST.
MNIST_FINGERPRINT = (
    "50000 + 10000 + 10000 examples, SHA-256 bbc26b5072a34f34928c6f14a76fec800be07b4eb18f2cc574102640053e0560"
)

_PIECE_ELEMENTS = 1 << 20


def data_fingerprint(datasets):
    """Return a text that identifies a data set.

    Parameters
    ----------
    datasets : list of (x, y)
        As `load_data` returns them.

    Returns
    -------
    str
        Examples per split, and the SHA-256 of all pixels (as float32 unless they are bytes) and labels. It
        does not depend on floatX or on the file format.
    """
    digest = hashlib.sha256()
    for split in datasets:
        for variable, dtype in zip(split, (np.float32, np.int32), strict=True):
            values = variable.get_value(borrow=True)
            digest.update(str(values.shape).encode())
            dtype = values.dtype if values.dtype == np.uint8 else dtype
            # In pieces, because float64 is converted, and a copy of the whole array would be large.
            rows = max(1, _PIECE_ELEMENTS // math.prod(values.shape[1:]))
            for start in range(0, len(values), rows):
                digest.update(np.ascontiguousarray(values[start : start + rows], dtype))
    sizes = " + ".join(str(len(x.get_value(borrow=True))) for x, _y in datasets)
    return f"{sizes} examples, SHA-256 {digest.hexdigest()}"
