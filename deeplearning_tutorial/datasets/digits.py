"""Show a digit of 28x28 pixels as text or as a PNG file."""

import io
from pathlib import Path

import numpy as np

from deeplearning_tutorial.datasets.formats import IMAGE_SIDE
from deeplearning_tutorial.files.atomic import write_atomically

_ENLARGED = 20
_SHADES = " .:-=+*#%@"


def require_pillow():
    """Import Pillow's ``Image``; raise ImportError with the command that installs it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "pictures need Pillow, which is not installed; install it with pip install pillow"
        ) from error
    return Image


def as_text(image):
    """Render an image as text, two characters per pixel.

    Parameters
    ----------
    image : numpy.ndarray
        784 values from 0 to 1.

    Returns
    -------
    str
        28 lines.
    """
    levels = np.ceil(np.reshape(image, (IMAGE_SIDE, IMAGE_SIDE)) * (len(_SHADES) - 1)).astype(int)
    return "\n".join("".join(2 * _SHADES[level] for level in row).rstrip() for row in levels)


def write_picture(path, image):
    """Write an image as a PNG file, white on black, enlarged to make its pixels visible.

    Parameters
    ----------
    path : path
        Replaced completely or left unchanged.
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
    picture = (np.reshape(image, (IMAGE_SIDE, IMAGE_SIDE)) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture.repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1)).save(file, "PNG")
    write_atomically(Path(path), file.getvalue())
