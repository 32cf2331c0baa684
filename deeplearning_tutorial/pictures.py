"""A person's own picture of a digit, brought to the form of MNIST's images.

The pictures of MNIST hold light ink on black, scaled to fit 20x20 pixels and placed so that the ink's
centre of mass is the middle of 28x28 (LeCun et al., 1998, section III.A). A picture is data from outside:
what it unpacks to is bounded before it is decoded, and only decoders of Pillow's own are used.
"""

import contextlib
import io
import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from scipy import ndimage

from deeplearning_tutorial.atomic_files import write_atomically
from deeplearning_tutorial.bounded import open_file, read_up_to
from deeplearning_tutorial.paper import FAINT, SeveralDigitsError, find_digit
from deeplearning_tutorial.utils import tile_raster_images

# Formats that people have, each decoded by Pillow itself: EPS for one would start Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
SIZE = 28
BOX = 20
# The centre of mass of every image of MNIST lies within half a pixel of this row and column, counted from 0.
CENTRE = 14
# Pictures are first reduced to at most about this many pixels a side: strokes of a digit stay wide enough.
WORKING_SIZE = 400
# Pillow's limit, which a program may lift for all its pictures. Numbers beyond bytes are made float64.
_MOST_PIXELS = 89_478_485
_MOST_WIDE_PIXELS = _MOST_PIXELS // 4
# All that reduces a picture's size counts its pixels: a line of millions would stay as long.
_LONGEST_SIDE = 30_000
# Of as many pixels with transparency, uncompressed.
_MOST_BYTES = 4 * _MOST_PIXELS
_ENLARGED = 20
_PNG = b"\x89PNG\r\n\x1a\n"
_SHADES = " .:-=+*#%@"


class _TooLarge(Exception):
    """A picture has too many pixels."""


