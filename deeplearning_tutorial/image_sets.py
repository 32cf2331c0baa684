"""Labelled colour images in a ``.npz`` file, split for training, validation and test.

::

    import numpy as np

    np.savez(
        "images.npz",
        train_x=train_x, train_y=train_y,  # uint8 of shape (images, rows, cols, 3), integers of (images,)
        valid_x=valid_x, valid_y=valid_y,
        test_x=test_x, test_y=test_y,
    )
"""

from pathlib import Path

import numpy as np

from deeplearning_tutorial.npz import NpzReader

SPLITS = ("train", "valid", "test")
CHANNELS = 3
_DTYPES = ("uint8", "float32", "float64")
_FORMAT = (
    "use numpy.savez(path, train_x=..., train_y=..., valid_x=..., valid_y=..., test_x=..., test_y=...) with "
    "images (n, rows, cols, 3) of uint8, and labels (n,) of integers"
)
# Photographs do not become this much larger; what claims to shall not fill the memory.
_MOST_COMPRESSED = 200


def read_image_sets(path, side, n_classes):
    """Read images and labels.

    Parameters
    ----------
    path : path
        A ``.npz`` file with the arrays ``train_x``, ``train_y``, ``valid_x``, ``valid_y``, ``test_x`` and
        ``test_y``. Images are all uint8, or all finite float32 or float64, of shape ``(n, rows, cols, 3)``;
        labels are integers of shape ``(n,)``, from 0 on. Other arrays are not read.
    side : int
        Rows and columns that are wanted. Of larger images the centre is taken.
    n_classes : int
        Classes at most.

    Returns
    -------
    list of (x, y)
        numpy.ndarrays to train, validate and test: ``x`` of shape ``(n, 3, side, side)`` and its dtype in the
        file, ``y`` int32 of shape ``(n,)``.

    Raises
    ------
    ValueError
        If the file is no such archive, or is damaged, images are smaller than ``side``, or a label is not
        below ``n_classes``.
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"dataset={str(path)!r} is no file; give the path of a .npz file of images")
    try:
        archive = NpzReader(path)
    except ValueError as error:
        raise ValueError(f"{path} is no .npz file of images ({error}); {_FORMAT}") from error
    with archive:
        _check_headers(path, archive, side)
        return [
            (_centre(path, archive, f"{split}_x", side), _labels(path, archive, f"{split}_y", n_classes))
            for split in SPLITS
        ]


def _check_headers(path, archive, side):
    """Raise ValueError where the arrays are not what `read_image_sets` takes, before any is read."""
    names = [f"{split}_{kind}" for split in SPLITS for kind in "xy"]
    missing = [name for name in names if name not in archive.names]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {_FORMAT}")
    headers = {name: _told(path, archive.header, name) for name in names}
    size = sum(header.nbytes for header in headers.values())
    if size > _MOST_COMPRESSED * path.stat().st_size:
        raise ValueError(
            f"{path} unpacks to {size} bytes, over {_MOST_COMPRESSED} times its size; if you trust it, "
            "write it with numpy.savez, which does not compress"
        )
    for split in SPLITS:
        x, y = headers[f"{split}_x"], headers[f"{split}_y"]
        if len(x.shape) != 4 or x.shape[3] != CHANNELS or x.shape[0] < 1 or x.dtype not in _DTYPES:
            raise ValueError(f"{path}: {split}_x is {x.dtype} of shape {x.shape}; {_FORMAT}")
        if y.shape != x.shape[:1] or y.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: {split}_y is {y.dtype} of shape {y.shape} for {x.shape[0]} images; {_FORMAT}"
            )
        if x.dtype != headers["train_x"].dtype:
            raise ValueError(
                f"{path}: {split}_x is {x.dtype}, train_x {headers['train_x'].dtype}; give all images as one "
                "of them, on one scale"
            )
        rows, cols = x.shape[1:3]
        if min(rows, cols) < side:
            raise ValueError(
                f"{path}: the images of {split}_x are {rows}x{cols}, smaller than image_side={side}; "
                f"enlarge them, or use image_side={min(rows, cols)} or less"
            )


def _told(path, read, name):
    try:
        return read(name)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); write it anew") from error


def _centre(path, archive, name, side):
    images = _told(path, archive.array, name)
    top, left = ((length - side) // 2 for length in images.shape[1:3])
    images = images[:, top : top + side, left : left + side]
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise ValueError(f"{path}: {name} holds values that are not finite; replace them")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _labels(path, archive, name, n_classes):
    labels = _told(path, archive.array, name)
    for label in (labels.min(), labels.max()):
        if not 0 <= label < n_classes:
            raise ValueError(
                f"{path}: {name} holds the label {label}; labels go from 0 to n_classes - 1 = {n_classes - 1}"
            )
    return labels.astype(np.int32)
