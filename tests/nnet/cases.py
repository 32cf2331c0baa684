"""Every convolution and pooling that test_cases.py checks: what to build, and the reference."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from nnet.references import Convolution, Pooling, Unshared, upsampling

from deeplearning_tutorial.nnet import bilinear_upsampling, conv2d, conv2d_transpose, pool_2d

POOL_MODES = ("max", "sum", "average_inc_pad", "average_exc_pad")


@dataclass(frozen=True)
class Case:
    """What to build of the inputs, its reference and shape, and the shapes of the inputs, call by call."""

    build: Callable
    reference: Callable
    output_shape: Callable
    shapes: list
    kernel_shapes: list = ()
    """Those that make Numba's kernels take other ways."""
    with_ties: bool = False
    with_nan: bool = False
    forward: tuple = (True, False)
    """Whether to use the Ops' own forward mode, which PyTensor's often lack, or to differentiate twice."""
    count_on_numba: int = 3
    """How many of the reference's results show each kernel once."""


# The arguments of conv2d, and the padding that they mean for filters of 3 x 2.
CONVOLUTIONS = {
    "plain": ({}, ((0, 0), (0, 0))),
    "one padding, strides": ({"border_mode": 2, "subsample": (2, 3)}, ((2, 2), (2, 2))),
    "padding per axis, dilation": ({"border_mode": (1, 2), "filter_dilation": (2, 3)}, ((1, 1), (2, 2))),
    "more padding than the filter is long": ({"border_mode": ((5, 0), (0, 1))}, ((5, 0), (0, 1))),
    "half": ({"border_mode": "half"}, ((1, 1), (1, 1))),
    "groups": ({"num_groups": 2}, ((0, 0), (0, 0))),
    "full, groups": ({"border_mode": "full", "num_groups": 2}, ((2, 2), (1, 1))),
    "half, dilation, groups": (
        {"border_mode": "half", "filter_dilation": (2, 3), "num_groups": 2},
        ((2, 2), (2, 2)),
    ),
    "full, dilation, strides": (
        {"border_mode": "full", "filter_dilation": (2, 3), "subsample": (3, 2)},
        ((4, 4), (3, 3)),
    ),
    "depthwise": ({"num_groups": 4, "border_mode": (0, 1)}, ((0, 0), (1, 1))),
    "everything": (
        {"border_mode": ((0, 2), (3, 1)), "subsample": (2, 3), "filter_dilation": (3, 2), "num_groups": 2},
        ((0, 2), (3, 1)),
    ),
}

# Batch, channels and filters of a group, rows, cols. A count of zero is legal.
SHAPES = [(0, 2, 3, 7, 5), (2, 0, 3, 7, 5), (2, 2, 0, 7, 5)]

# For kernels: filters that leave a vector nearly empty, fill some, and need several tiles; positions that
# make several chunks; images fewer and more than blocks; a filter for each channel.
KERNEL_SHAPES = [
    *((3, 2, 2, 9, 8), (2, 6, 8, 21, 17), (33, 4, 10, 7, 9), (67, 1, 2, 7, 9), (2, 2, 130, 18, 11)),
    *((1, 40, 36, 8, 7), (2, 1, 1, 21, 17), (2, 1, 3, 9, 8), (3, 2, 1, 8, 9), (2, 3, 1, 9, 7)),
]

# Of plain convolution only.
FILTER_SHAPES = [
    ((1, 1, 1, 1), (1, 1, 1, 1)),
    ((3, 1, 8, 9), (1, 1, 7, 5)),
    ((1, 3, 5, 7), (11, 3, 5, 7)),
    ((5, 7, 4, 13), (17, 7, 1, 6)),
]


def reference_of(kind, row, flip):
    options, pads, *_ = row
    return kind(pads, **{key: value for key, value in options.items() if key != "border_mode"}, flip=flip)


