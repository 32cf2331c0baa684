"""Write a page about a training run: its result, what it learned and where it errs.

    python -m deeplearning_tutorial.convolutional_mlp --n-epochs 3 --checkpoint lenet.npz
    python -m deeplearning_tutorial.report lenet.npz                      # writes lenet-report/index.html
    python -m deeplearning_tutorial.report lenet.npz --digit 7 --output lenet

The page contains its pictures and loads nothing else, so it can be sent as a single file; the pictures are
also written beside it as PNG files. Needs matplotlib.
"""

import argparse
from pathlib import Path

import numpy as np

from deeplearning_tutorial.classify.classification import evaluate
from deeplearning_tutorial.classify.feature_maps import feature_maps
from deeplearning_tutorial.classify.models import model_of
from deeplearning_tutorial.datasets import MNIST, check_mnist, load_data, sample_path
from deeplearning_tutorial.datasets.fingerprint import data_fingerprint
from deeplearning_tutorial.datasets.formats import IMAGE_SIDE
from deeplearning_tutorial.files.atomic import write_atomically
from deeplearning_tutorial.files.bounded import cut
from deeplearning_tutorial.files.streams import command, stderr, stdout
from deeplearning_tutorial.report import plots
from deeplearning_tutorial.report.html import Picture, Section, Table, html_page
from deeplearning_tutorial.training.checkpoint import read_checkpoint
from deeplearning_tutorial.training.parameters import check_writable

_N_WRONG = 20


def write_report(checkpoint, output=None, *, dataset=None, digit=0):
    """Write a page about a training run, and its pictures.

    Parameters
    ----------
    checkpoint : path
        File that a script wrote with ``checkpoint=``.
    output : path, optional
        Folder to write to, created if missing; by default beside the checkpoint and named after it.
    dataset : path, optional
        Data set that the run was trained on, as `load_data` accepts it; by default the sample or MNIST,
        whichever matches.
    digit : int
        Index of the test digit whose feature maps are drawn, counted from 0.

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    ValueError
        If ``checkpoint`` is not a checkpoint, has no validation yet, or was trained on data other than
        ``dataset``; or if ``digit`` is not in the test set.
    OSError
        If a file is missing or cannot be written.
    ImportError
        If matplotlib is not installed.
    """
    plots.require_matplotlib()
    checkpoint = Path(checkpoint)
    run = read_checkpoint(checkpoint)
    if not run.result.history:
        raise ValueError(f"{checkpoint} has no validation yet; continue training first")
    try:
        model = model_of(run.script, run.result.best_parameters, run.arguments)
    except ValueError as error:
        raise ValueError(f"{checkpoint} does not fit: {error}") from error
    page = model.page
    x, y = _test_set(checkpoint, run, dataset)
    if not 0 <= digit < len(y):
        raise ValueError(f"digit={digit} is not in the test set; use one from 0 to {len(y) - 1}")
    folder = checkpoint.with_name(f"{checkpoint.stem}-report") if output is None else Path(output)
    folder.mkdir(exist_ok=True)
    path = check_writable(folder / "index.html", "output")
    test = evaluate(model, x, y)
    sections = [
        _settings(run, page),
        _curves(run, page),
        _weights(model),
        *_feature_map_sections(model, test, x, digit),
        _confusions(test),
        *([_wrong_digits(test, x)] if test.n_wrong else []),
    ]
    summary = (
        f"The best model of {_count(run.result.epochs, 'epoch')}, chosen by validation, misclassifies "
        f"{test.n_wrong} of {len(y)} test digits: {100 * test.error:.2f}\xa0%."
    )
    for section in sections:
        for picture in section.contents:
            if isinstance(picture, Picture):
                write_atomically(folder / f"{picture.name}.png", picture.png)
    write_atomically(path, html_page(page.title, summary, sections).encode())
    return path


def _test_set(checkpoint, run, dataset):
    """Return the test set of the data with the fingerprint of the run."""
    for candidate in [sample_path(), MNIST] if dataset is None else [dataset]:
        datasets = load_data(candidate)
        check_mnist(candidate, datasets)
        if data_fingerprint(datasets) == run.data:
            return [variable.get_value(borrow=True) for variable in datasets[2]]
    raise ValueError(
        f"{checkpoint} was trained on data other than {candidate}: {cut(run.data)} there, "
        f"{data_fingerprint(datasets)} here; give the data set that it was trained on"
    )


def _settings(run, page):
    result, published = run.result, page.published
    measured = {"test error": result.test_error, "validation error": result.best_validation_error}
    reached = {
        name: f"{100 * error:.2f}\xa0%"
        + (f" (published: {published[name]:.2f}\xa0%)" if name in published else "")
        for name, error in measured.items()
    }
    reached |= {
        "best iteration": result.best_iteration,
        "iterations": run.iteration,
        "epochs": result.epochs,
        "time": f"{result.seconds / 60:.1f} minutes",
    }
    settings = {"script": run.script}
    settings |= {name: _as_text(value) for name, value in run.arguments.items()}
    settings |= {"data": run.data}
    text = "The errors below were measured during training, which uses only whole minibatches."
    return Section("Result and settings", text, (Table(reached), Table(settings)))


def _curves(run, page):
    result, published = run.result, page.published["test error"]
    first, last = result.history[0], result.history[-1]
    alt = (
        f"Curves over {_count(result.epochs, 'epoch')}: the validation error goes from "
        f"{100 * first.validation_error:.2f} % to {100 * last.validation_error:.2f} %, the cost from "
        f"{first.cost:.3g} to {last.cost:.3g}. A line marks the published test error, {published:.2f} %."
    )
    caption = (
        "Above, the errors at each validation; the test error is measured only when the validation error is "
        "the lowest so far. Below, the cost of the last training minibatch before each validation."
    )
    png = plots.learning_curves(result, published)
    return Section("How it learned", "", (Picture("learning-curves", png, alt, caption),))


