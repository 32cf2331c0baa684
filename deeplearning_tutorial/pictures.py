"""A person's own picture of a digit, brought to the form of MNIST's images.

The pictures of MNIST hold light ink on black, scaled to fit 20x20 pixels and placed so that the ink's
centre of mass is the middle of 28x28 (LeCun et al., 1998, section III.A). A picture is data from outside:
what it unpacks to is bounded before it is decoded, and only decoders of Pillow's own are used.
"""

import io
import math
import warnings
from pathlib import Path

import numpy as np
from scipy import ndimage

from deeplearning_tutorial.atomic_files import write_atomically
from deeplearning_tutorial.bounded import open_file
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
# Fractions: of the full range of values, less contrast than this is no drawing; of the picture, more ink than
# this is none either; of the strongest ink, less than this does not count for the digit's extent; of the
# largest connected piece of ink, smaller pieces than this are specks.
_LEAST_CONTRAST = 1 / 32
_MOST_INK = 0.6
_FAINT = 0.1
_SPECK = 0.02
_ENLARGED = 20
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

    Returns
    -------
    numpy.ndarray
        Shape ``(784,)``, float32, every pixel ``byte / 256``.

    Raises
    ------
    ValueError
        If the file is no such picture, is damaged, has more than 89 million pixels (22 million of more than 8
        bits) or 30,000 a side, or shows no digit: it is blank, or more ink than paper.
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
        ink = _ink(values)
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

    image = Image.open(file, formats=FORMATS)
    _check_size(image)
    image.draft("L", (WORKING_SIZE, WORKING_SIZE))
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


def _from_wide_values(Image, image):
    """Convert 16 bits per pixel, or numbers without a range of their own, as TIFF has them."""
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite(high - low):
        raise ValueError("there are pixels that are no finite number")
    if image.mode.startswith("I") and low >= 0 and high <= 65535:
        low, high = 0, 65535
    return Image.fromarray(((values - low) / ((high - low) or 1) * 255).astype(np.float32))


def _ink(values):
    """Return how much ink there is at each place, from 0 to 1, or None where no digit can be told."""
    if np.ptp(values) < _LEAST_CONTRAST:
        return None
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    paper = np.median(border)
    distance = values - paper
    threshold = _threshold(np.abs(distance))
    # Ink is darker than the paper, or lighter, as most of what is far from the paper.
    if distance[np.abs(distance) > threshold].sum() < 0:
        distance = -distance
    strong = distance[distance > threshold]
    if len(strong) == 0 or np.median(strong) < _LEAST_CONTRAST or len(strong) > _MOST_INK * distance.size:
        return None
    # Uneven light on the paper is no ink; in a picture drawn by a program there is none.
    shade = min(3 * np.median(np.abs(border - paper)), threshold)
    ink = np.clip((distance - shade) / (np.percentile(strong, 90) - shade), 0, 1)
    pieces, n_pieces = ndimage.label(ink > _FAINT, structure=np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel(), minlength=n_pieces + 1)[1:]
    specks = 1 + np.flatnonzero(sizes < _SPECK * sizes.max())
    ink[np.isin(pieces, specks)] = 0
    return ink


def _threshold(values):
    """Return what divides the values into two classes that differ most (Otsu, 1979)."""
    counts, edges = np.histogram(values, 256)
    below = np.cumsum(counts)[:-1]
    above = len(values.ravel()) - below
    sums = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    means_differ = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
    return edges[1:-1][np.argmax(below * above * means_differ**2)]


def _as_mnist(Image, ink):
    rows, cols = (np.flatnonzero((ink > _FAINT).any(axis)) for axis in (1, 0))
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
