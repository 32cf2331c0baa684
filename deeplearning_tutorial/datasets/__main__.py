"""Find or download MNIST, verify it, and print its splits or show a digit.

python -m deeplearning_tutorial.datasets                 # download if needed, verify, print the splits
python -m deeplearning_tutorial.datasets mnist_5k.npz    # the sample that ships with the project
python -m deeplearning_tutorial.datasets --show 8        # show training digit 8, a "1"
"""

import argparse
import os
import sys

from deeplearning_tutorial.datasets import MNIST, digits, formats, locate
from deeplearning_tutorial.files.streams import command, stderr, stdout


@command
def main(argv=None):
    """Find or download a data set, verify it and print its splits."""
    parser = argparse.ArgumentParser(
        prog="python -m deeplearning_tutorial.datasets",
        description="Find or download MNIST, verify it, and print its location and the size of each split.",
    )
    help_ = "file, folder or bare name (default: %(default)s)"
    parser.add_argument("dataset", nargs="?", default=MNIST, help=help_)
    parser.add_argument("--show", type=int, metavar="N", help="show training digit N, counted from 0")
    parser.add_argument("--output", metavar="PNG", help="file that --show writes (default: digit-N.png)")
    args = parser.parse_args(argv)
    try:
        path = locate(args.dataset)
        splits = formats.read_splits(path)
        if args.show is not None:
            _show_digit(*splits[0], args.show, args.output or f"digit-{args.show}.png")
            return 0
    except (OSError, ValueError, ImportError) as error:
        print(error, file=stderr)
        return 1
    print(path, file=stdout)
    for name, (x, _y) in zip(formats.SPLITS, splits, strict=True):
        print(f"  {name:<5} {len(x):>6} images", file=stdout)
    if path.is_dir():
        from deeplearning_tutorial.datasets.download import EXPECTED, is_original

        files = [copies[0] for copies in formats.find_idx(path)[0]]
        if all(file.name in EXPECTED for file in files):
            original = all(map(is_original, files))
            text = f"  the files' SHA-256 are {'' if original else 'not '}those of the original MNIST"
            print(text, file=stdout)
    return 0


def _show_digit(x, y, index, output):
    """Print a digit and its label, write it to a PNG file, and open the file if there is a display."""
    if not 0 <= index < len(y):
        raise ValueError(f"--show {index} is not in the training set; use a number from 0 to {len(y) - 1}")
    digits.write_picture(output, x[index])
    print(digits.as_text(x[index]), file=stdout)
    print(f"training digit {index}, label {y[index]}", file=stdout)
    print(output, file=stdout)
    # Without a terminal nobody is watching, and a terminal may have no display.
    has_display = sys.platform in ("darwin", "win32") or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}
    if stdout.isatty() and has_display:
        with digits.require_pillow().open(output) as picture:
            picture.show()


if __name__ == "__main__":
    sys.exit(main())