def _weights(model):
    name, W = next(iter(model.parameters.items()))
    if W.ndim == 4:
        what, images = f"{W.shape[2]}x{W.shape[3]} filters of the first convolution", W[:, 0]
    else:
        what, images = (
            "the weights of each unit of the first layer as an image",
            W.T.reshape(-1, IMAGE_SIDE, IMAGE_SIDE),
        )
    alt = f"{len(images)} grey squares: {what}."
    caption = f"{name}, {len(images)} tiles: {what}. In each, black is the lowest weight, white the highest."
    png = plots.tiles(images, scale_each=True)
    return Section("What the first layer looks for", "", (Picture("first-layer", png, alt, caption),))


def _feature_map_sections(model, test, x, digit):
    """List the section on feature maps; empty if the network has none."""
    all_maps = feature_maps(model, x[digit])
    if not all_maps:
        return []
    label, prediction = test.labels[digit], test.predicted[digit]
    image = x[digit]
    pictures = [
        Picture(
            "digit",
            plots.tiles(image.reshape(1, IMAGE_SIDE, IMAGE_SIDE), scale_each=False),
            f"A digit of the test set: a {label}.",
            f"Test digit {digit}, 28x28 pixels, white on black.",
        )
    ]
    for name, maps in all_maps.items():
        n, rows, cols = maps.shape
        # Activations such as relu are not bounded by 1.
        largest = max(1.0, float(abs(maps).max()))
        pictures.append(
            Picture(
                name,
                plots.tiles((maps / largest + 1) / 2, scale_each=False),
                f"{n} feature maps of {name}, {rows}x{cols} each.",
                f"{name}: {n} feature maps of {rows}x{cols}, {_operation(name, model)}. "
                f"Black is {-largest:.3g}, grey 0, white {largest:.3g}.",
            )
        )
    text = (
        f"The network classifies it as a {prediction} with a probability of "
        f"{100 * test.probabilities[digit].max():.1f}\xa0%; it is a {label}."
    )
    return [Section("The feature maps of a digit", text, tuple(pictures))]


def _operation(name, model):
    """Describe how a layer computes its maps. LeNet-5's defaults also describe the tutorial's LeNet."""
    settings = {name: model.arguments[name] for name in model.page.choices if name in model.arguments}
    activation = settings.get("activation", "tanh").replace("_", " ")
    if name in ("C1", "C3"):
        normalisation = settings.get("normalisation")
        then = f", then local {normalisation} normalisation" if normalisation else ""
        return f"convolution, bias and {activation}{then}"
    index = ("S2", "S4").index(name)
    size = settings.get("pool_sizes", (2, 2))[index]
    what = {
        "max": "the largest",
        "average": "the average",
        "sum": "the sum",
        "l2": "the root of the sum of squares",
        "stochastic": "the average weighted by the activations",
        "deformation": "the largest, less a penalty for its distance from the centre,",
        "1998": f"coefficient, bias and {activation} of the sum",
    }[settings.get("pooling", "max")]
    return f"{what} of each {size}x{size} of the maps before"


def _confusions(test):
    wrong = test.confusions.copy()
    np.fill_diagonal(wrong, 0)
    label, digit = np.unravel_index(wrong.argmax(), wrong.shape)
    most = (
        f"Most often, {_count(wrong.max(), 'time')}, a {label} is classified as a {digit}."
        if test.n_wrong
        else ""
    )
    alt = f"A table of ten by ten numbers, labels by predictions. {most}".strip()
    caption = f"Number of test digits by label (row) and prediction (column). {most}".strip()
    png = plots.confusion_matrix(test.confusions)
    return Section("Which digits it confuses", "", (Picture("confusions", png, alt, caption),))


def _wrong_digits(test, x):
    chosen = test.most_confidently_wrong(_N_WRONG)
    labels, predicted = test.labels[chosen], test.predicted[chosen]
    confidence = test.probabilities[chosen, predicted]
    errors = (f"a {label} classified as a {digit}" for label, digit in zip(labels, predicted, strict=True))
    png = plots.wrong_digits(x[chosen], labels, predicted, confidence)
    alt = f"The {_count(len(chosen), 'digit')} misclassified with most confidence: {', '.join(errors)}."
    caption = (
        "The test digits that the network misclassified with the highest probability, and that probability."
    )
    return Section("Where it was confident but wrong", "", (Picture("wrong-digits", png, alt, caption),))


def _as_text(value):
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _count(n, noun):
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


@command
def main(argv=None):
    """Write the report that the command line describes; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deeplearning_tutorial.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="file that a script wrote with --checkpoint")
    parser.add_argument(
        "--output", help="folder to write to (default: beside the checkpoint, named after it)"
    )
    parser.add_argument("--dataset", help="what the run was trained on (default: the sample or MNIST)")
    help_ = "test digit whose feature maps are drawn (default: %(default)s)"
    parser.add_argument("--digit", type=int, default=0, help=help_)
    args = parser.parse_args(argv)
    try:
        path = write_report(args.checkpoint, args.output, dataset=args.dataset, digit=args.digit)
    except (OSError, ValueError, ImportError) as error:
        print(error, file=stderr)
        return 1
    print(path, file=stdout)
    return 0

