"""Convert a user's picture of a digit to the form of MNIST's images.

MNIST's images have light ink on black, scaled to fit 20x20 pixels and placed with the ink's centre of mass at
the centre of 28x28 (LeCun et al., 1998, section III.A). A picture is untrusted: its decoded size is limited
before it is decoded, and only Pillow's own decoders are used.
"""

import contextlib
import io
import math
import struct
import warnings
import zlib

import numpy as np
from scipy import ndimage

from deeplearning_tutorial.classify.paper import FAINT, SeveralDigitsError, find_digit
from deeplearning_tutorial.datasets.digits import require_pillow
from deeplearning_tutorial.datasets.formats import IMAGE_SIDE
from deeplearning_tutorial.files.bounded import open_file, read_up_to

# Common formats that Pillow decodes itself; EPS, for example, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
BOX = 20
# The centre of mass of every MNIST image is within half a pixel of this row and column, counted from 0.
CENTRE = 14
# Pictures are first reduced to at most about this many pixels per side, which keeps strokes wide enough.
WORKING_SIZE = 400
# Pillow's default limit, which the calling program may have lifted. Wider pixels than bytes become float64.
_MAX_PIXELS = 89_478_485
_MAX_WIDE_PIXELS = _MAX_PIXELS // 4
# Reduction depends on the number of pixels, so a picture one pixel high would stay millions wide.
_MAX_SIDE = 30_000
# That many pixels with transparency, uncompressed.
_MAX_BYTES = 4 * _MAX_PIXELS
_PNG = b"\x89PNG\r\n\x1a\n"
# Ancillary chunks of a PNG that change how it looks: transparency, and a camera's orientation.
_NEEDED_CHUNKS = (b"tRNS", b"eXIf")


class _TooLarge(Exception):
    """A picture has too many pixels."""


def read_picture(path):
    """Read a picture of one digit and convert it to the form of MNIST's images.

    Parameters
    ----------
    path : path
        A picture in one of `FORMATS`, of any size, in colour or not, dark on light or light on dark.
        Transparent parts count as white paper, or as black paper if nothing is visible on white.

        Shadows, a table or frame around the paper, a box around the digit and straight lines from border to
        border are ignored.

    Returns
    -------
    numpy.ndarray
        Shape ``(784,)``, float32, every pixel ``byte / 256``.

    Raises
    ------
    ValueError
        If the file is not such a picture, is damaged, has more than 89 million pixels (22 million of more
        than 8 bits) or 30,000 pixels per side, shows several digits, or shows none because it is blank or has
        more ink than paper.
    OSError
        If the file cannot be opened.
    ImportError
        If Pillow is not installed.
    """
    Image = require_pillow()
    try:
        opened = open_file(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; give the file of a picture") from error
    with opened as file:
        try:
            with warnings.catch_warnings():
                # Pillow's warnings about metadata.
                warnings.simplefilter("ignore", UserWarning)
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                images = _read_grey_images(Image, file)
        except (_TooLarge, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} has too many pixels ({error}); make it smaller") from error
        except Image.UnidentifiedImageError as error:
            raise ValueError(
                f"{path} is not a picture in one of the formats {', '.join(FORMATS)}; save it in one of them"
            ) from error
        # Pillow's decoders may raise anything for damaged data.
        except Exception as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); save it again, as PNG") from error
    for values in images:
        try:
            ink = find_digit(values)
        except SeveralDigitsError as error:
            raise ValueError(
                f"{path} shows {error} pieces of ink as large as a digit; crop it to one digit"
            ) from error
        if ink is not None:
            return _to_mnist_form(Image, ink)
    raise ValueError(
        f"{path} shows no digit: it is blank or has more ink than paper; "
        "draw one digit with good contrast and leave some paper around it"
    )


def _read_grey_images(Image, file):
    """Return the picture as arrays of greys from 0 to 1: one, or two if it has transparent parts."""
    from PIL import ImageOps

    try:
        image = _decode(Image, file)
    except (_TooLarge, Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise
    # Pillow may raise anything for metadata that it does not understand.
    except Exception:
        pixels = _without_metadata(file)
        if pixels is None:
            raise
        image = _decode(Image, pixels)
    # Pillow may raise anything for damaged metadata, and the picture can be used without it.
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


def _decode(Image, file):
    image = Image.open(file, formats=FORMATS)
    _check_size(image)
    image.draft("L", (WORKING_SIZE, WORKING_SIZE))
    image.load()
    return image


def _check_size(image):
    """Raise `_TooLarge` if decoding the picture would take too much time or memory."""
    pixels = image.width * image.height
    limit = _MAX_WIDE_PIXELS if image.mode.startswith(("I", "F")) else _MAX_PIXELS
    if pixels > limit:
        raise _TooLarge(f"{pixels} pixels, at most {limit} are read")
    if max(image.size) > _MAX_SIDE:
        raise _TooLarge(f"{image.width}x{image.height} pixels, at most {_MAX_SIDE} per side are read")


def _without_metadata(file):
    """Return a PNG without its metadata, except what changes how it looks; None for other formats."""
    file.seek(0)
    if file.read(len(_PNG)) != _PNG:
        return None
    file.seek(0)
    data = bytes(read_up_to(file, _MAX_BYTES + 1))
    if len(data) > _MAX_BYTES:
        raise _TooLarge(f"more than {_MAX_BYTES} bytes")
    chunks, at = [_PNG], len(_PNG)
    while at < len(data):
        [length] = struct.unpack(">I", data[at : at + 4].ljust(4, b"\0"))
        chunk = data[at : at + 12 + length]
        # The case of a chunk's first letter says whether the pixels need it (PNG, section 5.4).
        critical = not chunk[4:5].islower()
        undamaged = zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
        if critical or (undamaged and chunk[4:8] in _NEEDED_CHUNKS):
            chunks.append(chunk)
        at += len(chunk)
    return io.BytesIO(b"".join(chunks))


def _from_wide_values(Image, image):
    """Convert pixels of 16 or 32 bits, or floats, whose range TIFF does not define."""
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite(high - low):
        raise ValueError("it has pixels that are not finite")
    if image.mode.startswith("I") and low >= 0 and high <= 65535:
        # 32-bit pixels may hold 16-bit or 8-bit values, or a mask of 0 and 1.
        low, high = 0, next(limit for limit in (1, 255, 65535) if high <= limit)
    return Image.fromarray(((values - low) / ((high - low) or 1) * 255).astype(np.float32))


def _to_mnist_form(Image, ink):
    rows, cols = (np.flatnonzero((ink > FAINT).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(scale * n)) for n in ink.shape)
    image = Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    digit = np.asarray(image, np.float64)
    digit = digit / digit.max()
    placed = np.zeros((IMAGE_SIDE, IMAGE_SIDE), np.uint8)
    top, left = (
        min(max(round(CENTRE - centre), 0), IMAGE_SIDE - n)
        for centre, n in zip(ndimage.center_of_mass(digit), digit.shape, strict=True)
    )
    placed[top : top + height, left : left + width] = np.round(255 * digit)
    return np.divide(placed.ravel(), np.float32(256), dtype=np.float32)