def convolution(name, flip):
    options, pads = CONVOLUTIONS[name]
    groups = options.get("num_groups", 1)
    # Filters of one pixel have kernels of their own where nothing is padded.
    one_pixel = [] if any(sum(pads, ())) else KERNEL_SHAPES
    shapes, kernel_shapes, one_pixel_shapes = (
        [
            ((batch, groups * channels, *lengths), (groups * filters, channels, *filter_lengths))
            for batch, channels, filters, *lengths in of_group
        ]
        for of_group, filter_lengths in (
            ([(2, 4 // groups, 8 // groups, 7, 5), *SHAPES], (3, 2)),
            (KERNEL_SHAPES, (3, 2)),
            (one_pixel, (1, 1)),
        )
    )
    reference = reference_of(Convolution, CONVOLUTIONS[name], flip)
    return Case(
        partial(conv2d, filter_flip=flip, **options),
        reference.reference,
        reference.output_shape,
        shapes + (FILTER_SHAPES if name == "plain" else []),
        kernel_shapes + one_pixel_shapes,
    )


# Of locally connected filters, with their positions on images of 7 x 6, and of transposes that give those.
ADJOINTS = {
    "valid": ({}, ((0, 0), (0, 0)), (5, 5)),
    "half": ({"border_mode": "half"}, ((1, 1), (1, 1)), (7, 7)),
    "full, strides": (
        {"border_mode": "full", "subsample": (2, 3), "num_groups": 2}, ((2, 2), (1, 1)), (5, 3)
    ),
    "one side, dilation": (
        {
            "border_mode": ((1, 0), (0, 2)),
            "subsample": (1, 2),
            "filter_dilation": (2, 3),
            "num_groups": 4,
        },
        ((1, 0), (0, 2)),
        (4, 3),
    ),
}  # fmt: skip


def unshared(name, flip):
    options, _, positions = ADJOINTS[name]
    reference = reference_of(Unshared, ADJOINTS[name], flip)
    return Case(
        partial(conv2d, filter_flip=flip, unshared=True, **options),
        reference.reference,
        reference.output_shape,
        [
            ((batch, 4, 7, 6), (n_filters, *positions, 4 // options.get("num_groups", 1), 3, 2))
            for batch, n_filters in ((3, 8), (1, 4))
        ],
        forward=(False,),
    )


def transposed(name, flip):
    options, _, positions = ADJOINTS[name]
    reference = reference_of(Convolution, ADJOINTS[name], flip)
    groups = reference.num_groups
    options = {"input_dilation" if k == "subsample" else k: v for k, v in options.items()}

    def build(maps, w):
        return conv2d_transpose(maps, w, (None, None, 7, 6), filter_flip=flip, **options)

    return Case(
        build,
        reference.transposed(7, 6),
        lambda maps, w: (maps[0], 4, 7, 6),
        [((batch, 8, *positions), (8, 4 // groups, 3, 2)) for batch in (2, 1)],
        forward=(False,),
    )


RATIOS = (1, 2, 3, 4, 5)


def upsampled(ratio, use_1D_kernel):
    return Case(
        partial(bilinear_upsampling, ratio=ratio, use_1D_kernel=use_1D_kernel),
        upsampling(ratio),
        lambda shape: (*shape[:2], shape[2] * ratio, shape[3] * ratio),
        [((2, 3, 4, 5),), ((1, 1, 1, 3),)],
        forward=(False,),
        count_on_numba=1,
    )


# Window, and the other arguments of pool_2d but mode; the leading lengths of an input.
POOLINGS = {
    "rest dropped": ({"ws": (3, 2), "ignore_border": True}, (2, 3)),
    "rest pooled": ({"ws": (3, 2), "ignore_border": False}, ()),
    "7 x 5": ({"ws": (7, 5), "ignore_border": True}, (2, 3)),
    "larger than input, dropped": ({"ws": (17, 2), "ignore_border": True}, (2, 3)),
    "larger than input, pooled": ({"ws": (17, 2), "ignore_border": False}, (3,)),
    "overlapping": ({"ws": (4, 3), "ignore_border": True, "stride": (3, 1)}, (2, 3)),
    "overlapping, rest pooled": ({"ws": (4, 3), "ignore_border": False, "stride": (3, 2)}, (1, 2, 1, 3)),
    "overlapping 7 x 5, rest pooled": ({"ws": (7, 5), "ignore_border": False, "stride": (4, 3)}, (2, 3)),
    "apart": ({"ws": (2, 3), "ignore_border": True, "stride": (3, 5)}, (2, 1, 3)),
    "apart, rest pooled": ({"ws": (2, 3), "ignore_border": False, "stride": (5, 4)}, (2, 3)),
    "padding": ({"ws": (3, 4), "ignore_border": True, "pad": (2, 1)}, (2, 3)),
    "more padding than the map is long": (
        {"ws": (9, 5), "ignore_border": True, "stride": (4, 3), "pad": (8, 3)},
        (2, 3),
    ),
    "padding, overlapping": ({"ws": (4, 3), "ignore_border": True, "stride": (2, 1), "pad": (1, 2)}, (2, 3)),
}


def pooling(name, mode):
    options, leading = POOLINGS[name]
    reference = Pooling(**options, mode=mode)
    shapes = [((*leading, 16, 11),), ((*leading, 5, 13),)]
    if leading:
        shapes += [((0, *leading[1:], 7, 5),), ((*leading[:-1], 0, 7, 5),)]
    return Case(
        partial(pool_2d, **options, mode=mode),
        reference.reference,
        reference.output_shape,
        shapes,
        with_ties=True,
        with_nan=mode == "max",
    )


nan, inf = np.nan, np.inf
ROW = {"ws": (1, 2), "ignore_border": True}

# What to build, the inputs, g, and by hand: the output, and the inputs' gradients of its sum times g.
BY_HAND = {
    # With the flip an output is ten times its left pixel plus the right one; without it, the other way round.
    "flipped": (
        conv2d,
        ([[[[1, 2, 3], [4, 5, 6]]]], [[[[1, 10]]]]),
        [[[[1, 0], [0, 2]]]],
        ([[[[12, 23], [45, 56]]]], [[[[10, 1, 0], [0, 20, 2]]]], [[[[14, 11]]]]),
    ),
    "not flipped": (
        partial(conv2d, filter_flip=False),
        ([[[[1, 2, 3], [4, 5, 6]]]], [[[[1, 10]]]]),
        [[[[1, 0], [0, 2]]]],
        ([[[[21, 32], [54, 65]]]], [[[[1, 10, 0], [0, 2, 20]]]], [[[[11, 14]]]]),
    ),
    # Each pixel spreads the filter around it, two positions apart.
    "transposed": (
        partial(conv2d_transpose, output_shape=(1, 1, 1, 5), input_dilation=(1, 2), filter_flip=False),
        ([[[[1, 2]]]], [[[[1, 10, 100]]]]),
        [[[[1, 0, 0, 0, 2]]]],
        ([[[[1, 10, 102, 20, 200]]]], [[[[1, 200]]]], [[[[1, 0, 4]]]]),
    ),
    "upsampled": (
        partial(bilinear_upsampling, ratio=2),
        ([[[[0, 1], [2, 3]]]],),
        [[[[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]]],
        ([[[[0, 0.5, 1, 1], [1, 1.5, 2, 2], [2, 2.5, 3, 3], [2, 2.5, 3, 3]]]], [[[[1.5, 0.5], [0, 1]]]]),
    ),
    "every tied maximum receives the whole gradient": (
        partial(pool_2d, ws=(2, 2), ignore_border=False),
        ([[3, 3, 0, 1, 5], [3, 2, 0, 0, 5], [7, 7, -1, -2, 4]],),
        [[10, 20, 30], [40, 50, 60]],
        ([[3, 1, 5], [7, -1, 4]], [[10, 10, 0, 20, 30], [10, 0, 0, 0, 30], [40, 40, 50, 0, 60]]),
    ),
    # The first 4 is in windows 1 and 2, the second in all three.
    "gradients of overlapping windows add up": (
        partial(pool_2d, ws=(1, 3), ignore_border=True, stride=(1, 1)),
        ([[0, 4, 4, 1, 2]],),
        [[1, 10, 100]],
        ([[4, 4, 4]], [[0, 11, 111, 0, 0]]),
    ),
    "averages divide by all of a padded window": (
        partial(pool_2d, **ROW, pad=(0, 1), mode="average_inc_pad"),
        ([[2, 4, 6]],),
        [[2, 4]],
        ([[1, 5]], [[1, 2, 2]]),
    ),
    "averages divide by what is not padding": (
        partial(pool_2d, **ROW, pad=(0, 1), mode="average_exc_pad"),
        ([[2, 4, 6]],),
        [[2, 4]],
        ([[2, 5]], [[2, 2, 2]]),
    ),
    **{
        f"{mode} divides a rest by its elements": (
            partial(pool_2d, ws=(1, 2), ignore_border=False, mode=mode),
            ([[2, 4, 6]],),
            [[2, 4]],
            ([[3, 6]], [[1, 1, 4]]),
        )
        for mode in ("average_inc_pad", "average_exc_pad")
    },
    **{
        f"{mode} of windows far larger than the map": (
            partial(pool_2d, ws=(2**62, 10**10), ignore_border=False, mode=mode),
            ([[[2, 4, 6], [2, 3, 1]]],),
            [[[3]]],
            ([[[value]]], [gradient]),
        )
        for mode, value, gradient in (
            ("max", 6, [[0, 0, 3], [0, 0, 0]]),
            ("sum", 18, [[3] * 3] * 2),
            ("average_inc_pad", 3, [[0.5] * 3] * 2),
            ("average_exc_pad", 3, [[0.5] * 3] * 2),
        )
    },
    # A window of 2**62 rows, 2**61 of them above the map.
    "averages divide by all of a window that hardly fits": (
        partial(
            pool_2d,
            ws=(2**62, 2),
            ignore_border=True,
            stride=(2**62, 2),
            pad=(2**61, 0),
            mode="average_inc_pad",
        ),
        ([[2.0**62, 2.0**62], [0, 2.0**63]],),
        [[2.0**63]],
        ([[2]], [[1, 1], [1, 1]]),
    ),
    "padding never is the maximum": (
        partial(pool_2d, ws=(2, 2), ignore_border=True, pad=(1, 1)),
        ([[-5, -5, -5]] * 3,),
        [[1, 1], [1, 1]],
        ([[-5, -5], [-5, -5]], [[1, 1, 1]] * 3),
    ),
    # A NaN equals nothing; -inf and inf are maxima like any other.
    "a NaN is its window's maximum and receives nothing": (
        partial(pool_2d, ws=(2, 2), ignore_border=True),
        ([[nan, 1, 2, nan, -inf, -inf, inf, 3], [0, 1, 2, 3, -inf, -inf, inf, nan]],),
        [[1, 1, 1, 1]],
        ([[nan, nan, -inf, nan]], [[0] * 4 + [1] * 2 + [0] * 2] * 2),
    ),
    "a NaN beside padding": (
        partial(pool_2d, ws=(2, 2), ignore_border=True, pad=(0, 1)),
        ([[nan, 1, 2, nan, -inf, -inf, inf, 3], [0, 1, 2, 3, -inf, -inf, inf, nan]],),
        [[1, 1, 1, 1, 1]],
        ([[nan, 2, nan, inf, nan]], [[0, 0, 1, 0, 0, 0, 1, 0]] * 2),
    ),
}

# Arguments of conv2d, shapes of input and filters that do not fit, and the message.
MISFITS = {
    "channels": ({}, (2, 4, 7, 5), (8, 3, 3, 2), "4 channels.*take 3 x num_groups=1"),
    "channels of groups": ({"num_groups": 2}, (2, 4, 7, 5), (8, 4, 3, 2), "take 4 x num_groups=2"),
    "filters of groups": ({"num_groups": 2}, (2, 4, 7, 5), (7, 2, 3, 2), "7 filters.*num_groups=2"),
    "no rows": ({}, (2, 4, 2, 5), (8, 4, 3, 2), "no rows"),
    "no cols": ({"filter_dilation": (1, 5)}, (2, 4, 7, 5), (8, 4, 3, 2), "no cols"),
    "filters without rows": ({}, (2, 4, 7, 5), (8, 4, 0, 2), "have no rows"),
}
NO_TRANSPOSES = [(1, 2, 4, 5), (1, 2, 1, 5), (1, 2, 6, 5), (1, 3, 5, 5), (2, 2, 5, 5)]
NO_UNSHARED = [(5, 6, 4, 3, 3, 3), (5, 5, 5, 3, 3, 3), (5, 6, 5, 2, 3, 3)]
