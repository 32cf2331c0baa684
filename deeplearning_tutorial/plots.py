"""The pictures of a report, each as the bytes of a PNG file. They need matplotlib, which brings Pillow."""

import io
import math
import os
import sys
from contextlib import contextmanager, suppress

import numpy as np

from deeplearning_tutorial.utils import scale_to_unit_interval, tile_raster_images

_DPI = 120
# Pixels across, at least: small images are enlarged so that their pixels can be seen.
_WIDTH = 480


def require_matplotlib(what="the report needs"):
    """Import matplotlib's ``Figure``; raise ImportError that says who needs it and how to install it."""
    # It cannot be imported where this names a backend that is not installed, and none is needed here.
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
    """Have matplotlib draw as if nobody had configured it; its settings come back afterwards."""
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
    looks = result.history
    epochs = [look.iteration / result.minibatches[0] for look in looks]
    measured = [
        (epoch, look) for epoch, look in zip(epochs, looks, strict=True) if look.test_error is not None
    ]
    marker = {"marker": "o", "markersize": 3 if len(looks) < 50 else 0}
    above.plot(epochs, [100 * look.validation_error for look in looks], label="validation", **marker)
    test_epochs, test_errors = zip(*((epoch, 100 * look.test_error) for epoch, look in measured), strict=True)
    above.plot(test_epochs, test_errors, label="test, whenever validation improved", **marker)
    above.axhline(published, color="grey", linestyle="--", label=f"published test error, {published:.2f} %")
    above.set_ylabel("error, %")
    above.legend()
    below.plot(epochs, [look.cost for look in looks], color="C2", **marker)
    below.set(xlabel="epoch", ylabel="cost of a training minibatch")
    below.xaxis.get_major_locator().set_params(integer=True)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        _scale(axes)
    return _png(figure)


def _scale(axes):
    """Show errors that fall to a small part of what they were on a logarithmic scale, with plain numbers."""
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
    """Draw how many images of each digit are taken for which, the wrong ones shaded by number.

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
    """Draw misclassified digits, each with its label, the prediction and the probability of that.

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
    places = figure.subplots(n_rows, n_cols, squeeze=False).ravel()
    for axes in places[len(images) :]:
        axes.set_axis_off()
    for axes, image, *told in zip(places, images, labels, predicted, confidence, strict=False):
        label, digit, probability = told
        axes.imshow(image.reshape(28, 28), cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("0.8")
        axes.set_title(f"{label}, taken for {digit}\n{100 * probability:.1f} % sure", fontsize=8)
    return _png(figure)


def tiles(images, scale_each):
    """Draw images side by side.

    Parameters
    ----------
    images : numpy.ndarray
        Shape ``(n, rows, cols)``.
    scale_each : bool
        Let each image run from black to white by itself. Else values from 0 to 1 do.

    Returns
    -------
    bytes
    """
    from PIL import Image

    if scale_each:
        images = np.stack([scale_to_unit_interval(image) for image in images])
    n, *shape = images.shape
    # Where there is no tile it is transparent, too: black would look like a part of them.
    channels = (images, images, images, np.ones_like(images))
    picture = tile_raster_images(channels, shape, _grid(n), (1, 1), scale_rows_to_unit_interval=False)
    factor = math.ceil(_WIDTH / picture.shape[1])
    file = io.BytesIO()
    Image.fromarray(picture.repeat(factor, axis=0).repeat(factor, axis=1)).save(file, "PNG", optimize=True)
    return file.getvalue()


def _grid(n):
    """Return rows and columns for ``n`` tiles: up to twice as wide as high, with few places left empty."""
    widths = range(math.ceil(math.sqrt(n)), math.ceil(math.sqrt(2 * n)) + 1)
    n_cols = min(widths, key=lambda width: -n % width)
    return math.ceil(n / n_cols), n_cols


def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
