"""Report the results of a study: a table, a CSV file and Optuna's plots."""

import csv
import io
import math
import os
import shlex
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np

from deeplearning_tutorial.files.atomic import write_atomically
from deeplearning_tutorial.report.plots import default_settings, require_matplotlib
from deeplearning_tutorial.training.command_line import MODES
from deeplearning_tutorial.tune.search_space import as_text
from deeplearning_tutorial.tune.storage import require_optuna
from deeplearning_tutorial.tune.worker import counted_trials

_NEEDED_FOR = "a study's plots need"
_ERRORS = ("validation_error", "test_error")
_COUNTS = ("iteration", "epochs")
# A legend with one entry for each of many trials would squeeze the plot.
_MAX_LEGEND_ENTRIES = 12
_VALUE = {"target_name": "validation error"}
# Optuna's plots, the number of complete trials that each needs, and its options.
_PLOTS = (
    ("optimization_history", 1, _VALUE),
    ("intermediate_values", 1, {}),
    ("slice", 1, _VALUE),
    ("parallel_coordinate", 2, _VALUE),
    ("param_importances", 2, _VALUE),
    ("timeline", 1, {}),
)


def rows_of(study):
    """List a study's trials, best first; complete trials come before all others.

    Parameters
    ----------
    study : optuna.Study

    Returns
    -------
    list of dict
        ``trial``, ``state``, ``validation_error`` and ``test_error`` as fractions, ``iteration``,
        ``epochs``, ``seconds``, then a key for each searched parameter, and finally ``worker`` and
        ``reason``. A missing value is None.
    """
    trials = counted_trials(study)
    searched = sorted({name for trial in trials for name in trial.params})
    rows = []
    for trial in trials:
        attributes = trial.user_attrs
        row = {"trial": trial.number, "state": trial.state.name.lower()}
        row |= {name: attributes.get(name) for name in (*_ERRORS, *_COUNTS)}
        row["seconds"] = None if trial.duration is None else round(trial.duration.total_seconds(), 3)
        row |= {name: trial.params.get(name) for name in searched}
        row |= {name: attributes.get(name) for name in ("worker", "reason")}
        rows.append(row)
    return sorted(rows, key=_rank)


def table(rows):
    """Format the rows of `rows_of` as a table, with errors in percent and without workers.

    Returns
    -------
    str
    """
    if not rows:
        return "There are no trials yet"
    names = [name for name in rows[0] if name not in ("worker", "reason")]
    titles = [name.replace("_error", " %") for name in names]
    lines = [titles, *([_cell(name, row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ["  ".join(map(str.rjust, line, widths)) for line in lines]
    notes = ["", *(f"  {row['reason']}" if row["reason"] else "" for row in rows)]
    return "\n".join(line + note for line, note in zip(aligned, notes, strict=True))


def write_csv(path, rows):
    """Write the rows of `rows_of` to a CSV file at ``path``, a Path; errors are fractions."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def command_of(script, arguments, required=()):
    """Return the command that runs a script with ``arguments``, a dict; ``required`` ones are positional."""
    words = ["python", "-m", script, *(str(arguments[name]) for name in required)]
    for name, value in arguments.items():
        if name in required:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value else []
        else:
            words += [flag, *(as_text(value).split() if isinstance(value, (tuple, list)) else [str(value)])]
    return shlex.join(words)


def configuration_of(study):
    """Return flags, as a dict, for a precision and a back end of a study that are not the defaults."""
    fixed = study.user_attrs.get("settings", {}).get("fixed", {})
    flags = {}
    if fixed.get("floatX") == "float64":
        flags["floatX"] = "float64"
    # PyTensor's own configuration may have set a mode that the flag does not accept.
    if fixed.get("mode") in MODES[1:]:
        flags["mode"] = fixed["mode"]
    return flags


def check_plots(folder):
    """Raise ImportError or OSError if `write_plots` could not write to ``folder``."""
    folder = Path(folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"plots={str(folder)!r}: {str(existing)!r} is not a folder; give another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"plots={str(folder)!r}: {str(existing)!r} cannot be written; give another")
    require_matplotlib(_NEEDED_FOR)


def write_plots(folder, study):
    """Write Optuna's plots of a study.

    Parameters
    ----------
    folder : path
        Created if missing. Plots that need more complete trials than there are, are omitted.
    study : optuna.Study

    Returns
    -------
    list of pathlib.Path
        The ``.png`` files.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    optuna = require_optuna()
    require_matplotlib(_NEEDED_FOR)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    counted = _counted_study(optuna, study)
    n_complete = sum(trial.state.name == "COMPLETE" for trial in counted.trials)
    written = []
    for name, needed, options in _PLOTS:
        if n_complete < needed:
            continue
        path = folder / f"{name}.png"
        plot = getattr(optuna.visualization.matplotlib, f"plot_{name}")
        write_atomically(path, _draw(plot, counted, options))
        written.append(path)
    return written


@default_settings()
def _draw(plot, study, options):
    """Return one of Optuna's plots as the bytes of a PNG file."""
    from matplotlib import pyplot
    from matplotlib.backends import backend_agg

    # Optuna draws with pyplot, whose backend the user may have set to one that needs a display or a package.
    with patch.object(pyplot, "_backend_mod", backend_agg), warnings.catch_warnings():
        # Optuna warns that its plots are experimental, and matplotlib that an axis has no length if there are
        # few trials.
        warnings.simplefilter("ignore")
        # One panel, or an array with one panel per parameter.
        panels = np.ravel(plot(study, **options))
        figure = panels[0].figure
        figure.set_size_inches(max(9, 4 * len(panels)), 6)
        legend = panels[0].get_legend()
        if legend is not None and len(legend.get_texts()) > _MAX_LEGEND_ENTRIES:
            legend.remove()
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120, bbox_inches="tight")
        pyplot.close(figure)
    return picture.getvalue()


def _counted_study(optuna, study):
    """Copy the finished trials that count into a new study."""
    counted = optuna.create_study()
    counted.add_trials(trial for trial in counted_trials(study) if trial.state.is_finished())
    return counted


def _rank(row):
    error = row["validation_error"]
    return row["state"] != "complete", math.inf if error is None else error, row["trial"]


def _cell(name, value):
    if value is None:
        return "-"
    if name in _ERRORS:
        return f"{100 * value:.4f}"
    if name == "seconds":
        return f"{value:.1f}"
    return f"{value:.6g}" if isinstance(value, float) else as_text(value)
