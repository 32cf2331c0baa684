"""MNIST for all contenders: real digits, whose even background makes ties under max-pooling routine."""

import sys
from pathlib import Path

import numpy as np

from deeplearning_tutorial.datasets import formats

SIZES = {"train": 50_000, "valid": 10_000, "test": 10_000}


def prepare(folder):
    """Write the arrays that `load` reads; return the path of the data set they come from."""
    # Imports PyTensor, which the processes of its peers shall be free of.
    from deeplearning_tutorial import datasets

    try:
        path = datasets.locate(datasets.MNIST)
    except datasets.DatasetNotFoundError as error:
        path = datasets.sample_path()
        print(f"{error}\n\nNOTICE: timing with the digits of {path}, repeated.\n", file=sys.stderr)
    for split, (x, y) in zip(formats.SPLITS, formats.read_splits(path), strict=True):
        n = SIZES[split]
        np.save(Path(folder, f"{split}_x.npy"), np.resize(x, (n, *x.shape[1:])))
        np.save(Path(folder, f"{split}_y.npy"), np.resize(y, n))
    return path


def load(folder, split, floatX):
    """Return images, shape ``(n, 784)`` and dtype ``floatX``, and labels, int32 of shape ``(n,)``."""
    x, y = (np.load(Path(folder, f"{split}_{name}.npy")) for name in "xy")
    return x.astype(floatX, copy=False), y
