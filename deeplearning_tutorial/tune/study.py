"""Tune a script's parameters with Optuna: run many trials, and stop unpromising ones early.

    python -m deeplearning_tutorial.tune mlp --n-epochs 9 --search learning_rate=log:0.001:0.1 n_hidden=90,500
    python -m deeplearning_tutorial.tune lenet5 --space lenet5.toml --n-trials 40 --workers 2
    python -m deeplearning_tutorial.tune lenet5 --show --csv trials.csv --plots plots
    python -m deeplearning_tutorial.tune lenet5 --help

Give the script, what to search, and what to fix: any flag of the script except those for files. A domain is
LOW:HIGH, log:LOW:HIGH, LOW:HIGH:STEP or a list A,B,C; tuples are written with spaces in quotes, and
filter_sizes.0 is a tuple's first element. A file has the same in TOML:

    learning_rate = {low = 0.01, high = 0.5, log = true}
    nkerns = {choices = [[6, 16, 120], [8, 24, 120]]}

A trial's value is its best validation error; the test error is recorded but does not influence the search.
The study is stored in an SQLite file, or as --storage says. Ctrl-C stops it at any time; the same command
continues it. Other machines that can access the storage join the study with the same command.
"""

import argparse
import hashlib
import importlib
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numba
import pytensor

from deeplearning_tutorial.datasets import check_mnist
from deeplearning_tutorial.datasets.fingerprint import data_fingerprint
from deeplearning_tutorial.files.bounded import open_file
from deeplearning_tutorial.files.streams import command, stderr, stdout
from deeplearning_tutorial.training import command_line
from deeplearning_tutorial.training.checks import check_positive_int, check_rate, check_seed
from deeplearning_tutorial.training.interrupts import on_interrupt
from deeplearning_tutorial.training.page import Page
from deeplearning_tutorial.training.parameters import check_writable
from deeplearning_tutorial.training.training_files import as_json, back_end
from deeplearning_tutorial.tune import results
from deeplearning_tutorial.tune.search_space import Range, merge, parse_searches, read_space
from deeplearning_tutorial.tune.storage import open_storage, open_study, require_optuna
from deeplearning_tutorial.tune.worker import PRUNERS, Worker, counted_trials, make_pruner

