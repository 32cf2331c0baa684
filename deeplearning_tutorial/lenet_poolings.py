"""What the tutorial's LeNet can be given in place of its max-pooling, and the checks of it."""

from deeplearning_tutorial.checks import check_choice, check_no_gaps, check_positive_ints
from deeplearning_tutorial.lenet5_layers import ACTIVATIONS
from deeplearning_tutorial.nnet import local_contrast_normalisation, local_response_normalisation
from deeplearning_tutorial.nnet.pool import pool_output_length
from deeplearning_tutorial.nnet.poolings import POOLINGS_BY_NAME

POOLINGS = (*POOLINGS_BY_NAME, "stochastic", "deformation")
NORMALISATIONS = {"contrast": local_contrast_normalisation, "response": local_response_normalisation}


def check_choices(pooling, activation, normalisation):
    """Raise ValueError unless `LeNetConvPoolLayer` takes these."""
    check_choice("pooling", pooling, POOLINGS)
    check_choice("activation", activation, ACTIVATIONS)
    if normalisation is not None:
        check_choice("normalisation", normalisation, NORMALISATIONS)


def check_layer(filter_shape, image_shape, poolsize, stride):
    """Raise ValueError unless the shapes that `LeNetConvPoolLayer` takes fit each other."""
    check_positive_ints("filter_shape", filter_shape, 4, (20, 1, 5, 5))
    check_positive_ints("image_shape", image_shape, 4, (500, 1, 28, 28), none_allowed=True)
    check_positive_ints("poolsize", poolsize, 2, (2, 2))
    if stride is not None:
        check_positive_ints("stride", stride, 2, (2, 2))
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


def pooled_sides(pool_sizes, pool_strides):
    """Return the sides of the tutorial's LeNet's maps after each of its two poolings, a list of int.

    Raises
    ------
    ValueError
        If the windows do not fit.
    """
    check_positive_ints("pool_sizes", pool_sizes, 2, (2, 2))
    check_positive_ints("pool_strides", pool_strides, 2, (2, 2))
    sides, side = [], 28
    for layer, (size, stride) in enumerate(zip(pool_sizes, pool_strides, strict=True)):
        check_no_gaps("pool_strides", tuple(pool_strides), stride, f"the windows of layer {layer}", size)
        convolved = side - 5 + 1
        if convolved < size:
            raise ValueError(
                f"pool_sizes={tuple(pool_sizes)} with pool_strides={tuple(pool_strides)} do not fit: the 5x5 "
                f"filters of layer {layer} leave {max(convolved, 0)} rows of {side}, too few for windows of "
                f"{size}x{size}; use smaller windows or strides"
            )
        side = pool_output_length(convolved, size, stride, 0, ignore_border=True)
        sides.append(side)
    return sides
