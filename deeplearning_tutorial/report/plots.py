"""Draw the pictures of a report as PNG files in memory. Needs matplotlib, which installs Pillow."""

import io
import math
import os
import sys
from contextlib import contextmanager, suppress

import numpy as np

from deeplearning_tutorial.datasets.formats import IMAGE_SIDE
from deeplearning_tutorial.utils import scale_to_unit_interval, tile_raster_images

_DPI = 120
# Minimum width in pixels: small images are enlarged to make their pixels visible.
_MIN_WIDTH = 480


def require_matplotlib(what="the report needs"):
    """Import matplotlib's ``Figure``; raise ImportError with the command that installs it."""
    # The import fails if MPLBACKEND names a backend that is not installed, and no backend is needed here.
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{what} matplotlib, which is not installed; install it with pip install matplotlib"
        ) from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return Figure


@contextmanager
def default_settings():
    """Use matplotlib's default settings; restore the user's settings afterwards."""
    require_matplotlib()
    import matplotlib.style

    with matplotlib.style.context("default"):
        yield


@default_settings()
def learning_curves(result, published):
    """Draw training cost, validation and test error over the epochs.

    Parameters
    ----------
    result : TrainingResult
        With at least one validation in its ``history``.
    published : float
        The tutorial's test error in percent, drawn as a line.

    Returns
    -------
    bytes
    """
    figure = require_matplotlib()(figsize=(7, 6), dpi=_DPI, layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    history = result.history
    epochs = [validation.iteration / result.minibatches[0] for validation in history]
    tests = [
        (epoch, 100 * validation.test_error)
        for epoch, validation in zip(epochs, history, strict=True)
        if validation.test_error is not None
    ]
    marker = {"marker": "o", "markersize": 3 if len(history) < 50 else 0}
    validation_errors = [100 * validation.validation_error for validation in history]
    above.plot(epochs, validation_errors, label="validation", **marker)
    test_epochs, test_errors = zip(*tests, strict=True)
    above.plot(test_epochs, test_errors, label="test, whenever validation improved", **marker)
    above.axhline(published, color="grey", linestyle="--", label=f"published test error, {published:.2f} %")
    above.set_ylabel("error, %")
    above.legend()
    below.plot(epochs, [validation.cost for validation in history], color="C2", **marker)
    below.set(xlabel="epoch", ylabel="cost of a training minibatch")
    below.xaxis.get_major_locator().set_params(integer=True)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        _scale(axes)
    return _png(figure)


def _scale(axes):
    """Use a logarithmic scale with plain numbers for values that fall by more than a factor of 4."""
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    if values.min() > 0 and values.max() > 4 * values.min():
        from matplotlib.ticker import LogLocator, StrMethodFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
    else:
        axes.set_ylim(bottom=min(0, values.min()))


@default_settings()
def confusion_matrix(confusions):
    """Draw a confusion matrix whose errors are shaded by their number.

    Parameters
    ----------
    confusions : numpy.ndarray
        Integers of shape ``(10, 10)``: rows are labels, columns predictions.

    Returns
    -------
    bytes
    """
    figure = require_matplotlib()(figsize=(7, 6.4), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    digits = range(len(confusions))
    wrong = np.where(np.eye(len(confusions), dtype=bool), 0, confusions)
    axes.imshow(wrong, cmap="Oranges", vmin=0, vmax=max(1, wrong.max()) * 1.3)
    for row in digits:
        for col in digits:
            count, right = confusions[row, col], row == col
            axes.text(col, row, count or "", ha="center", va="center", color="0.5" if right else "black")
    axes.set(xlabel="prediction", ylabel="label", xticks=digits, yticks=digits)
    axes.tick_params(length=0)
    return _png(figure)


@default_settings()
def wrong_digits(images, labels, predicted, confidence):
    """Draw misclassified digits, each with its label, its prediction and the prediction's probability.

    Parameters
    ----------
    images : numpy.ndarray
        Shape ``(n, 784)``.
    labels, predicted : numpy.ndarray
        Integers of shape ``(n,)``.
    confidence : numpy.ndarray
        Probabilities, shape ``(n,)``.

    Returns
    -------
    bytes
    """
    n_cols = min(5, len(images))
    n_rows = math.ceil(len(images) / n_cols)
    size = (1.4 * n_cols, 1.65 * n_rows)
    figure = require_matplotlib()(figsize=size, dpi=_DPI, layout="constrained")
    panels = figure.subplots(n_rows, n_cols, squeeze=False).ravel()
    for axes in panels[len(images) :]:
        axes.set_axis_off()
    digits = zip(panels, images, labels, predicted, confidence, strict=False)
    for axes, image, label, digit, probability in digits:
        axes.imshow(image.reshape(IMAGE_SIDE, IMAGE_SIDE), cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("0.8")
        axes.set_title(f"{label} classified as {digit}\n{100 * probability:.1f} % sure", fontsize=8)
    return _png(figure)


def tiles(images, scale_each):
    """Draw images side by side.

    Parameters
    ----------
    images : numpy.ndarray
        Shape ``(n, rows, cols)``.
    scale_each : bool
        Scale each image to the range from black to white. Otherwise values must be from 0 to 1.

    Returns
    -------
    bytes
    """
    from PIL import Image

    if scale_each:
        images = np.stack([scale_to_unit_interval(image) for image in images])
    n, *shape = images.shape
    # Empty cells are transparent, as are gaps: black would look like part of a tile.
    channels = (images, images, images, np.ones_like(images))
    picture = tile_raster_images(channels, shape, _grid(n), (1, 1), scale_rows_to_unit_interval=False)
    factor = math.ceil(_MIN_WIDTH / picture.shape[1])
    file = io.BytesIO()
    Image.fromarray(picture.repeat(factor, axis=0).repeat(factor, axis=1)).save(file, "PNG", optimize=True)
    return file.getvalue()


def _grid(n):
    """Return rows and columns for ``n`` tiles: up to twice as wide as high, with few empty cells."""
    widths = range(math.ceil(math.sqrt(n)), math.ceil(math.sqrt(2 * n)) + 1)
    n_cols = min(widths, key=lambda width: -n % width)
    return math.ceil(n / n_cols), n_cols


def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
