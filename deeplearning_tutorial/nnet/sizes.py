"""The limits of sizes and shapes, checked in one place.

Kernels count in 64 bits. They do not notice that a number has wrapped around, and would read from any
address.
"""

MAX_SIZE = 2**62
"""The largest window or stride, and the largest number of groups."""

MAX_ELEMENTS = 2**48
"""No machine addresses more elements."""


def check_sizes(name, value, sizes, largest=MAX_SIZE):
    """Raise ValueError if one of ``sizes``, the ints of the argument ``value``, exceeds ``largest``."""
    if max(sizes, default=0) > largest:
        raise ValueError(f"{name}={value!r} is too large; use {largest} or less")


def check_shape(name, shape, expected):
    """Raise ValueError unless the argument ``name`` has the shape that the other arguments require."""
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"{name} has shape {tuple(shape)}, and its place in the graph asks for {tuple(expected)}; make "
            "them equal"
        )


def has_too_many(rows, cols, channels):
    """Tell whether an array of these lengths has more than `MAX_ELEMENTS`, without overflow."""
    if rows == 0 or cols == 0 or channels == 0:
        return False
    return rows > MAX_ELEMENTS // cols or rows * cols > MAX_ELEMENTS // channels
