import numpy as np
import pytest

from deeplearning_tutorial.utils import scale_to_unit_interval, tile_raster_images

# Three images of 2 x 3.
X = np.array([[0.0, 1, 2, 3, 4, 5], [8, 6, 8, 6, 8, 6], [-1, 0, 0, 0, 0, 1]])


@pytest.mark.parametrize(
    "dtype, result", [("float32", "float32"), ("float64", "float64"), ("int8", "float64")]
)
def test_scaled_values_run_from_0_to_1_in_a_new_array(dtype, result):
    values = np.array([[-3, 1], [5, -1]], dtype)
    scaled = scale_to_unit_interval(values)
    np.testing.assert_allclose(scaled, [[0, 0.5], [1, 0.25]], rtol=1e-7)
    assert scaled.dtype == result and values[0, 0] == -3


def test_a_constant_image_becomes_zero():
    assert scale_to_unit_interval(np.full((2, 2), 7.0)).tolist() == [[0, 0], [0, 0]]


def test_tiles_fill_row_by_row_with_space_between_and_zeros_where_there_is_no_image():
    # By hand: each image scaled to 0...1, times 255, cut to an integer.
    expected = [
        [0, 50, 101, 0, 0, 254, 0, 254],
        [152, 203, 254, 0, 0, 0, 254, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 127, 127, 0, 0, 0, 0, 0],
        [127, 127, 254, 0, 0, 0, 0, 0],
    ]
    picture = tile_raster_images(X, (2, 3), (2, 2), (2, 2))
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, expected_with_gap(expected))


def expected_with_gap(rows):
    """Three columns, a gap of two, three columns."""
    return np.array([[*row[:3], 0, 0, *row[5:]] for row in rows])


def test_images_beyond_the_tiles_are_left_out():
    np.testing.assert_array_equal(
        tile_raster_images(X, (2, 3), (1, 1)), tile_raster_images(X[:1], (2, 3), (1, 1))
    )


def test_without_scaling_and_bytes_the_values_and_their_dtype_stay():
    picture = tile_raster_images(
        X.astype("float32"), (3, 2), (1, 2), scale_rows_to_unit_interval=False, output_pixel_vals=False
    )
    assert picture.dtype == np.float32
    assert picture.tolist() == [[0, 1, 8, 6], [2, 3, 8, 6], [4, 5, 8, 6]]


def test_a_value_of_1_is_the_byte_255_and_others_are_cut_not_rounded():
    X = np.array([[0, 0.499, 0.999, 1]])
    assert tile_raster_images(X, (2, 2), (1, 1), scale_rows_to_unit_interval=False).tolist() == [
        [0, 127],
        [254, 255],
    ]


@pytest.mark.parametrize("as_bytes, opaque", [(True, 255), (False, 1)])
def test_channels_that_are_none_are_zero_but_alpha_opaque(as_bytes, opaque):
    green = np.array([[0, 1.0]])
    options = {"scale_rows_to_unit_interval": False, "output_pixel_vals": as_bytes}
    picture = tile_raster_images((None, green, None, None), (1, 2), (1, 2), (0, 1), **options)
    assert picture.dtype == ("uint8" if as_bytes else "float64")
    nothing = [0, 0, 0, opaque]
    assert picture.tolist() == [[nothing, [0, opaque, 0, opaque], nothing, nothing, nothing]]
    assert tile_raster_images((None,) * 4, (1, 2), (1, 1), **options).tolist() == [[nothing, nothing]]


def test_an_alpha_channel_that_is_given_is_zero_between_the_tiles():
    one = np.ones((2, 1))
    picture = tile_raster_images(
        (one, one, one, one), (1, 1), (1, 2), (0, 1), scale_rows_to_unit_interval=False
    )
    assert picture.tolist() == [[[255] * 4, [0] * 4, [255] * 4]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"img_shape": (2, 3, 1)}, r"img_shape=\(2, 3, 1\) is not a pair"),
        ({"tile_shape": (2,)}, r"tile_shape=\(2,\) is not a pair; use \(rows, cols\)"),
        ({"tile_spacing": ()}, r"tile_spacing=\(\) is not a pair"),
        ({"X": (X, X, X)}, "X is a tuple of 3; give four channels"),
        (
            {"X": X, "scale_rows_to_unit_interval": False},
            "X has values from 0.0 to 5.0, bytes hold .*; scale it",
        ),
        ({"X": X * np.nan}, "X has values from nan to nan"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, message):
    arguments = {"X": X, "img_shape": (2, 3), "tile_shape": (2, 2)} | arguments
    with pytest.raises(ValueError, match=message):
        tile_raster_images(**arguments)
