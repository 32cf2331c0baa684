"""Draw the walkthrough's pictures: ``python -m docs.walkthrough.pictures`` writes them beside this file.

Each carries, as text within the PNG, a digest of the arrays that it shows and of the code that draws it. The
tests compare it with a new one, since the bytes of a picture differ between versions of matplotlib.
"""

import hashlib
import inspect
import io
from pathlib import Path

import numpy as np

from deeplearning_tutorial.lenet5 import connections_1998
from docs.walkthrough import examples

FOLDER = Path(__file__).parent
PICTURES = {}
BLUE, ORANGE, GREEN, GREY = "#2f6db3", "#d9772b", "#3a8f5c", "#777777"
WINDOWS = ("#dbe8f6", "#fbe3cf", "#dcefe2", "#efe0f0")


def shows(example, size):
    """Register a drawing of an example, by the drawing's name."""

    def decorator(draw):
        PICTURES[draw.__name__] = (draw, example, size)
        return draw

    return decorator


def path_of(name):
    """Return where a picture lies."""
    return FOLDER / f"{name.replace('_', '-')}.png"


def digest(name):
    """Return what tells whether a picture is up to date.

    Values are rounded: another machine's last digits differ.
    """
    draw, example, size = PICTURES[name]
    result = hashlib.sha256(f"{size}\n{inspect.getsource(draw)}".encode())
    for key, value in example().items():
        rounded = np.round(np.asarray(value, "<f8"), 3) + 0.0  # no negative zeros
        result.update(f"{key} {rounded.shape}".encode() + rounded.tobytes())
    return result.hexdigest()


def render(name):
    """Draw a picture; return the bytes of its PNG."""
    # Only here: the numbers can be had without matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    draw, example, size = PICTURES[name]
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, **example())
    file = io.BytesIO()
    figure.savefig(
        file,
        format="png",
        dpi=100,
        metadata={"Software": None, "Description": digest(name)},
        pil_kwargs={"optimize": True},
    )
    return file.getvalue()


def show_image(axes, image, title, signed=True):
    """Show an image in grey, or where it is signed in blue for negative and red for positive values."""
    largest = abs(image).max()
    axes.imshow(image, cmap="RdBu_r" if signed else "gray", vmin=-largest if signed else 0, vmax=largest)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def show_cells(axes, array, title, colours=None, size=11):
    """Write an array's numbers into a grid of coloured cells."""
    rows, cols = array.shape
    for row, col in np.ndindex(rows, cols):
        colour = "white" if colours is None else colours[row][col]
        axes.add_patch(_rectangle((col, row), 1, 1, facecolor=colour, edgecolor=GREY))
        axes.text(col + 0.5, row + 0.53, f"{array[row, col]:g}", ha="center", va="center", fontsize=size)
    axes.set(xlim=(-0.05, cols + 0.05), ylim=(rows + 0.05, -0.05), aspect="equal")
    axes.axis("off")
    axes.set_title(title, fontsize=10)


def _rectangle(*arguments, **options):
    from matplotlib.patches import Rectangle

    return Rectangle(*arguments, linewidth=0.8, **options)


@shows(examples.convolution, (8.4, 3.3))
def convolution(figure, image, **arrays):
    """Draw a digit, and below each filter the map that it gives."""
    grid = figure.add_gridspec(2, 5, height_ratios=(1, 2.4))
    show_image(figure.add_subplot(grid[1, 0]), image, "digit, 28 × 28", signed=False)
    names = ("vertical edges", "horizontal edges", "random", "random")
    for i, name in enumerate(names):
        filter, map = arrays[f"filter{i}"], arrays[f"map{i}"]
        show_image(figure.add_subplot(grid[0, i + 1]), filter, f"{name}, {len(filter)} × {len(filter)}")
        show_image(figure.add_subplot(grid[1, i + 1]), map, f"map, {len(map)} × {len(map)}")


@shows(examples.flip, (8.4, 2.5))
def flip(figure, image, filter, convolved, correlated):
    """Draw one bright pixel, a filter, and what convolution and correlation make of them."""
    axes = figure.subplots(1, 4, width_ratios=(5, 3.6, 3.6, 3.6))
    bright = [[WINDOWS[1] if value else "white" for value in row] for row in image]
    show_cells(axes[0], image, "image", bright)
    show_cells(axes[1], filter, "filter")
    show_cells(axes[2], convolved, "convolution", [[WINDOWS[2]] * 3] * 3)
    show_cells(axes[3], correlated, "correlation", [[WINDOWS[3]] * 3] * 3)


