import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.photographed_digits import SETTINGS, SIDE, Scene, photographs, rules
from deeplearning_tutorial.classify.paper import SeveralDigitsError, find_digit
from deeplearning_tutorial.classify.pictures import read_picture

# The settings in which at least nine of ten pictures are read.
MAIN_SETTINGS = list(SETTINGS)[:8]


def original(pixels):
    return np.round(256 * pixels).reshape(28, 28)


def difference(path, pixels):
    """Mean difference to an image of MNIST, relative to the ink; another digit differs by about 1."""
    return abs(read_picture(path) - pixels).sum() / pixels.sum()


# Interpolation smooths an enlarged image.
@pytest.mark.parametrize("scale, close", [(1, 0.1), (4, 0.3)])
@pytest.mark.parametrize("light_on_dark", [False, True])
def test_images_of_mnist_are_read_back_unchanged(tmp_path, sample, light_on_dark, scale, close):
    path = tmp_path / "digit.png"
    differences = []
    for pixels in sample[2][0][:: scale * 2]:
        digit = original(pixels).repeat(scale, axis=0).repeat(scale, axis=1)
        Image.fromarray((digit if light_on_dark else 255 - digit).astype(np.uint8)).save(path)
        differences.append(difference(path, pixels))
    # A few of MNIST's images are not exactly 20 pixels in size or centred.
    assert np.mean(np.array(differences) < close) > 0.9 and max(differences) < 0.9


@pytest.mark.parametrize("setting", MAIN_SETTINGS)
def test_digits_in_photographs_are_found(tmp_path, sample, setting):
    digits = sample[2][0][:8]
    close = 0
    for pixels, picture in zip(digits, photographs(setting, digits), strict=True):
        (tmp_path / "photo.png").write_bytes(picture)
        close += difference(tmp_path / "photo.png", pixels) < 0.5
    assert close >= 6


def seven(margin):
    """A 7 whose bar spans the picture except for a margin."""
    values = np.ones((120, 90))
    values[margin : margin + 14, margin : 90 - margin] = 0.1
    for row in range(margin + 14, 120 - margin):
        right = 90 - margin - (row - margin) // 2
        values[row, right - 14 : right] = 0.1
    return values


@pytest.mark.parametrize("light_on_dark", [False, True])
@pytest.mark.parametrize("margin", [0, 1, 6])
def test_a_tightly_cropped_seven_keeps_its_bar(margin, light_on_dark):
    values = seven(margin)
    ink = find_digit(1 - values if light_on_dark else values)
    assert ink.shape == values.shape
    np.testing.assert_array_equal(ink > 0.5, values < 0.5)


def test_the_loop_of_a_digit_is_paper_even_in_shadow():
    rows, cols = np.mgrid[:200, :200]
    radius = np.hypot(rows - 100, cols - 100)
    ring = (radius > 30) & (radius < 50)
    ink = find_digit(np.where(ring, 0.1, 0.95) * np.where(cols > 90, 0.6, 1))
    assert ((ink > 0.5) == ring).mean() > 0.98


def test_two_digits_side_by_side_in_shadow_are_counted():
    values = np.hstack([seven(10), seven(10)])
    with pytest.raises(SeveralDigitsError, match="2"):
        find_digit(values * np.where(np.arange(180) > 100, 0.7, 1))


@pytest.mark.parametrize("margin", [10, 20])
def test_two_digits_above_each_other_are_counted(margin):
    with pytest.raises(SeveralDigitsError, match="2"):
        find_digit(np.vstack([seven(margin), seven(margin)]))


def test_strokes_of_one_digit_that_do_not_meet_are_one_digit():
    """An eight of two rings, and a five whose bar hovers above it."""
    rows, cols = np.mgrid[:200, :200]
    rings = [abs(np.hypot(rows - centre, cols - 100) - 28) < 6 for centre in (62, 138)]
    bar = (abs(rows - 20) < 6) & (abs(cols - 100) < 40)
    for pieces in (rings, [bar, abs(np.hypot(rows - 120, cols - 100) - 50) < 8]):
        ink = find_digit(np.where(np.any(pieces, axis=0), 0.1, 0.95))
        assert ((ink > 0.5) == np.any(pieces, axis=0)).mean() > 0.98


def test_blank_paper_gives_none():
    rng = np.random.default_rng(3)
    for values in (np.full((50, 60), 0.7), np.where(np.arange(60) > 30, 0.6, 0.9) * np.ones((50, 1))):
        assert find_digit(values + rng.normal(0, 0.002, values.shape)) is None


def test_arbitrary_values_give_ink_none_or_several_digits():
    rng = np.random.default_rng(0)
    for _ in range(300):
        shape = rng.integers(1, 80, 2)
        values = np.full(shape, rng.random())
        for _ in range(rng.integers(7)):
            top, left = rng.integers(shape)
            height, width = rng.integers(1, 60, 2)
            values[top : top + height, left : left + width] = rng.random()
        try:
            ink = find_digit(values)
        except SeveralDigitsError:
            continue
        assert ink is None or (ink.ndim == 2 and ink.min() >= 0 and 0.5 < ink.max() <= 1)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_pictures_of_a_setting_are_reproducible_and_of_one_size(sample, setting):
    pictures = photographs(setting, sample[2][0][:3])
    assert pictures == photographs(setting, sample[2][0][:3]) and len(set(pictures)) == 3
    for picture in pictures:
        with Image.open(io.BytesIO(picture)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (SIDE, SIDE))
            assert np.ptp(np.asarray(image)) > 30


def test_a_scene_has_the_digit_within_its_box_and_ink_darkens_paper_and_lines(sample):
    scene = Scene(np.random.default_rng(1), original(sample[2][0][0]), size=0.5)
    top, left, bottom, right = scene.box
    assert max(bottom - top, right - left) == SIDE // 2
    outside = np.ones((SIDE, SIDE), bool)
    outside[top:bottom, left:right] = False
    assert scene.ink[outside].max() == 0 and scene.ink.max() == 1
    scene.paper, scene.dark, scene.print, scene.light = 0.9, 0.1, 0.4, 0.5
    scene.lines[:, 0] = 1
    values = scene.values()
    np.testing.assert_allclose(values[outside & (scene.lines == 0)], 0.45)
    np.testing.assert_allclose(values[scene.lines == 1], 0.2)
    np.testing.assert_allclose(values[scene.ink == 1], 0.05)


def test_a_shape_covers_its_area_and_rules_cross_the_whole_picture():
    rng = np.random.default_rng(2)
    scene = Scene(rng, np.ones((28, 28)))
    square = scene.draw("polygon", [(10, 20), (50, 20), (50, 60), (10, 60)])
    assert square.shape == (SIDE, SIDE) and abs(square.sum() - 40 * 40) < 90
    ruled = rules(rng, 1)
    assert (ruled.max(axis=0) > 0.5).all() and ruled.mean() < 0.5
