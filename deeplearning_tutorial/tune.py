"""Tune a script's parameters with Optuna: many trials, of which the unpromising end early.

    python -m deeplearning_tutorial.tune mlp --n-epochs 9 --search learning_rate=log:0.001:0.1 n_hidden=90,500
    python -m deeplearning_tutorial.tune lenet5 --space lenet5.toml --n-trials 40 --workers 2
    python -m deeplearning_tutorial.tune lenet5 --show --csv trials.csv --plots plots
    python -m deeplearning_tutorial.tune lenet5 --help

First the script, then what is searched and what is fixed: each flag of the script but its files'. A domain is
LOW:HIGH, log:LOW:HIGH, LOW:HIGH:STEP or a list A,B,C; tuples are written with spaces in quotes, and
filter_sizes.0 is a tuple's first element. The file holds the same as TOML:

    learning_rate = {low = 0.01, high = 0.5, log = true}
    nkerns = {choices = [[6, 16, 120], [8, 24, 120]]}

A trial's value is its best validation error; the test error is noted and chooses nothing. The study is kept
in an SQLite file, or wherever --storage says. Stop it with Ctrl-C at any time: the same command goes on.
Given on other machines, too, it has them join in, where the storage is one that all of them reach.
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
from contextlib import redirect_stdout
from pathlib import Path

import numba
import pytensor

from deeplearning_tutorial import command_line, study_results
from deeplearning_tutorial.bounded import open_file
from deeplearning_tutorial.checkpoint import data_fingerprint
from deeplearning_tutorial.checks import check_positive_int, check_rate, check_seed
from deeplearning_tutorial.datasets import check_mnist
from deeplearning_tutorial.interrupts import on_interrupt, treat_sigterm_alike
from deeplearning_tutorial.parameters import check_writable
from deeplearning_tutorial.search_space import Range, merge, parse_searches, read_space
from deeplearning_tutorial.streams import command, stderr, stdout
from deeplearning_tutorial.study_storage import open_storage, open_study, require_optuna
from deeplearning_tutorial.study_worker import PRUNERS, Worker, counting, make_pruner
from deeplearning_tutorial.training_files import as_json, back_end

_THREADS = ("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Seconds between two looks at the workers.
_POLL = 0.1
# Files of one run have no place in a study of many.
_WITHOUT = command_line.FILES - {"dataset"}


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
    except (ValueError, OSError, ImportError) as error:
        print(f"{type(error).__name__}: {error}", file=stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here", file=stderr)
        return command_line.INTERRUPTED


def _run(argv):
    if not argv or argv[0].startswith("-"):
        parser = _parser()
        parser.parse_args(argv)
        parser.error("the script comes first")
    module, experiment = _load(argv[0])
    parser = _parser()
    own = vars(parser.parse_args(argv[:1]))
    names = command_line.parameters_of(experiment.function).keys() - _WITHOUT
    if taken := sorted(names & (own.keys() | {"help", "floatX", "mode", "threads"})):
        raise ValueError(f"{argv[0]} has a parameter {taken[0]}, which is an option of tune; rename it")
    command_line.add_parameters(parser.add_argument_group(f"of {argv[0]}"), experiment.function, _WITHOUT)
    command_line.add_configuration(parser)
    arguments = vars(parser.parse_args(argv))
    options = argparse.Namespace(**{name: arguments.pop(name) for name in own})
    _check(options)
    study_name = options.study or argv[0].rpartition(".")[2]
    # Not a URL, in which some characters of a name would be options.
    storage = options.storage or Path(f"{study_name}.db")
    if options.show:
        with open_storage(storage, create=False) as opened:
            return _report(options, module, experiment, open_study(opened, study_name))

    threads_given = "threads" in arguments
    command_line.configure(arguments)
    defaults = _defaults(experiment.function)
    space = merge(
        {} if options.space is None else read_space(options.space, defaults),
        parse_searches(options.search, defaults),
    )
    if not space:
        raise ValueError("nothing is searched; use e.g. --search learning_rate=log:0.01:0.5")
    fixed = _fixed(experiment.function, arguments, space)
    settings = {
        "script": {"name": module},
        "search": {name: str(domain) for name, domain in space.items()},
        "fixed": _comparable(module, defaults | fixed, space),
    }
    with open_storage(storage) as opened:
        study = open_study(opened, study_name, settings, as_json(defaults))
        worker = Worker(
            study,
            experiment,
            space,
            fixed,
            options.n_trials,
            silence=options.silence,
            seed=None if options.sampler_seed is None else (options.sampler_seed, options.worker or 0),
        )
        study.pruner = make_pruner(options.pruner, _most_epochs(space, defaults | fixed))
        if options.worker is not None:
            worker.run()
            return 0
        done = sum(trial.state.is_finished() for trial in counting(study))
        print(f"study {study_name}: {done} of {options.n_trials} trials done", file=stderr, flush=True)
        if options.workers == 1:
            worker.run()
        else:
            _run_workers(argv, options.workers, threads_given)
        return _report(options, module, experiment, study)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m deeplearning_tutorial.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("script", help="a script of this package, or a module of your own that has such an experiment")
    add("--search", nargs="+", action="extend", default=[], metavar="NAME=DOMAIN", help="what is searched")
    add("--space", metavar="TOML", help="file with what is searched")
    add("--n-trials", type=int, default=20, help="of the whole study (default: %(default)s)")
    add("--workers", type=int, default=1, help="processes, which share the threads (default: %(default)s)")
    add("--study", metavar="NAME", help="the study's name (default: the script's)")
    add(
        "--storage",
        metavar="URL",
        help="where it is kept, e.g. journal:study.log or postgresql+psycopg://user@host/database "
        "(default: sqlite:///STUDY.db)",
    )
    add("--pruner", choices=PRUNERS, default="median", help="ends trials early (default: %(default)s)")
    add(
        "--sampler-seed",
        type=int,
        metavar="SEED",
        help="of the choice of trials; give each machine its own (default: a new one)",
    )
    add(
        "--silence",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="without a sign of life, after which a worker is taken for dead and its trial is tried again "
        "(default: %(default)g)",
    )
    add("--show", action="store_true", help="only show the trials so far")
    add("--csv", metavar="PATH", help="write the trials to a CSV file; errors are fractions")
    add("--plots", metavar="FOLDER", help="draw Optuna's plots there")
    add("--worker", type=int, help=argparse.SUPPRESS)
    return parser


def _check(options):
    check_positive_int("n_trials", options.n_trials, 20)
    check_positive_int("workers", options.workers, 2)
    check_rate("silence", options.silence, 60)
    if options.sampler_seed is not None:
        check_seed("sampler_seed", options.sampler_seed, 1)
    if options.csv is not None:
        check_writable(options.csv, "csv")
    if options.plots is not None:
        study_results.check_plots(options.plots)


def _load(script):
    """Return a script's module name and its experiment."""
    if script.endswith(".py") or not all(part.isidentifier() for part in script.split(".")):
        # A path of a script, most likely; ``python -m`` takes none either.
        stem = Path(script).name.strip(".").removesuffix(".py")
        raise ValueError(f"{script!r} is no module's name; use e.g. {stem if stem.isidentifier() else 'mlp'}")
    for name in (f"deeplearning_tutorial.{script}", script):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Not where it is something that the script imports.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            continue
        experiment = getattr(module, "experiment", None)
        if hasattr(experiment, "function"):
            return name, experiment
        break
    raise ValueError(
        f"{script!r} has no experiment; use e.g. convolutional_mlp, or a module with "
        "experiment = experiments.experiment_of(its training function)"
    )


