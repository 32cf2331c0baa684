"""For files that may lie about their size: nothing is made before its bytes have come, or shown at length."""

PIECE = 1 << 20
LONGEST_SHOWN = 200


def read_up_to(file, n):
    """Read ``n`` bytes, or fewer where the file ends.

    Parameters
    ----------
    file : file object
        Binary.
    n : int
        How many a file claims to have. ``file.read(n)`` would make room for all of them at once.

    Returns
    -------
    bytearray
    """
    data = bytearray()
    while len(data) < n and (piece := file.read(min(n - len(data), PIECE))):
        data += piece
    return data


def shown(value):
    """Return ``repr(value)``, cut short: what a file says may be of any length."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} ..."
