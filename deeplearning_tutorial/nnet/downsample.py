"""Max-pooling under its name of 2015, that of ``theano.tensor.signal.downsample``."""

from deeplearning_tutorial.nnet.pool import pool_2d


def max_pool_2d(input, ds, ignore_border=False, st=None, padding=(0, 0), mode="max"):
    """Pool the last two axes; `pool_2d` with the older names of its parameters.

    Parameters
    ----------
    input, ignore_border, mode
        As for `pool_2d`.
    ds, st, padding
        The ``ws``, ``stride`` and ``pad`` of `pool_2d`.

    Returns
    -------
    TensorVariable
        Shape ``(..., rows', cols')``, dtype of ``input``.

    Raises
    ------
    ValueError, NotImplementedError, TypeError
        As `pool_2d`.
    """
    return pool_2d(input, ds, ignore_border, st, padding, mode)