def _defaults(function):
    """List what can be searched, with its defaults."""
    unsearched = command_line.FILES.union(command_line.required(function))
    parameters = command_line.parameters_of(function).items()
    return {name: parameter.default for name, parameter in parameters if name not in unsearched}


def _fixed(function, given, space):
    """Return the arguments of every trial: what was given, the data, no files, tuples searched in part."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    parameters = command_line.parameters_of(function).items()
    defaults = {name: parameter.default for name, parameter in parameters}
    for name in space:
        parameter, dot, _ = name.partition(".")
        if not dot and name in given:
            raise ValueError(f"{name} is searched and given; leave out one of them")
        if dot:
            given.setdefault(parameter, defaults[parameter])
    if missing := [name for name in command_line.required(function) if name not in given]:
        raise ValueError(f"the script needs {' and '.join(missing)}; give it after the script's name")
    if "dataset" not in given and command_line.takes_mnist(function):
        given["dataset"] = str(command_line.mnist_or_sample())
    elif isinstance(defaults.get("dataset"), (str, Path)) and os.path.isfile(defaults["dataset"]):
        # Known by its content. What else a default means, the script alone knows.
        given.setdefault("dataset", str(defaults["dataset"]))
    return given | {name: None for name in ("save", "checkpoint", "log") if name in defaults}


def _most_epochs(space, arguments):
    domain = space.get("n_epochs")
    if domain is None:
        return arguments.get("n_epochs")
    return domain.high if isinstance(domain, Range) else max(domain.values)


def _comparable(module, arguments, space):
    """Describe what all trials share: data by content, for a path may differ from machine to machine."""
    left_out = command_line.FILES | space.keys()
    described = {name: value for name, value in arguments.items() if name not in left_out}
    if arguments.get("dataset") is not None:
        described["data"] = _data_of(importlib.import_module(module), arguments["dataset"])
    described |= {"floatX": pytensor.config.floatX, "mode": back_end()}
    return as_json(described)


def _data_of(script, dataset):
    """Return a fingerprint of MNIST, which has several forms, or of a file that only this script reads."""
    if hasattr(script, "load_data"):
        with redirect_stdout(io.StringIO()):
            datasets = script.load_data(dataset)
        check_mnist(dataset, datasets)
        return data_fingerprint(datasets)
    with open_file(dataset) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run_workers(argv, n_workers, threads_given):
    """Run this command in processes of their own, which have the threads divided among them."""
    threads = max(1, numba.config.NUMBA_NUM_THREADS // n_workers)
    shares = {} if threads_given else {name: str(threads) for name in _THREADS}
    # Ctrl-C comes to this process alone, which passes it on.
    options = {"process_group": 0} if os.name == "posix" else {}
    processes, interrupts, n_passed_on = [], [], 0
    with on_interrupt(lambda *signalled: interrupts.append(signalled)):
        for number in range(n_workers):
            if not interrupts:
                words = [sys.executable, "-m", "deeplearning_tutorial.tune", *argv, "--worker", str(number)]
                processes.append(subprocess.Popen(words, env=os.environ | shares, **options))
        while any(process.poll() is None for process in processes):
            if n_passed_on < len(interrupts):
                n_passed_on = len(interrupts)
                for process in processes:
                    process.send_signal(signal.SIGINT)
            time.sleep(_POLL)
    if interrupts:
        raise KeyboardInterrupt
    for number, process in enumerate(processes):
        if process.returncode:
            print(f"worker {number} ended with status {process.returncode}", file=stderr)


def _report(options, module, experiment, study):
    rows = study_results.rows_of(study)
    if options.csv is not None:
        study_results.write_csv(Path(options.csv), rows)
    pictures = [] if options.plots is None else study_results.write_plots(options.plots, study)
    print(study_results.table(rows), file=stdout)
    is_complete = bool(rows) and rows[0]["state"] == "complete"
    if is_complete:
        best = study.trials[rows[0]["trial"]]
        arguments = best.user_attrs["arguments"] | study_results.configuration_of(study)
        again = study_results.command_of(module, arguments, command_line.required(experiment.function))
        print(f"\nThe best again:\n  {again}", file=stdout)
    for path in pictures:
        print(path, file=stderr)
    n_finished = sum(row["state"] not in ("running", "waiting") for row in rows)
    return 0 if options.show or (n_finished >= options.n_trials and is_complete) else 1


if __name__ == "__main__":
    treat_sigterm_alike()
    sys.exit(main())
