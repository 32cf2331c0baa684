"""A script whose training takes no time, for the tests of tuning. Worker processes import it."""

import os
import signal
import time
from pathlib import Path

from deeplearning_tutorial.training.page import Page
from deeplearning_tutorial.training.results import DivergenceError, TrainingResult, Validation


def train(
    rate=0.5,
    n_epochs=3,
    sizes=(5, 7),
    kind="plain",
    *,
    folder="",
    signalled=0,
    run=None,
):
    """Train nothing; the validation error is the rate, and falls by a hundredth per epoch.

    Parameters
    ----------
    rate : float
        The validation error.
    n_epochs : int
        Epochs.
    sizes : tuple of int
        Two sizes.
    kind : str
        ``plain``; others end in an error of this name.
    folder : path
        Where a line is written for each run, if given. There runs wait for those of a second process; the
        fourth kills its process where there is a file ``kill``. With SCRIPTED_WAIT in the environment they
        last until they are interrupted.
    signalled : int
        Signal that the process gets within the first epoch.
    run : Run, optional
        Its channel is given each validation.
    """
    print("... training")
    if folder:
        _join(Path(folder), rate)
    if kind == "unfit":
        raise ValueError(f"sizes={sizes} do not fit. Use others")
    if kind == "broken":
        raise TypeError("the script is broken")
    if kind == "silent":
        return TrainingResult()
    result = TrainingResult()
    if kind == "diverged":
        raise DivergenceError("the cost is nan at iteration 1. Use less", result)
    while os.environ.get("SCRIPTED_WAIT"):
        time.sleep(0.05)
    for epoch in range(1, n_epochs + 1):
        if signalled:
            signal.raise_signal(signalled)
        error = rate - epoch / 100
        result.history.append(Validation(epoch, 1, 10 * epoch, 0.0, error, error + 0.005))
        result.best_validation_error, result.test_error = error, error + 0.005
        result.best_iteration, result.epochs = 10 * epoch, epoch
        if run is not None and run.channel is not None and run.channel(result.history[-1]) == "stop":
            break
    return result


def _join(folder, rate):
    with open(folder / "runs", "a") as file:
        file.write(f"{os.getpid()} {rate!r}\n")
    n_processes, give_up = 0, time.monotonic() + 60
    while n_processes < 2 and time.monotonic() < give_up:
        runs = (folder / "runs").read_text().splitlines()
        n_processes = len({run.split()[0] for run in runs})
        time.sleep(0.05)
    if len(runs) > 3 and (folder / "kill").exists():
        (folder / "kill").unlink()
        os.kill(os.getpid(), signal.SIGKILL)


page = Page(train, "A scripted training")
