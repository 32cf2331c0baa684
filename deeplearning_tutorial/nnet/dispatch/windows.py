"""Where the elements of pooling windows lie: what the back ends without kernels of their own share."""

from itertools import product


def window_layout(lengths, out_lengths, geometry):
    """Locate every window, and the padding that makes each of them whole.

    Parameters
    ----------
    lengths, out_lengths : sequence of two ints
        Rows and columns of x, and of the windows.
    geometry : sequence of two triples of ints
        (window, stride, pad) per axis.

    Returns
    -------
    widths : list of two pairs of ints
        What to put before and after x, per axis.
    elements : list of tuple
        ``padded[elements[k]]`` holds element k of every window, shape ``(..., rows', cols')``.
    inside : tuple
        ``padded[inside]`` is x.
    """
    axes = list(zip(lengths, out_lengths, geometry, strict=True))
    widths = [
        (pad, max(0, (n - 1) * stride + window - length - pad)) for length, n, (window, stride, pad) in axes
    ]
    elements = [
        (
            ...,
            *(
                slice(first, first + (n - 1) * stride + 1, stride) if n else slice(0)
                for first, (_, n, (_, stride, _)) in zip(element, axes, strict=True)
            ),
        )
        for element in product(*(range(window) for window, _, _ in geometry))
    ]
    inside = (..., *(slice(before, before + n) for (before, _), n in zip(widths, lengths, strict=True)))
    return widths, elements, inside
