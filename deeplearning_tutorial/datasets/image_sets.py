"""Read labelled colour images from an ``.npz`` file, split for training, validation and test.

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

from deeplearning_tutorial.datasets.formats import SPLITS
from deeplearning_tutorial.files.npz import NpzReader

CHANNELS = 3
_DTYPES = ("uint8", "float32", "float64")
_FORMAT = (
    "use numpy.savez(path, train_x=..., train_y=..., valid_x=..., valid_y=..., test_x=..., test_y=...) with "
    "images (n, rows, cols, 3) of uint8, and labels (n,) of integers"
)
# Photographs never compress this well; a file that claims to must not fill the memory.
_MAX_COMPRESSION = 200


def read_image_sets(path, side, n_classes):
    """Read images and labels.

    Parameters
    ----------
    path : path
        An ``.npz`` file with the arrays ``train_x``, ``train_y``, ``valid_x``, ``valid_y``, ``test_x`` and
        ``test_y``. Images are all uint8, or all finite float32 or float64, of shape ``(n, rows, cols, 3)``;
        labels are integers from 0 up, of shape ``(n,)``. Other arrays are ignored.
    side : int
        Rows and columns of the result. Larger images are cropped to their centre.
    n_classes : int
        Number of classes; every label must be below it.

    Returns
    -------
    list of (x, y)
        For training, validation and test: ``x``, of shape ``(n, 3, side, side)`` and the dtype in the file,
        and ``y``, int32 of shape ``(n,)``.

    Raises
    ------
    ValueError
        If the file is not such an archive or is damaged, if images are smaller than ``side``, or if a label
        is negative or at least ``n_classes``.
    FileNotFoundError
        If the file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"dataset={str(path)!r} is not a file; give an .npz file of images")
    try:
        archive = NpzReader(path)
    except ValueError as error:
        raise ValueError(f"{path} is not an .npz file of images ({error}); {_FORMAT}") from error
    with archive:
        _check_headers(path, archive, side)
        return [
            (_centre(path, archive, f"{split}_x", side), _labels(path, archive, f"{split}_y", n_classes))
            for split in SPLITS
        ]


def _check_headers(path, archive, side):
    """Raise ValueError unless the arrays fit `read_image_sets`, before any is read."""
    names = [f"{split}_{kind}" for split in SPLITS for kind in "xy"]
    missing = [name for name in names if name not in archive.names]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {_FORMAT}")
    headers = {name: _read_member(path, archive.header, name) for name in names}
    size = sum(header.nbytes for header in headers.values())
    if size > _MAX_COMPRESSION * path.stat().st_size:
        raise ValueError(
            f"{path} unpacks to {size} bytes, over {_MAX_COMPRESSION} times its size; if you trust it, "
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
                f"{path}: {split}_x is {x.dtype}, train_x {headers['train_x'].dtype}; give all images "
                "the same dtype and scale"
            )
        rows, cols = x.shape[1:3]
        if min(rows, cols) < side:
            raise ValueError(
                f"{path}: the images of {split}_x are {rows}x{cols}, smaller than image_side={side}; "
                f"enlarge them, or use image_side={min(rows, cols)} or less"
            )


def _read_member(path, read, name):
    try:
        return read(name)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); write it again") from error


def _centre(path, archive, name, side):
    images = _read_member(path, archive.array, name)
    top, left = ((length - side) // 2 for length in images.shape[1:3])
    images = images[:, top : top + side, left : left + side]
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise ValueError(f"{path}: {name} has values that are not finite; replace them")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _labels(path, archive, name, n_classes):
    labels = _read_member(path, archive.array, name)
    for label in (labels.min(), labels.max()):
        if not 0 <= label < n_classes:
            raise ValueError(
                f"{path}: {name} has the label {label}; use labels from 0 to n_classes - 1 = {n_classes - 1}"
            )
    return labels.astype(np.int32)
