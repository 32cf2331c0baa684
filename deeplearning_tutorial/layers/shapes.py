"""Checks of the shapes that a LeNet's convolution and pooling take."""

from deeplearning_tutorial.training.checks import check_positive_ints


def check_conv_pool_shapes(filter_shape, image_shape, poolsize):
    """Raise ValueError unless filters, images and pooling windows fit each other.

    Parameters
    ----------
    filter_shape : tuple of int
        ``(filters, feature maps below, filter rows, filter cols)``.
    image_shape : tuple of (int or None)
        ``(batch, feature maps below, rows, cols)``; None where a length is unknown.
    poolsize : tuple of int
        Rows and columns of the pooling window.
    """
    check_positive_ints("filter_shape", filter_shape, 4, (20, 1, 5, 5))
    check_positive_ints("image_shape", image_shape, 4, (500, 1, 28, 28), none_allowed=True)
    check_positive_ints("poolsize", poolsize, 2, (2, 2))
    if image_shape[1] not in (None, filter_shape[1]):
        raise ValueError(
            f"filter_shape={filter_shape} takes {filter_shape[1]} feature maps, image_shape={image_shape} "
            f"has {image_shape[1]}; make the second entries equal"
        )
    for axis, image, filters, window in zip(
        ("rows", "cols"), image_shape[2:], filter_shape[2:], poolsize, strict=True
    ):
        if image is None:
            continue
        if image < filters:
            raise ValueError(
                f"image_shape={image_shape} has {image} {axis}, fewer than the {filters} of "
                f"filter_shape={filter_shape}; use larger images or smaller filters"
            )
        if image - filters + 1 < window:
            raise ValueError(
                f"poolsize={poolsize} does not fit: the convolution of image_shape={image_shape} with "
                f"filter_shape={filter_shape} leaves {image - filters + 1} {axis}; use smaller windows"
            )
