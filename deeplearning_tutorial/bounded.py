"""Read files that may lie about their size: nothing is made before its bytes have come."""

PIECE = 1 << 20


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