def require_pillow():
    """Import Pillow's ``Image``; raise ImportError that says how to install it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "pictures need Pillow, which is not installed; install it with pip install pillow"
        ) from error
    return Image


def read_picture(path):
    """Read a picture of one digit and bring it to the form of MNIST's images.

    Parameters
    ----------
    path : path
        A picture in one of `FORMATS`, of any size, in colour or not, dark on light or light on dark.
        Transparent parts count as white paper, or as black where that would leave nothing to see.

        Shadows, a table or frame around the paper, a box around the digit and straight lines from border
        to border are left aside.

    Returns
    -------
    numpy.ndarray
        Shape ``(784,)``, float32, every pixel ``byte / 256``.

    Raises
    ------
    ValueError
        If the file is no such picture, is damaged, has more than 89 million pixels (22 million of more than 8
        bits) or 30,000 a side, or shows several digits, or none: it is blank, or more ink than paper.
    OSError
        If the file cannot be opened.
    ImportError
        If Pillow is not installed.
    """
    Image = require_pillow()
    try:
        opened = open_file(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; give a picture's file") from error
    with opened as file:
        try:
            with warnings.catch_warnings():
                # What Pillow finds wrong with metadata.
                warnings.simplefilter("ignore", UserWarning)
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                greys = _greys(Image, file)
        except (_TooLarge, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} has too many pixels ({error}); make it smaller") from error
        except Image.UnidentifiedImageError as error:
            raise ValueError(
                f"{path} is no picture in one of the formats {', '.join(FORMATS)}; save it in one of them"
            ) from error
        # Of damaged data Pillow's decoders raise whatever they stumble over.
        except Exception as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); save it anew, as PNG") from error
    for values in greys:
        try:
            ink = find_digit(values)
        except SeveralDigitsError as error:
            raise ValueError(
                f"{path} shows {error} pieces of ink as large as a digit; crop it to one digit"
            ) from error
        if ink is not None:
            return _as_mnist(Image, ink)
    raise ValueError(
        f"{path} shows no digit: it is blank or more ink than paper; "
        "draw one digit with good contrast and leave some paper around it"
    )


def as_text(image):
    """Write an image in characters, two for each pixel.

    Parameters
    ----------
    image : numpy.ndarray
        784 values from 0 to 1.

    Returns
    -------
    str
        28 lines.
    """
    levels = np.ceil(np.reshape(image, (SIZE, SIZE)) * (len(_SHADES) - 1)).astype(int)
    return "\n".join("".join(2 * _SHADES[level] for level in row).rstrip() for row in levels)


def write_picture(path, image):
    """Write an image as a PNG file, white on black and enlarged so that its pixels can be seen.

    Parameters
    ----------
    path : path
        The file, replaced whole or left as it was.
    image : numpy.ndarray
        784 values from 0 to 1.

    Raises
    ------
    OSError
        If the folder is missing or cannot be written.
    ImportError
        If Pillow is not installed.
    """
    Image = require_pillow()
    picture = tile_raster_images(
        image.reshape(1, -1), (SIZE, SIZE), (1, 1), scale_rows_to_unit_interval=False
    )
    file = io.BytesIO()
    Image.fromarray(picture.repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1)).save(file, "PNG")
    write_atomically(Path(path), file.getvalue())


def _greys(Image, file):
    """Return the picture as arrays of greys from 0 to 1: one, or two where it has transparent parts."""
    from PIL import ImageOps

    image = Image.open(_without_side_chunks(file), formats=FORMATS)
    _check_size(image)
    image.draft("L", (WORKING_SIZE, WORKING_SIZE))
    # The pixels first: what is wrong with them is no fault of what is said about them.
    image.load()
    # Of damaged metadata Pillow raises whatever it stumbles over; the picture can be read without.
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    transparent = image.has_transparency_data
    if transparent:
        image = image.convert("RGBA")
    elif image.mode.startswith(("I", "F")):
        image = _from_wide_values(Image, image)
    else:
        image = image.convert("L")
    image = image.reduce(max(1, math.isqrt(image.width * image.height) // WORKING_SIZE))
    images = [image]
    if transparent:
        papers = [Image.new("RGBA", image.size, colour) for colour in ("white", "black")]
        images = [Image.alpha_composite(paper, image).convert("L") for paper in papers]
    return [np.asarray(image, np.float64) / 255 for image in images]


def _check_size(image):
    """Raise `_TooLarge` where a picture would take more time or memory than one of a digit may."""
    pixels = image.width * image.height
    most = _MOST_WIDE_PIXELS if image.mode.startswith(("I", "F")) else _MOST_PIXELS
    if pixels > most:
        raise _TooLarge(f"{pixels} pixels, of which {most} are read")
    if max(image.size) > _LONGEST_SIDE:
        raise _TooLarge(f"{image.width}x{image.height} pixels, of which {_LONGEST_SIDE} a side are read")


def _without_side_chunks(file):
    """Return a PNG without the chunks that its pixels do not need and whose checksum is wrong.

    Files of other formats are returned as they are.
    """
    begins = file.read(len(_PNG))
    file.seek(0)
    if begins != _PNG:
        return file
    data = bytes(read_up_to(file, _MOST_BYTES + 1))
    if len(data) > _MOST_BYTES:
        raise _TooLarge(f"more than {_MOST_BYTES} bytes")
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        [length] = struct.unpack(">I", data[at : at + 4].ljust(4, b"\0"))
        chunk = data[at : at + 12 + length]
        # The fifth bit of a chunk's first letter, its case, says whether pixels need it (PNG, section 5.4).
        needed = not chunk[4:5].islower()
        if needed or zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]:
            kept.append(chunk)
        at += len(chunk)
    return io.BytesIO(b"".join(kept))


def _from_wide_values(Image, image):
    """Convert 16 bits per pixel, or numbers without a range of their own, as TIFF has them."""
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite(high - low):
        raise ValueError("there are pixels that are no finite number")
    if image.mode.startswith("I") and low >= 0 and high <= 65535:
        # Numbers of 32 bits hold 8 or 16, or a mask's one.
        low, high = 0, next(most for most in (1, 255, 65535) if high <= most)
    return Image.fromarray(((values - low) / ((high - low) or 1) * 255).astype(np.float32))


def _as_mnist(Image, ink):
    rows, cols = (np.flatnonzero((ink > FAINT).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(scale * n)) for n in ink.shape)
    image = Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    digit = np.asarray(image, np.float64)
    digit = digit / digit.max()
    placed = np.zeros((SIZE, SIZE), np.uint8)
    top, left = (
        min(max(round(CENTRE - centre), 0), SIZE - n)
        for centre, n in zip(ndimage.center_of_mass(digit), digit.shape, strict=True)
    )
    placed[top : top + height, left : left + width] = np.round(255 * digit)
    return np.divide(placed.ravel(), np.float32(256), dtype=np.float32)
