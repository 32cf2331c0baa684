"""How many digits of the test set a saved model reads in pictures as cameras and scanners take them.

    python -m benchmarks.photographed_digits lenet.npz                 # 300 digits in every setting
    python -m benchmarks.photographed_digits lenet.npz --n-digits 50 --keep pictures

Each digit is enlarged and put into each setting below, at a place and in a size that are drawn by chance, as
are the angles of shadows and sheets, the width and distance of lines, and the greys. They go through the
files and functions that a person's own do. The digits are the test set's first, and the seed is fixed: every
run shows the same pictures.
"""

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from deeplearning_tutorial.classify.classification import classify
from deeplearning_tutorial.classify.models import read_model
from deeplearning_tutorial.datasets import MNIST, locate
from deeplearning_tutorial.datasets.formats import read_splits

SIDE = 224
SEED = 1998
ROWS, COLS = np.mgrid[:SIDE, :SIDE]


class Scene:
    """A sheet of paper with a digit on it, and the light that falls on both.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws what differs from picture to picture.
    digit : numpy.ndarray
        Bytes, shape ``(28, 28)``.

    Attributes
    ----------
    ink, lines : numpy.ndarray
        How much of each pixel pen and print cover, shape ``(SIDE, SIDE)``, from 0 to 1.
    paper, dark, light : float or numpy.ndarray
        Greys of paper and ink, and what part of the light reaches a place.
    box : tuple of int
        Top, left, bottom and right of the digit, the last two exclusive.
    """

    def __init__(self, rng, digit, size=None, margin=0.04):
        self.rng = rng
        rows, cols = (np.flatnonzero(digit.any(axis)) for axis in (1, 0))
        digit = digit[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        scale = SIDE * (size or rng.uniform(0.4, 0.8)) / max(digit.shape)
        height, width = (round(scale * n) for n in digit.shape)
        image = Image.fromarray(digit.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        edge = round(margin * SIDE)
        top = rng.integers(edge, SIDE - height - edge + 1)
        left = rng.integers(edge, SIDE - width - edge + 1)
        self.box = top, left, top + height, left + width
        self.ink = np.zeros((SIDE, SIDE))
        self.ink[top : top + height, left : left + width] = np.asarray(image) / 255
        self.lines = np.zeros((SIDE, SIDE))
        self.paper, self.dark = rng.uniform(0.85, 1), rng.uniform(0, 0.2)
        self.print = rng.uniform(0.1, 0.6)
        self.light = 1.0

    def values(self):
        """Return the picture's greys from 0 to 1."""
        values = self.paper + (self.print - self.paper) * self.lines
        return (values + (self.dark - values) * self.ink) * self.light

    def draw(self, shape, *arguments, **options):
        """Return what part of each pixel a shape of `PIL.ImageDraw` covers, drawn four times as large."""
        image = Image.new("L", (4 * SIDE, 4 * SIDE))
        [points, *arguments] = arguments
        getattr(ImageDraw.Draw(image), shape)(
            [(4 * x, 4 * y) for x, y in points], *arguments, fill=255, **options
        )
        return np.asarray(image.reduce(4)) / 255


def beyond_a_line(rng, angle, distance, softness):
    """Return 1 on one side of a line, 0 on the other, over ``softness`` pixels."""
    across = (COLS - SIDE / 2) * np.cos(angle) + (ROWS - SIDE / 2) * np.sin(angle) - distance
    return np.clip(across / softness + 0.5, 0, 1)


def plain(rng, digit):
    return Scene(rng, digit)


def shadow(light):
    def shadow(rng, digit):
        scene = Scene(rng, digit)
        # The edge passes through the picture's middle, thus often through the digit.
        edge = beyond_a_line(rng, rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * SIDE, rng.uniform(1, 4))
        scene.light = 1 - (1 - light) * edge
        return scene

    return shadow


def darker_table(rng, digit):
    scene = Scene(rng, digit, size=rng.uniform(0.4, 0.65), margin=0.12)
    top, left, bottom, right = scene.box
    margin = rng.uniform(0.04, 0.12, 4) * SIDE
    corners = np.array(
        [
            (left - margin[0], top - margin[1]),
            (right + margin[2], top - margin[1]),
            (right + margin[2], bottom + margin[3]),
            (left - margin[0], bottom + margin[3]),
        ]
    )
    table = rng.uniform(0.15, 0.65)
    turn = np.radians(rng.uniform(-5, 5))
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    corners = (corners - corners.mean(axis=0)) @ rotation + corners.mean(axis=0)
    sheet = scene.draw("polygon", corners)
    scene.paper = table + (scene.paper - table) * sheet
    return scene


def printed_box(rng, digit):
    scene = Scene(rng, digit, size=rng.uniform(0.4, 0.65), margin=0.13)
    top, left, bottom, right = scene.box
    margin = rng.uniform(0.04, 0.1) * SIDE
    corners = np.array(
        [
            (left - margin, top - margin),
            (right + margin, top - margin),
            (right + margin, bottom + margin),
            (left - margin, bottom + margin),
        ]
    )
    turn = np.radians(rng.uniform(-3, 3))
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    corners = (corners - corners.mean(axis=0)) @ rotation + corners.mean(axis=0)
    width = rng.uniform(1, 6)
    inner = corners + np.sign(corners.mean(axis=0) - corners) * width
    scene.lines = scene.draw("polygon", corners) - scene.draw("polygon", inner)
    return scene


def rules(rng, directions):
    """Return what ruled lines cover, ``directions`` of them: one, or two of squared paper."""
    turn = np.radians(rng.uniform(-3, 3))
    distance, width, offset = rng.uniform(0.08, 0.25) * SIDE, rng.uniform(1, 4), rng.uniform(0, SIDE)
    covered = np.zeros((SIDE, SIDE))
    for angle in (turn, turn + np.pi / 2)[:directions]:
        across = (ROWS * np.cos(angle) + COLS * np.sin(angle) + offset) % distance
        covered = np.maximum(covered, np.clip(width / 2 + 0.5 - np.minimum(across, distance - across), 0, 1))
    return covered


def ruled_paper(rng, digit):
    scene = Scene(rng, digit)
    scene.lines = rules(rng, 1)
    return scene


def squared_paper(rng, digit):
    scene = Scene(rng, digit)
    scene.lines = rules(rng, 2)
    scene.print = rng.uniform(0.4, 0.8)
    return scene


def bar_at_the_left(rng, digit):
    scene = Scene(rng, digit, margin=0.1)
    scene.light = np.where(COLS < rng.uniform(0.02, 0.09) * SIDE, 0.02, 1)
    return scene


def scanner_frame(rng, digit):
    scene = Scene(rng, digit, size=rng.uniform(0.4, 0.75), margin=0.1)
    top, left, bottom, right = rng.uniform(0.02, 0.09, 4) * SIDE
    inside = (ROWS > top) & (COLS > left) & (ROWS < SIDE - bottom) & (COLS < SIDE - right)
    scene.light = np.where(inside, 1, 0.02)
    return scene


def lamp_at_one_side(rng, digit):
    scene = Scene(rng, digit)
    scene.light = 1 - rng.uniform(0.4, 0.7) * beyond_a_line(rng, rng.uniform(0, 2 * np.pi), 0, 1.2 * SIDE)
    return scene


def shadow_on_a_wooden_table(rng, digit):
    scene = darker_table(rng, digit)
    grain = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), (1, 12))
    on_table = scene.paper < 0.7
    scene.paper = scene.paper + 0.05 * on_table * grain / grain.std()
    edge = beyond_a_line(rng, rng.uniform(0, 2 * np.pi), rng.uniform(-0.2, 0.2) * SIDE, rng.uniform(1, 20))
    scene.light = 1 - rng.uniform(0.2, 0.4) * edge
    return scene


