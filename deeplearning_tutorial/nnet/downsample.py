"""The name that max-pooling had in 2015, ``theano.tensor.signal.downsample``."""

from deeplearning_tutorial.nnet.pool import pool_2d


def max_pool_2d(input, ds, ignore_border=False, st=None, padding=(0, 0), mode="max"):
    """Pool the last two axes; `pool_2d` under the older names of its parameters.

    Parameters
    ----------
    input, ignore_border, mode
        As for `pool_2d`.
    ds, st, padding
        Its ``ws``, ``stride`` and ``pad``.

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