@shows(examples.pooling, (8.4, 2.6))
def pooling(figure, image, maxima, arriving, gradient):
    """Draw four windows in four colours, their maxima, and the way back."""
    axes = figure.subplots(1, 4, width_ratios=(4, 2.4, 2.4, 4))
    small = [WINDOWS[:2], WINDOWS[2:]]
    large = [[small[row // 2][col // 2] for col in range(4)] for row in range(4)]
    show_cells(axes[0], image, "map", large)
    show_cells(axes[1], maxima, "maxima", small)
    show_cells(axes[2], arriving, "gradient\nof the maxima", small)
    passed = [[large[r][c] if gradient[r, c] else "white" for c in range(4)] for r in range(4)]
    show_cells(axes[3], gradient, "gradient of the map", passed)


@shows(examples.feature_maps, (8.4, 4.6))
def feature_maps(figure, image, **maps):
    """Draw a digit and three feature maps of each layer, side by side."""
    grid = figure.add_gridspec(3, 5)
    show_image(figure.add_subplot(grid[1, 0]), image, "input, 28 × 28", signed=False)
    for column, (name, layer) in enumerate(maps.items(), start=1):
        for row, map in enumerate(layer):
            side = len(map)
            title = f"{name}, {side} × {side}" if row == 0 else ""
            show_image(figure.add_subplot(grid[row, column]), map, title)


def layer_shapes():
    """Return the lengths of each layer's output in the tutorial's LeNet."""
    return {layer.name: layer.shape for layer in examples.lenet()}


@shows(layer_shapes, (8.4, 2.7))
def lenet(figure, **shapes):
    """Draw each layer's maps as a stack of squares, to scale; fully connected layers as columns."""
    axes = figure.subplots()
    x = 0
    for name, shape in shapes.items():
        if len(shape) == 3:
            maps, side, _side = shape
            for k in range(min(maps, 8))[::-1]:
                colour = WINDOWS[0] if name[0] == "C" else WINDOWS[1] if name[0] == "S" else "#eeeeee"
                corner = x + 1.2 * k, -side / 2 + 1.2 * k
                axes.add_patch(_rectangle(corner, side, side, facecolor=colour, edgecolor=GREY))
            width, written = side + 1.2 * (min(maps, 8) - 1), f"{maps} × {side} × {side}"
        else:
            height = 28 if shape[0] > 100 else 12
            axes.add_patch(_rectangle((x, -height / 2), 2.5, height, facecolor=WINDOWS[2], edgecolor=GREY))
            width, written = 2.5, f"{shape[0]}"
        axes.text(x + width / 2, -19, f"{name}\n{written}", ha="center", va="top", fontsize=9)
        x += max(width, 16) + 6
    axes.set(xlim=(-2, x - 8), ylim=(-27, 25), aspect="equal")
    axes.axis("off")


@shows(lambda: {"table": connections_1998()}, (8.4, 3.1))
def c3_inputs(figure, table):
    """Draw the connection table of LeNet-5's third layer."""
    axes = figure.subplots()
    for row, col in np.ndindex(table.shape):
        colour = BLUE if table[row, col] else "white"
        axes.add_patch(_rectangle((col, row), 1, 1, facecolor=colour, edgecolor=GREY))
    axes.set(xlim=(0, 16), ylim=(6, 0), aspect="equal")
    axes.set_xticks(np.arange(16) + 0.5, range(16))
    axes.set_yticks(np.arange(6) + 0.5, range(6))
    axes.tick_params(length=0)
    axes.set_xlabel("feature map of C3")
    axes.set_ylabel("feature map of S2")


@shows(examples.matrix_product, (8.4, 3.6))
def matrix_product(figure, maps, filters, W, X, P, convolved):
    """Draw the maps and filters, and the product that sums the convolutions over both maps."""

    def show(place, array, title, colours):
        show_cells(figure.add_subplot(place), array, title, colours, size=8)

    grid = figure.add_gridspec(2, 5, width_ratios=(3, 4, 8, 4, 4))
    rows = [WINDOWS[0]] * 2 + [WINDOWS[1]] * 2
    for i, (map, filter) in enumerate(zip(maps, filters, strict=True)):
        show(grid[i, 0], map, f"map {i} of S2", [[WINDOWS[i]] * 3] * 3)
        show(grid[i, 1], np.hstack(filter), f"filter {i}", [rows] * 2)
    by_map = [colour for colour in WINDOWS[:2] for _ in range(4)]
    show(grid[:, 2], W, "W: a row for each filter", [by_map] * 2)
    show(grid[:, 3], X, "X: a column\nfor each position", [[colour] * 4 for colour in by_map])
    show(grid[:, 4], P, "P = WX: a row\nfor each map of C3", [[WINDOWS[2]] * 4] * 2)


@shows(examples.learning_curves, (8.4, 3.6))
def learning_curves(figure, **runs):
    """Draw the small run with its training error, LeNet's whole run, and where each was the best so far."""
    for axes, run in zip(figure.subplots(1, 2), ("small", "LeNet"), strict=True):
        curve, best = runs[f"{run}.curve"], runs[f"{run}.best"]
        axes.plot(*curve.T, color=BLUE, label="validation error")
        axes.plot(*best.T, ".", color=ORANGE, label="best so far")
        axes.axvline(best[-1, 0], color=GREY, linestyle=":", linewidth=1)
        axes.set_xlabel("iteration (minibatches trained)")
        axes.set_ylabel("error, %")
        axes.grid(alpha=0.3)
    small, large = figure.axes
    small.plot(runs["small.curve"][:, 0], runs["small.training"], color=GREEN, label="training error")
    small.set_title("logistic regression, 500 digits", fontsize=10)
    small.set_ylim(0, 20)
    large.set_title("LeNet, 50,000 digits", fontsize=10)
    large.set_yscale("log")
    large.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    large.minorticks_off()
    patience = runs["LeNet.patience"]
    start = patience[0, 1]
    large.axvline(start, color=GREEN, linestyle="--", linewidth=1, label="patience at first")
    for axes in figure.axes:
        axes.legend(fontsize=8)


@shows(examples.rates, (8.4, 3.2))
def learning_rates(figure, costs, errors):
    """Draw the cost over the iterations for three learning rates, the mean of five at a time."""
    axes = figure.subplots()
    for rate, cost, colour in zip(examples.RATES, costs, (GREEN, BLUE, ORANGE), strict=True):
        means = cost.reshape(-1, 5).mean(axis=1)
        axes.plot(np.arange(5, len(cost) + 1, 5), means, color=colour, label=f"learning rate {rate:g}")
    axes.set(xlabel="iteration", ylabel="cost", yscale="log", xlim=(0, costs.shape[1]))
    axes.set_yticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    for name in PICTURES:
        path_of(name).write_bytes(render(name))
        print(f"{path_of(name)}: {path_of(name).stat().st_size / 1000:.0f} kB")
