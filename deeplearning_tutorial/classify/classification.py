"""Classify pictures and test sets with a saved model: the functions behind the command ``predict``."""

import argparse
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deeplearning_tutorial.classify.models import N_CLASSES, read_model
from deeplearning_tutorial.classify.pictures import read_picture
from deeplearning_tutorial.datasets import MNIST, check_mnist, load_data
from deeplearning_tutorial.datasets.digits import as_text
from deeplearning_tutorial.datasets.formats import N_PIXELS
from deeplearning_tutorial.files.streams import command, stderr, stdout

# Predictions with a lower probability are marked as unsure.
_SURE = 0.9


@dataclass(frozen=True)
class Recognition:
    """What a model recognises in a picture.

    Attributes
    ----------
    path : path
        The picture.
    image : numpy.ndarray or None
        The model's input, shape ``(784,)``; None if the picture cannot be used.
    probabilities : numpy.ndarray or None
        Shape ``(10,)``; None if the picture cannot be used.
    error : Exception or None
        Why the picture cannot be used.
    """

    path: object
    image: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    error: Exception | None = None

    @property
    def digit(self):
        """The most probable digit, an int; None if the picture cannot be used."""
        return None if self.probabilities is None else int(self.probabilities.argmax())

    @property
    def unsure(self):
        """Whether the most probable digit has less than 90 %; True if the picture cannot be used."""
        return self.probabilities is None or bool(self.probabilities.max() < _SURE)


@dataclass(frozen=True)
class Evaluation:
    """Predictions of a model for labelled images.

    Attributes
    ----------
    labels : numpy.ndarray
        Shape ``(n,)``.
    probabilities : numpy.ndarray
        Shape ``(n, 10)``.
    """

    labels: np.ndarray
    probabilities: np.ndarray

    @cached_property
    def predicted(self):
        """Most probable digits, shape ``(n,)``."""
        return self.probabilities.argmax(axis=1)

    @property
    def n_wrong(self):
        """Number of misclassified images."""
        return int((self.predicted != self.labels).sum())

    @property
    def error(self):
        """Fraction of misclassified images."""
        return self.n_wrong / len(self.labels)

    @property
    def confusions(self):
        """Number of images by label (row) and predicted digit (column), int64 of shape ``(10, 10)``."""
        counts = np.bincount(self.labels * N_CLASSES + self.predicted, minlength=N_CLASSES**2)
        return counts.reshape(N_CLASSES, N_CLASSES)

    def most_confidently_wrong(self, n):
        """Return the indices of at most ``n`` misclassified images, most confident first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        confidence = self.probabilities[wrong, self.predicted[wrong]]
        return wrong[np.argsort(-confidence, kind="stable")][:n]


def classify(model, pictures):
    """Recognise the digit in each picture.

    Parameters
    ----------
    model : Model
        As `read_model` returns it.
    pictures : iterable of path
        See `read_picture`.

    Returns
    -------
    list of Recognition
        In the order of ``pictures``. A picture that cannot be used has its error and does not affect others.

    Raises
    ------
    ImportError
        If Pillow is not installed.
    """
    found = []
    for path in pictures:
        try:
            found.append(Recognition(path, image=read_picture(path)))
        except (OSError, ValueError) as error:
            found.append(Recognition(path, error=error))
    images = [each.image for each in found if each.error is None]
    probabilities = iter(model.probabilities(np.reshape(images, (-1, N_PIXELS))))
    return [each if each.error else Recognition(each.path, each.image, next(probabilities)) for each in found]


def evaluate(model, x, y):
    """Classify labelled images.

    Parameters
    ----------
    model : Model
        As `read_model` returns it.
    x : numpy.ndarray
        Images, shape ``(n, 784)``.
    y : numpy.ndarray
        Labels, integers of shape ``(n,)``.

    Returns
    -------
    Evaluation
    """
    return Evaluation(y, model.probabilities(x))


@command
def main(argv=None, description=None):
    """Classify the pictures on the command line, or else the test set; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deeplearning_tutorial.predict",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="file that a script wrote with --save or --checkpoint")
    parser.add_argument("pictures", nargs="*", help="one digit each; if omitted, the test set is used")
    parser.add_argument("--dataset", default=MNIST, help="data set with the test set (default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="also print the model's input as text")
    args = parser.parse_intermixed_args(argv)
    try:
        model = read_model(args.model)
        if args.pictures:
            return _print_recognitions(classify(model, args.pictures), args.show)
        datasets = load_data(args.dataset)
        check_mnist(args.dataset, datasets)
        test_set = (variable.get_value(borrow=True) for variable in datasets[2])
        _print_evaluation(evaluate(model, *test_set))
    except (OSError, ValueError, ImportError) as error:
        print(error, file=stderr)
        return 1
    return 0


def _print_recognitions(found, show):
    width = max(len(str(path)) for path in ["picture", *(each.path for each in found)])
    digits = "".join(f"{digit:6}" for digit in range(N_CLASSES))
    print(f"{'':{width}}         probabilities in %\n{'picture':{width}}  digit  {digits}", file=stdout)
    for each in found:
        if each.error is not None:
            # Flush stdout first to keep the order on a terminal that shows both.
            stdout.flush()
            print(each.error, file=stderr)
            continue
        percent = "".join(f"{100 * p:6.1f}" for p in each.probabilities)
        unsure = "  unsure" if each.unsure else ""
        print(f"{str(each.path):{width}}  {each.digit:5}  {percent}{unsure}", file=stdout)
        if show:
            print(as_text(each.image), file=stdout)
    return 1 if any(each.error for each in found) else 0


def _print_evaluation(evaluation):
    n = len(evaluation.labels)
    print(f"test error {100 * evaluation.error:f} % ({evaluation.n_wrong} of {n})", file=stdout)
    width = max(5, len(str(n)) + 1)
    print("digits by label (rows) and prediction (columns):", file=stdout)
    print(" " * 4 + "".join(f"{digit:{width}}" for digit in range(N_CLASSES)), file=stdout)
    for label, row in enumerate(evaluation.confusions):
        print(f"{label:4}" + "".join(f"{count:{width}}" for count in row), file=stdout)
