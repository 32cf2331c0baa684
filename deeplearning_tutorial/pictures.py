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
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from deeplearning_tutorial.atomic_files import write_atomically
from deeplearning_tutorial.bounded import open_file, read_up_to
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
# Fractions: of the full range of values, less contrast than this is no drawing, and paper counts as no darker
# than this; of the picture, more ink than this is none either; of the square around a drawing, likewise; of
# the strongest ink, less than this does not count for the digit's extent; of the paper's grey, less is no
# line.
_LEAST_CONTRAST = 1 / 32
_DARKEST_PAPER = 0.1
_MOST_INK = 0.6
_MOST_INK_AROUND = 0.75
_FAINT = 0.1
_LINE = 0.06
# Fractions of the picture's shorter side: what is wider than this is no stroke, and what is smaller no digit.
_WIDEST_STROKE = 0.45
_LEAST_SIZE = 0.05
# Fractions of the largest piece of ink: smaller pieces than this are specks, as large ones digits, and those
# farther away than this do not belong to it.
_SPECK = 0.02
_LARGE = 0.25
_REACH = 0.5
# Lines rise or fall by at most this.
_ASKEW = 0.1
_NEIGHBOURS = np.ones((3, 3))
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
            ink = _digit(values)
        except _SeveralDigitsError as error:
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


def _digit(values):
    """Return how much ink of a digit there is at each place, from 0 to 1, or None where none can be told.

    Ink is darker than its paper, or lighter. In the wrong sense a digit's loops and bays seem to be ink, and
    the sheet that lies on a table. Bays have no edge where they open; a loop is a compact piece within the
    digit; a sheet is a rectangle around it.
    """
    found = [each for grey in (values, 1 - values) if (each := _dark_ink(grey)) is not None]
    if not found:
        return None
    most = max(each.contrast for each in found)
    found = sorted((each for each in found if each.contrast > 0.9 * most), key=lambda each: each.size)
    drawing = found[-1] if _compact(found[0].ink > 0.5) else found[0]
    if drawing.n_digits > 1:
        raise _SeveralDigitsError(drawing.n_digits)
    return drawing.ink


class _SeveralDigitsError(Exception):
    pass


class _Drawing(NamedTuple):
    """Ink from 0 to 1, its contrast to the paper around, its size, and how many digits there seem to be."""

    ink: np.ndarray
    contrast: float
    size: int
    n_digits: int


def _compact(mask):
    """Whether a circle fills much of it, as a digit's loop and unlike its strokes."""
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(mask, _NEIGHBOURS, iterations=2) | mask)
    return mask.sum() < 4 * np.pi * ndimage.distance_transform_edt(mask).max() ** 2