def chalk(rng, digit):
    scene = Scene(rng, digit)
    scene.paper, scene.dark = rng.uniform(0.05, 0.3), rng.uniform(0.7, 1)
    scene.light = 1 - 0.3 * beyond_a_line(rng, rng.uniform(0, 2 * np.pi), 0, SIDE)
    return scene


def faint_pencil(rng, digit):
    scene = Scene(rng, digit)
    scene.dark = scene.paper - rng.uniform(0.25, 0.4)
    return scene


SETTINGS = {
    "plain": plain,
    "shadow of 0.8": shadow(0.8),
    "shadow of 0.6": shadow(0.6),
    "darker table": darker_table,
    "printed box": printed_box,
    "ruled paper": ruled_paper,
    "bar at the left": bar_at_the_left,
    "scanner frame": scanner_frame,
    "squared paper": squared_paper,
    "lamp at one side": lamp_at_one_side,
    "shadow on a wooden table": shadow_on_a_wooden_table,
    "chalk": chalk,
    "faint pencil": faint_pencil,
}


def photographs(setting, digits, seed=SEED):
    """Return a picture of each digit in a setting, as the bytes of a PNG file.

    Parameters
    ----------
    setting : str
        One of `SETTINGS`.
    digits : numpy.ndarray
        Images of MNIST, shape ``(n, 784)``.
    seed : int
        For what is drawn by chance.

    Returns
    -------
    list of bytes
    """
    rng = np.random.default_rng([seed, list(SETTINGS).index(setting)])
    pictures = []
    for digit in np.round(256 * digits).reshape(-1, 28, 28):
        values = SETTINGS[setting](rng, digit).values() + rng.normal(0, rng.uniform(0, 0.015), (SIDE, SIDE))
        file = io.BytesIO()
        Image.fromarray((255 * np.clip(values, 0, 1)).astype(np.uint8)).save(file, "PNG")
        pictures.append(file.getvalue())
    return pictures


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="file that a script wrote with --save")
    parser.add_argument("--n-digits", type=int, default=300, help="digits (default: %(default)s)")
    parser.add_argument("--settings", nargs="*", default=SETTINGS, choices=SETTINGS, metavar="SETTING")
    parser.add_argument("--keep", type=Path, help="folder for the pictures (default: they are deleted)")
    parser.add_argument("--dataset", default=MNIST, help="whose test set (default: %(default)s)")
    args = parser.parse_args(argv)
    model = read_model(args.model)
    x, y = (part[: args.n_digits] for part in read_splits(locate(args.dataset))[2])
    print(f"{'setting':25}  right  wrong  refused  sure and wrong")
    with tempfile.TemporaryDirectory() as temporary:
        for setting in args.settings:
            folder = (args.keep or Path(temporary)) / setting.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            paths = [folder / f"{n:03}-{label}.png" for n, label in enumerate(y)]
            for path, picture in zip(paths, photographs(setting, x), strict=True):
                path.write_bytes(picture)
            found = classify(model, paths)
            right = sum(each.digit == label for each, label in zip(found, y, strict=True))
            refused = sum(each.error is not None for each in found)
            sure = sum(
                each.error is None and each.digit != label and each.probabilities.max() > 0.9
                for each, label in zip(found, y, strict=True)
            )
            print(f"{setting:25}  {right:5}  {len(y) - right - refused:5}  {refused:7}  {sure:14}")


if __name__ == "__main__":
    main()
