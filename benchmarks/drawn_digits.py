"""The error of a saved model on digits drawn by this program, beside its error on the test set.

    python -m benchmarks.drawn_digits lenet.npz                    # 20 digits
    python -m benchmarks.drawn_digits lenet.npz --all              # 2,080: all combinations

Each digit is drawn twice, in a font that comes with matplotlib and in strokes of some width; in several
sizes, dark on light and light on dark. They go through the files and functions that a person's own do.
"""

import argparse
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from deeplearning_tutorial.classify.classification import classify, evaluate
from deeplearning_tutorial.classify.models import read_model
from deeplearning_tutorial.datasets import MNIST, locate
from deeplearning_tutorial.datasets.formats import read_splits

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
)
# Of a digit's height.
STROKE_WIDTHS = (0.03, 0.06, 0.1, 0.15, 0.2)
# Ink and paper.
COLOURS = (("black", "white"), ("white", "black"), ("navy", "ivory"), ("khaki", "darkgreen"))
HEIGHTS = (40, 120, 300, 700)


def arc(centre, radii, start, end):
    """Points of an ellipse's arc; angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 40))
    return np.array(centre) + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii


def line(*points):
    return np.array(points, float)


# As a hand draws them, in a box 0.6 wide and 1 high.
STROKES = {
    0: [arc((0.3, 0.5), (0.28, 0.5), 0, 360)],
    1: [line((0.36, 0), (0.26, 1))],
    2: [np.concatenate([arc((0.3, 0.28), (0.26, 0.28), -160, 40), line((0.03, 0.97), (0.6, 0.95))])],
    3: [arc((0.27, 0.25), (0.24, 0.25), -150, 90), arc((0.27, 0.75), (0.3, 0.25), -90, 150)],
    4: [line((0.15, 0), (0.03, 0.6), (0.58, 0.55)), line((0.44, 0.25), (0.38, 1))],
    5: [line((0.55, 0), (0.14, 0.02), (0.1, 0.45)), arc((0.26, 0.7), (0.3, 0.3), -120, 150)],
    6: [np.concatenate([line((0.42, 0), (0.12, 0.45)), arc((0.3, 0.73), (0.26, 0.27), -165, 200)])],
    7: [line((0.02, 0.05), (0.56, 0.03), (0.22, 1))],
    8: [arc((0.3, 0.24), (0.2, 0.24), 90, 450), arc((0.3, 0.74), (0.26, 0.26), -90, 270)],
    9: [np.concatenate([arc((0.28, 0.27), (0.25, 0.27), 20, 380), line((0.42, 1))])],
}


def draw(digit, font=None, stroke_width=None, height=120, ink="black", paper="white"):
    """Draw a digit in a font, or in strokes of a width relative to its height."""
    image = Image.new("RGB", (2 * height, 2 * height), paper)
    pen = ImageDraw.Draw(image)
    if font is not None:
        path = Path(get_data_path(), "fonts", "ttf", f"{font}.ttf")
        # Its digits are about 0.73 of a font's size high.
        font = ImageFont.truetype(path, height / 0.73)
        pen.text((height, height), str(digit), fill=ink, font=font, anchor="mm")
        return image
    radius = stroke_width * height / 2
    for stroke in STROKES[digit]:
        points = [(height * (x + 0.7), height * (y + 0.5)) for x, y in stroke]
        pen.line(points, fill=ink, width=max(1, round(2 * radius)), joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    return image


def twenty():
    """Return the 20 pictures as ``(digit, how it is drawn, image)``."""
    drawn = []
    for digit in range(10):
        for kind, choices in (("font", FONTS), ("stroke_width", STROKE_WIDTHS)):
            n = len(drawn)
            colours = COLOURS[(n + n // 4) % len(COLOURS)]
            drawn.append(
                _drawn(digit, kind, choices[digit % len(choices)], HEIGHTS[n % len(HEIGHTS)], colours)
            )
    return drawn


def everything():
    """Return every digit in every font and stroke width, height and pair of colours."""
    styles = [("font", font) for font in FONTS] + [("stroke_width", width) for width in STROKE_WIDTHS]
    return [
        _drawn(digit, *style, height, colours)
        for digit, style, height, colours in product(range(10), styles, HEIGHTS, COLOURS)
    ]


def _drawn(digit, kind, style, height, colours):
    ink, paper = colours
    how = f"{kind} {style}, {height} pixels high, {ink} on {paper}"
    return digit, how, draw(digit, **{kind: style}, height=height, ink=ink, paper=paper)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="file that a script wrote with --save")
    parser.add_argument(
        "--all", action="store_true", help="draw all combinations of what the 20 are drawn with"
    )
    parser.add_argument("--dataset", default=MNIST, help="data set to compare with (default: %(default)s)")
    args = parser.parse_args(argv)
    model = read_model(args.model)
    drawn = everything() if args.all else twenty()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{n}.png") for n in range(len(drawn))]
        for path, (_digit, _how, image) in zip(paths, drawn, strict=True):
            image.save(path)
        found = classify(model, paths)
    answers = [each.digit for each in found]
    wrong = [
        (how, right, answer)
        for (right, how, _), answer in zip(drawn, answers, strict=True)
        if answer != right
    ]
    for how, right, answer in wrong:
        print(f"{right} in {how}, is taken for {answer}")
    print(f"drawn digits: {100 * len(wrong) / len(drawn):.2f} % ({len(wrong)} of {len(drawn)})")
    x, y = read_splits(locate(args.dataset))[2]
    test = evaluate(model, x, y)
    print(f"test set:     {100 * test.error:.2f} % ({test.n_wrong} of {len(y)})")


if __name__ == "__main__":
    main()