def _dark_ink(values):
    """Return how much ink there is at each place, given that it is darker than its paper."""
    side = min(values.shape)
    # The paper's grey at a place: closing removes what is dark and no wider than a digit's strokes may be,
    # and leaves shadows and tables as they are, with their edges (Serra, 1982).
    window = 2 * math.ceil(_WIDEST_STROKE * side / 2) + 1
    paper = ndimage.grey_closing(ndimage.median_filter(values, 3), window, mode="nearest")
    distance = np.maximum(paper - values, 0) / np.maximum(paper, _DARKEST_PAPER)
    distance, lines = _without_lines(distance)
    if distance.max() < _LEAST_CONTRAST:
        return None
    distance, threshold = _without_surroundings(distance)
    strong = distance > threshold
    rest = distance[~strong]
    shade = np.median(rest) + 3 * np.median(np.abs(rest - np.median(rest)))
    enough = strong.any() and np.median(distance[strong]) >= max(_LEAST_CONTRAST, shade)
    if not enough or strong.mean() > _MOST_INK:
        return None
    # Uneven light on the paper is no ink; in a picture drawn by a program there is none.
    shade = min(shade, threshold)
    ink = np.clip((distance - shade) / (np.percentile(distance[strong], 90) - shade), 0, 1)
    # What is faint and no edge of a stroke is the remnant of a shadow.
    ink[~ndimage.binary_dilation(ink > 0.6, _NEIGHBOURS, iterations=3 + side // 40)] = 0
    return _drawing(values, ink, strong, lines)


def _without_surroundings(distance):
    """Take away what surrounds a digit, as long as something is left.

    Returns
    -------
    distance : numpy.ndarray
        Zero where something was taken away.
    threshold : float
        What divides ink from paper.
    """
    while True:
        threshold = _threshold(distance)
        pieces, n_pieces = ndimage.label(distance > threshold, structure=_NEIGHBOURS)
        surrounding = _surrounding(pieces)
        if not surrounding:
            return distance, threshold
        width = 1 + min(distance.shape) // 75
        erased = ndimage.binary_dilation(np.isin(pieces, surrounding), _NEIGHBOURS, iterations=width)
        left = np.where(erased, 0, distance)
        if left.max() <= max(_LEAST_CONTRAST, threshold / 2):
            return distance, threshold
        distance = left


def _drawing(values, ink, strong, lines):
    """Return the largest piece of ink and what belongs to it, or None where that is no digit."""
    side = min(ink.shape)
    pieces, n_pieces = ndimage.label(ink > _FAINT, structure=_NEIGHBOURS)
    areas = np.bincount(pieces.ravel(), minlength=n_pieces + 1)
    contact = np.bincount(_border(pieces), minlength=n_pieces + 1)
    # What touches the picture's border is less likely the digit: table, frame, or what lies beside it.
    weight = np.bincount(pieces[strong], minlength=n_pieces + 1) * np.where(contact > 0, 0.25, 1)
    main = weight.argmax()
    own = pieces == main
    size = max(_extent(own))
    away = ndimage.minimum(ndimage.distance_transform_edt(~own), pieces, range(n_pieces + 1))
    belong = (areas >= _SPECK * areas[main]) & (away <= np.where(contact > 0, _REACH / 5, _REACH) * size)
    belong[0] = True
    ink[~belong[pieces]] = 0
    own &= strong
    around = ndimage.binary_dilation(own, _NEIGHBOURS, iterations=2 + side // 75) & ~own
    around &= ~(ndimage.binary_dilation(own, _NEIGHBOURS) | lines)
    contrast = values[around].mean() - np.percentile(values[own], 10) if around.any() else 0
    if contrast < _LEAST_CONTRAST or size < _LEAST_SIZE * side or own.sum() > _MOST_INK_AROUND * size**2:
        return None
    boxes = ndimage.find_objects(pieces)
    digits = [
        n
        for n in range(1, n_pieces + 1)
        if areas[n] >= _LARGE * areas[main]
        and contact[n] == 0
        and (away[n] > _REACH * size or _beside(boxes[n - 1], boxes[main - 1]))
    ]
    return _Drawing(ink, contrast, size, 1 + len(digits))


def _beside(box, other):
    """Whether two pieces of ink stand side by side, nearly as high, as no parts of one digit do."""
    (rows, cols), (other_rows, other_cols) = box, other
    heights = sorted((rows.stop - rows.start, other_rows.stop - other_rows.start))
    apart = cols.start >= other_cols.stop or other_cols.start >= cols.stop
    in_line = rows.start < other_rows.stop and other_rows.start < rows.stop
    return apart and in_line and heights[0] >= 0.7 * heights[1]


def _border(values):
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])


def _extent(mask):
    """Return height and width of the box around what is true."""
    [rows, cols] = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1


def _surrounding(pieces):
    """Return which pieces are no digit, but run along the picture's border or enclose other pieces."""
    side = min(pieces.shape)
    along = np.bincount(_border(pieces), minlength=pieces.max() + 1) >= side / 2
    found = []
    for n, box in enumerate(ndimage.find_objects(pieces), 1):
        extent = max(part.stop - part.start for part in box)
        mask = pieces[box] == n
        if along[n] or extent > side / 4 and _encloses(mask, pieces[box]):
            found.append(n)
    return found


def _encloses(mask, pieces):
    within = ndimage.binary_fill_holes(mask) & ~mask & (pieces > 0)
    return within.any() and max(_extent(within)) > max(_extent(mask)) / 4


def _without_lines(distance):
    """Take away straight lines across the whole picture, as on ruled paper, and close the strokes they cross.

    Lines are told by their projection (Radon, 1917), for each slope that paper lies askew by.
    """
    lines = np.zeros(distance.shape, bool)
    for turned, turned_lines in ((distance, lines), (distance.T, lines.T)):
        mask = ndimage.binary_dilation(turned > _LINE, np.ones((3, 1)))
        height, width = mask.shape
        rows, cols = np.nonzero(mask)
        across = np.zeros_like(mask)
        margin = math.ceil(_ASKEW * width / 2) + 1
        starts = np.arange(-margin, height + margin)
        for slope in np.arange(-_ASKEW, _ASKEW, 2 / width):
            falls = np.round(slope * (np.arange(width) - width / 2)).astype(int)
            start = rows - falls[cols] + margin
            falls.sort()
            # A line near a corner has fewer columns within the picture.
            within = np.searchsorted(falls, height - starts) - np.searchsorted(falls, -starts)
            full = np.bincount(start, minlength=len(starts)) >= np.maximum(0.97 * within, width / 4)
            chosen = full[start]
            across[rows[chosen], cols[chosen]] = True
        if across.mean() < 0.5:
            turned[across] = ndimage.grey_closing(np.where(across, 0, turned), (9, 1))[across]
            turned_lines |= across
    return distance, lines


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
