"""Pictures of many images side by side, as the deep learning tutorial draws its filters."""

import numpy as np


def scale_to_unit_interval(ndar, eps=1e-8):
    """Shift and scale an array so that its values run from 0 to 1.

    Parameters
    ----------
    ndar : numpy.ndarray
        Numbers, of any shape.
    eps : float
        Added to the range before dividing by it; a constant array becomes zero.

    Returns
    -------
    numpy.ndarray
        A new array of the same shape; floats keep their dtype, integers become float64.
    """
    shifted = ndar - ndar.min()
    return shifted * (1.0 / (float(shifted.max()) + eps))


def tile_raster_images(
    X,
    img_shape,
    tile_shape,
    tile_spacing=(0, 0),
    scale_rows_to_unit_interval=True,
    output_pixel_vals=True,
):
    """Arrange images, one per row of a matrix, in a grid of tiles.

    Parameters
    ----------
    X : numpy.ndarray or tuple of four
        Shape ``(images, ...)`` where each row holds ``rows * cols`` values. A tuple gives the channels red,
        green, blue and alpha; None means a channel of zeros or, for alpha, opaque.
    img_shape : tuple of int
        ``(rows, cols)`` of an image.
    tile_shape : tuple of int
        Rows and columns of tiles. Images beyond them are left out, tiles without an image stay zero.
    tile_spacing : tuple of int
        Zeros between tiles, vertically and horizontally.
    scale_rows_to_unit_interval : bool
        Scale each image by itself with `scale_to_unit_interval`.
    output_pixel_vals : bool
        Give bytes: values from 0 to 1 times 255, cut to integers.

    Returns
    -------
    numpy.ndarray
        Shape ``(rows, cols)`` of the whole picture, or ``(rows, cols, 4)`` for four channels; uint8, or the
        dtype of ``X`` where ``output_pixel_vals`` is false.

    Raises
    ------
    ValueError
        If ``X`` is a tuple of another length, a shape is not a pair, or a value does not fit a byte.

    Notes
    -----
    The semantics are those of the function of this name in the tutorial's ``utils.py``.
    """
    for name, pair in (("img_shape", img_shape), ("tile_shape", tile_shape), ("tile_spacing", tile_spacing)):
        if len(pair) != 2:
            raise ValueError(f"{name}={pair!r} is not a pair; use (rows, cols)")
    options = (img_shape, tile_shape, tile_spacing, scale_rows_to_unit_interval, output_pixel_vals)
    if isinstance(X, tuple):
        return _tile_channels(X, *options)
    dtype = np.uint8 if output_pixel_vals else X.dtype
    steps = [size + gap for size, gap in zip(img_shape, tile_spacing, strict=True)]
    picture = np.zeros(_picture_shape(*options[:3]), dtype)
    for index, image in enumerate(X[: tile_shape[0] * tile_shape[1]]):
        image = image.reshape(img_shape)
        if scale_rows_to_unit_interval:
            image = scale_to_unit_interval(image)
        if output_pixel_vals:
            image = _as_bytes(image)
        top, left = (place * step for place, step in zip(divmod(index, tile_shape[1]), steps, strict=True))
        picture[top : top + img_shape[0], left : left + img_shape[1]] = image
    return picture


def _picture_shape(img_shape, tile_shape, tile_spacing):
    # No space after the last tile.
    sizes = zip(img_shape, tile_shape, tile_spacing, strict=True)
    return tuple((size + gap) * tiles - gap for size, tiles, gap in sizes)


def _tile_channels(channels, *options):
    if len(channels) != 4:
        raise ValueError(f"X is a tuple of {len(channels)}; give four channels: red, green, blue and alpha")
    *shapes, _scale, output_pixel_vals = options
    tiled = [None if channel is None else tile_raster_images(channel, *options) for channel in channels]
    given = [channel for channel in tiled if channel is not None]
    dtype = np.uint8 if output_pixel_vals else np.result_type(*given or [float])
    picture = np.zeros((*_picture_shape(*shapes), 4), dtype)
    picture[..., 3] = 255 if output_pixel_vals else 1
    for index, channel in enumerate(tiled):
        if channel is not None:
            picture[..., index] = channel
    return picture


def _as_bytes(image):
    values = image * 255.0
    # The outer values still cut to 0 and 255; NaN fails both comparisons.
    if not (values.min() > -1 and values.max() < 256):
        raise ValueError(
            f"X has values from {image.min()} to {image.max()}, bytes hold those from 0 to 1; "
            "scale it, or use scale_rows_to_unit_interval=True or output_pixel_vals=False"
        )
    return values.astype(np.uint8)
