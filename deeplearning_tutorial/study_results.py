"""What a study found: a table, a CSV file, and Optuna's plots."""

import csv
import io
import math
import os
import shlex
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np

from deeplearning_tutorial.atomic_files import write_atomically
from deeplearning_tutorial.command_line import MODES
from deeplearning_tutorial.plots import default_settings, require_matplotlib
from deeplearning_tutorial.search_space import as_text
from deeplearning_tutorial.study_storage import require_optuna
from deeplearning_tutorial.study_worker import counting

_NEED = "a study's plots need"
_ERRORS = ("validation_error", "test_error")
_COUNTS = ("iteration", "epochs")
# Entries of a legend, which pushes the plot aside where it has one for each of many trials.
_MOST_LEGENDS = 12
_VALUE = {"target_name": "validation error"}
# Optuna's plots, how many trials trained to the end each needs, and what it is told.
_PLOTS = (
    ("optimization_history", 1, _VALUE),
    ("intermediate_values", 1, {}),
    ("slice", 1, _VALUE),
    ("parallel_coordinate", 2, _VALUE),
    ("param_importances", 2, _VALUE),
    ("timeline", 1, {}),
)


def rows_of(study):
    """List a study's trials, best first; those that were not trained to the end come after all that were.

    Parameters
    ----------
    study : optuna.Study

    Returns
    -------
    list of dict
        ``trial``, ``state``, ``validation_error`` and ``test_error`` as fractions, ``iteration`` and
        ``epochs``, ``seconds``, then a key for each parameter that is searched; in the end ``worker`` and
        ``reason``. None where a trial has none.
    """
    trials = counting(study)
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
    """Lay out the trials that `rows_of` lists, errors in percent, without workers.

    Returns
    -------
    str
    """
    if not rows:
        return "There are no trials yet"
    names = [name for name in rows[0] if name not in ("worker", "reason")]
    titles = [name.replace("_error", " %") for name in names]
    lines = [titles, *([_shown(name, row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    laid_out = ["  ".join(map(str.rjust, line, widths)) for line in lines]
    notes = ["", *(f"  {row['reason']}" if row["reason"] else "" for row in rows)]
    return "\n".join(line + note for line, note in zip(laid_out, notes, strict=True))


def write_csv(path, rows):
    """Write the trials that `rows_of` lists to ``path``, a Path; errors are fractions."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def command_of(script, arguments, required=()):
    """Return the command that trains a script with ``arguments``, a dict; those ``required`` have no flag."""
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
    """Return the flags, as a dict, for a study's precision and back end where they are not the defaults."""
    fixed = study.user_attrs.get("settings", {}).get("fixed", {})
    flags = {}
    if fixed.get("floatX") == "float64":
        flags["floatX"] = "float64"
    # PyTensor's own configuration may have set one that the flag does not know.
    if fixed.get("mode") in MODES[1:]:
        flags["mode"] = fixed["mode"]
    return flags


def check_plots(folder):
    """Raise ImportError or OSError if `write_plots` could not draw into ``folder``."""
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"plots={str(folder)!r}: {str(there)!r} is no folder; give another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"plots={str(folder)!r}: {str(there)!r} cannot be written; give another folder")
    require_matplotlib(_NEED)


def write_plots(folder, study):
    """Draw what Optuna can draw of a study.

    Parameters
    ----------
    folder : path
        Created if there is none. A plot that too few trials allow is left out.
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
    require_matplotlib(_NEED)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _without_the_withdrawn(optuna, study)
    n_complete = sum(trial.state.name == "COMPLETE" for trial in drawn.trials)
    written = []
    for name, needed, options in _PLOTS:
        if n_complete < needed:
            continue
        path = folder / f"{name}.png"
        plot = getattr(optuna.visualization.matplotlib, f"plot_{name}")
        write_atomically(path, _drawn(plot, drawn, options))
        written.append(path)
    return written


@default_settings()
def _drawn(plot, study, options):
    """Return one of Optuna's plots as the bytes of a PNG file."""
    from matplotlib import pyplot
    from matplotlib.backends import backend_agg

    # Optuna draws with pyplot, whose backend is the user's, and may need a display or a package.
    with patch.object(pyplot, "_backend_mod", backend_agg), warnings.catch_warnings():
        # That the plots are experimental, as Optuna has called them for years, and that few trials may leave
        # an axis without length.
        warnings.simplefilter("ignore")
        # One, or an array of as many as there are parameters.
        panels = np.ravel(plot(study, **options))
        figure = panels[0].figure
        figure.set_size_inches(max(9, 4 * len(panels)), 6)
        legend = panels[0].get_legend()
        if legend is not None and len(legend.get_texts()) > _MOST_LEGENDS:
            legend.remove()
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120, bbox_inches="tight")
        pyplot.close(figure)
    return picture.getvalue()


def _without_the_withdrawn(optuna, study):
    drawn = optuna.create_study()
    drawn.add_trials(trial for trial in counting(study) if trial.state.is_finished())
    return drawn


def _rank(row):
    error = row["validation_error"]
    return row["state"] != "complete", math.inf if error is None else error, row["trial"]


def _shown(name, value):
    if value is None:
        return "-"
    if name in _ERRORS:
        return f"{100 * value:.4f}"
    if name == "seconds":
        return f"{value:.1f}"
    return f"{value:.6g}" if isinstance(value, float) else as_text(value)