_THREADS = ("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_ERRORS = (ValueError, OSError, ImportError)
# Seconds between checks of the workers.
_POLL = 0.1


@command
def main(argv=None):
    """Run or show the study that the command line describes; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        optuna = require_optuna()
        try:
            return _run(argv)
        except optuna.exceptions.OptunaError as error:
            raise OSError(f"the storage failed: {error.__cause__ or error}") from error
    except _ERRORS as error:
        _print_error(error)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command continues from here", file=stderr)
        return command_line.INTERRUPTED


def _run(argv):
    if not argv or argv[0].startswith("-"):
        parser = _parser()
        parser.parse_args(argv)
        parser.error("the script comes first")
    module, page = _load(argv[0])
    parser = _parser()
    tune_options = vars(parser.parse_args(argv[:1]))
    reserved = tune_options.keys() | {"help", "floatX", "mode", "threads"}
    if clashes := sorted(page.parameters.keys() & reserved):
        raise ValueError(f"{argv[0]} has a parameter {clashes[0]}, which is an option of tune; rename it")
    command_line.add_parameters(parser.add_argument_group(f"of {argv[0]}"), page)
    command_line.add_configuration(parser)
    arguments = vars(parser.parse_args(argv))
    options = argparse.Namespace(**{name: arguments.pop(name) for name in tune_options})
    _check(options)
    study_name = options.study or argv[0].rpartition(".")[2]
    # A Path, because some characters of a name have a meaning in a URL.
    storage = options.storage or Path(f"{study_name}.db")
    if options.show:
        with open_storage(storage, create=False) as opened:
            return _report(options, module, page, open_study(opened, study_name))

    threads_given = "threads" in arguments
    command_line.configure(arguments)
    defaults = _defaults(page)
    space = merge(
        {} if options.space is None else read_space(options.space, defaults),
        parse_searches(options.search, defaults),
    )
    if not space:
        raise ValueError("nothing is searched; use e.g. --search learning_rate=log:0.01:0.5")
    fixed = _fixed(page, arguments, space)
    settings = {
        "script": {"name": module},
        "search": {name: str(domain) for name, domain in space.items()},
        "fixed": _comparable(module, defaults | fixed, space),
    }
    with open_storage(storage) as opened:
        study = open_study(opened, study_name, settings, as_json(defaults))
        worker = Worker(
            study,
            page,
            space,
            fixed,
            options.n_trials,
            heartbeat_timeout=options.heartbeat_timeout,
            seed=None if options.sampler_seed is None else (options.sampler_seed, options.worker or 0),
        )
        study.pruner = make_pruner(options.pruner, _max_epochs(space, defaults | fixed))
        if options.worker is not None:
            worker.run()
            return 0
        done = sum(trial.state.is_finished() for trial in counted_trials(study))
        print(f"study {study_name}: {done} of {options.n_trials} trials done", file=stderr, flush=True)
        if options.workers == 1:
            worker.run()
        else:
            _run_workers(argv, options.workers, threads_given)
        return _report(options, module, page, study)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m deeplearning_tutorial.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("script", help="a page of this package, or your own module that has one")
    add("--search", nargs="+", action="extend", default=[], metavar="NAME=DOMAIN", help="what to search")
    add("--space", metavar="TOML", help="file with what to search")
    add("--n-trials", type=int, default=20, help="trials of the whole study (default: %(default)s)")
    add("--workers", type=int, default=1, help="processes, which share the threads (default: %(default)s)")
    add("--study", metavar="NAME", help="the study's name (default: the script's)")
    add(
        "--storage",
        metavar="URL",
        help="where to store it, e.g. journal:study.log or postgresql+psycopg://user@host/database "
        "(default: sqlite:///STUDY.db)",
    )
    add("--pruner", choices=PRUNERS, default="median", help="stops trials early (default: %(default)s)")
    add(
        "--sampler-seed",
        type=int,
        metavar="SEED",
        help="seed of the sampler; use a different one on each machine (default: a random one)",
    )
    add(
        "--heartbeat-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="time without a heartbeat after which a worker counts as dead and its trial is retried "
        "(default: %(default)g)",
    )
    add("--show", action="store_true", help="only print the trials so far")
    add("--csv", metavar="PATH", help="write the trials to a CSV file; errors are fractions")
    add("--plots", metavar="FOLDER", help="write Optuna's plots to this folder")
    add("--worker", type=int, help=argparse.SUPPRESS)
    return parser


def _check(options):
    check_positive_int("n_trials", options.n_trials, 20)
    check_positive_int("workers", options.workers, 2)
    check_rate("heartbeat_timeout", options.heartbeat_timeout, 60)
    if options.sampler_seed is not None:
        check_seed("sampler_seed", options.sampler_seed, 1)
    if options.csv is not None:
        check_writable(options.csv, "csv")
    if options.plots is not None:
        results.check_plots(options.plots)


def _load(script):
    """Return the name of a page's module and the page."""
    if script.endswith(".py") or not all(part.isidentifier() for part in script.split(".")):
        # Probably the path of a script, which ``python -m`` does not accept either.
        stem = Path(script).name.strip(".").removesuffix(".py")
        example = stem if stem.isidentifier() else "mlp"
        raise ValueError(f"{script!r} is not the name of a module; use e.g. {example}")
    for name in (f"deeplearning_tutorial.{script}", script):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Raise if it is a module that the script imports which is missing.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            continue
        page = getattr(module, "page", None)
        if isinstance(page, Page):
            return name, page
        break
    raise ValueError(
        f"{script!r} is not a page; use e.g. convolutional_mlp, or your own module with "
        "page = Page(its training function, a title)"
    )


def _defaults(page):
    """Return the parameters that can be searched, with their defaults as on the command line."""
    return {name: default for name, default in page.defaults.items() if name != "dataset"}


def _fixed(page, given, space):
    """Return the arguments of every trial: given flags, the data set, and tuples that are partly searched."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    for name in space:
        parameter, dot, _ = name.partition(".")
        if not dot and name in given:
            raise ValueError(f"{name} is both searched and given; remove one of them")
        if dot:
            given.setdefault(parameter, page.parameters[parameter])
    if missing := [name for name in page.required if name not in given]:
        raise ValueError(f"the script needs {' and '.join(missing)}; give it after the script's name")
    default = page.parameters.get("dataset")
    if "dataset" not in given and command_line.takes_mnist(page):
        given["dataset"] = str(command_line.mnist_or_sample())
    elif isinstance(default, (str, Path)) and os.path.isfile(default):
        # The study identifies a file by its content. Only the script knows what any other default means.
        given.setdefault("dataset", str(default))
    return given


def _max_epochs(space, arguments):
    domain = space.get("n_epochs")
    if domain is None:
        return arguments.get("n_epochs")
    return domain.high if isinstance(domain, Range) else max(domain.values)


def _comparable(module, arguments, space):
    """Describe what all trials share; identify data by content, because paths differ between machines."""
    excluded = {"dataset"} | space.keys()
    described = {name: value for name, value in arguments.items() if name not in excluded}
    if arguments.get("dataset") is not None:
        described["data"] = _data_of(importlib.import_module(module), arguments["dataset"])
    described |= {"floatX": pytensor.config.floatX, "mode": back_end()}
    return as_json(described)


def _data_of(script, dataset):
    """Return the fingerprint of MNIST, in any of its formats, or the SHA-256 of the script's own file."""
    if hasattr(script, "load_data"):
        with redirect_stdout(io.StringIO()):
            datasets = script.load_data(dataset)
        check_mnist(dataset, datasets)
        return data_fingerprint(datasets)
    with open_file(dataset) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run_workers(argv, n_workers, threads_given):
    """Run this command in several processes, which divide the threads among them."""
    threads = max(1, numba.config.NUMBA_NUM_THREADS // n_workers)
    shares = {} if threads_given else {name: str(threads) for name in _THREADS}
    # Ctrl-C must reach only this process, which forwards it.
    options = {"process_group": 0} if os.name == "posix" else {}
    processes, interrupts, n_forwarded = [], [], 0
    with on_interrupt(lambda *signalled: interrupts.append(signalled)):
        for number in range(n_workers):
            if not interrupts:
                words = [sys.executable, "-m", "deeplearning_tutorial.tune", *argv, "--worker", str(number)]
                processes.append(subprocess.Popen(words, env=os.environ | shares, **options))
        while any(process.poll() is None for process in processes):
            if n_forwarded < len(interrupts):
                n_forwarded = len(interrupts)
                for process in processes:
                    process.send_signal(signal.SIGINT)
            time.sleep(_POLL)
    if interrupts:
        raise KeyboardInterrupt
    for number, process in enumerate(processes):
        if process.returncode:
            print(f"worker {number} ended with status {process.returncode}", file=stderr)


def _report(options, module, page, study):
    rows, pictures, errors = results.rows_of(study), [], []
    # Files first, because lines may be lost; and none keeps the others from being written.
    if options.csv is not None:
        with _collected(errors):
            results.write_csv(Path(options.csv), rows)
    if options.plots is not None:
        with _collected(errors):
            pictures = results.write_plots(options.plots, study)
    print(results.table(rows), file=stdout)
    is_complete = bool(rows) and rows[0]["state"] == "complete"
    if is_complete:
        best = study.trials[rows[0]["trial"]]
        arguments = best.user_attrs["arguments"] | results.configuration_of(study)
        repeat = results.command_of(module, arguments, page.required)
        print(f"\nTo repeat the best trial:\n  {repeat}", file=stdout)
    for path in pictures:
        print(path, file=stderr)
    for error in errors:
        _print_error(error)
    n_finished = sum(row["state"] not in ("running", "waiting") for row in rows)
    is_done = options.show or (n_finished >= options.n_trials and is_complete)
    return 0 if is_done and not errors else 1


@contextmanager
def _collected(errors):
    try:
        yield
    except _ERRORS as error:
        errors.append(error)


def _print_error(error):
    print(f"{type(error).__name__}: {error}", file=stderr)
