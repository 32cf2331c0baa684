import numpy as np
from PIL import Image

from deeplearning_tutorial.datasets.digits import as_text, write_picture


def test_a_written_picture_has_every_pixel_and_replaces_an_older_file(tmp_path, sample):
    path = tmp_path / "digit.png"
    path.write_bytes(b"old")
    write_picture(path, sample[0][0][3])
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (560, 560))
        pixels = np.asarray(image)[::20, ::20]
    # byte / 256 * 255, truncated.
    np.testing.assert_array_equal(pixels, (sample[0][0][3] * 255).astype(np.uint8).reshape(28, 28))
    assert [each.name for each in tmp_path.iterdir()] == ["digit.png"]


def test_characters_range_from_blank_to_the_densest():
    image = np.zeros((28, 28))
    image[1, 0], image[1, 1], image[27, 27] = 0.05, 0.5, 255 / 256
    lines = as_text(image.ravel()).split("\n")
    assert len(lines) == 28 and lines[0] == ""
    assert lines[1] == "..++" and lines[27] == 54 * " " + "@@"
