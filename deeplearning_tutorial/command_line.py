"""The command line that every script shares: a flag for each parameter of its training function."""

import argparse
import importlib.util
import inspect
import io
import json
import math
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path

import docstring_parser
import numba
import pytensor
from threadpoolctl import threadpool_limits

import deeplearning_tutorial.compilation_cache  # noqa: F401  it comes before nnet
from deeplearning_tutorial import datasets, streams
from deeplearning_tutorial.checkpoint import MNIST_FINGERPRINT, data_fingerprint
from deeplearning_tutorial.interrupts import treat_sigterm_alike
from deeplearning_tutorial.streams import stderr, stdout

# The default first.
MODES = ("NUMBA", "JAX", "PYTORCH", "FAST_RUN")
_NO_DEFAULT = inspect.Parameter.empty
# What changes nothing about the figures.
FILES = {"dataset", "save", "checkpoint", "resume", "log"}
# Parameters without a flag.
UNSET = {"progress", "channel"}
# As a shell reports a program that Ctrl-C has ended.
INTERRUPTED = 130


def run(function, description, published, minibatches, *, summary=None):
    """Parse ``sys.argv``, train, and compare with the tutorial's published figures.

    Parameters
    ----------
    function : callable
        Training function with a numpydoc docstring. Its parameters become flags, but ``progress``, which is
        always on, ``channel``, which only programs use, and those without a default, which are given without
        a flag.
    description : str
        The script's docstring, shown by ``--help``.
    published : dict of str to number
        The tutorial's figures: "validation error" and "test error" in percent, "epochs" or "iteration".
    minibatches : tuple of int
        Minibatches per split of the full MNIST; figures from less data are not compared.
    summary : callable, optional
        Takes the arguments that were given, by name, and returns the text that the flag ``--summary`` prints
        instead of training.
    """
    streams.prepare()
    treat_sigterm_alike()
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_parameters(parser, function)
    _add_output(parser)
    add_configuration(parser)
    if summary is not None:
        parser.add_argument(
            "--summary",
            action="store_true",
            help="Print the layers, their outputs, parameters and connections, and exit; no data is read.",
        )
    arguments = vars(parser.parse_args())
    quiet, as_json = arguments.pop("quiet"), arguments.pop("json")
    summary_only = arguments.pop("summary", False)
    configure(arguments)
    defaults_used = not arguments.keys() - FILES
    interrupt = None
    try:
        if summary_only:
            print(summary(**arguments), file=stdout)
            if streams.finish():
                sys.exit(1)
            return
        missing = [name for name in required(function) if name not in arguments]
        if missing:
            parser.error(f"the following arguments are required: {', '.join(missing)}")
        if "dataset" not in arguments and takes_mnist(function):
            arguments["dataset"] = mnist_or_sample()
        with _lines_to(quiet, as_json):
            result = function(**arguments, progress=not quiet)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt as error:
        # Before training begins an interrupt has neither a message nor a result.
        print(str(error) or "Interrupted", file=stderr)
        interrupt = error
        result = getattr(interrupt, "result", None)
    if as_json and result is not None:
        print(_as_json(function, arguments, result, interrupt is not None), file=stdout)
    if interrupt is not None:
        sys.exit(INTERRUPTED)
    if quiet and not as_json:
        print(result.summary(), file=stdout)
    elif not quiet and defaults_used and result.minibatches == minibatches:
        if _may_be_mnist(arguments.get("dataset")):
            _compare(result, published)
        else:
            told = "These data are not MNIST's, so the figures do not compare with the tutorial's."
            print(f"\n{told}", file=stderr)
    if result.unwritten:
        sys.exit("\n".join(result.unwritten))
    # The tutorial's lines are not what a run is for: that they were lost does not make it a failure.
    if streams.finish() and (quiet or as_json):
        sys.exit(1)


def _lines_to(quiet, as_json):
    """Keep the tutorial's lines from stdout where something else is wanted there."""
    if quiet:
        return redirect_stdout(io.StringIO())
    return redirect_stdout(stderr) if as_json else nullcontext()


def _as_json(function, arguments, result, interrupted):
    figures = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "best_parameters"}
    figures["history"] = [asdict(validation) for validation in result.history]
    if math.isinf(result.best_validation_error):
        # JSON has no infinity.
        figures |= {"best_validation_error": None, "test_error": None}
    call = inspect.signature(function).bind(**arguments)
    call.apply_defaults()
    report = {
        "script": Path(inspect.getfile(function)).stem,
        "arguments": {name: value for name, value in call.arguments.items() if name not in UNSET},
        "interrupted": interrupted,
    }
    return json.dumps(report | figures, default=str)


def add_parameters(parser, function, without=()):
    """Add a flag for each parameter of a training function, described as its docstring has it.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Leaves out of its namespace what is not given, so that the defaults stay in the function alone.
    function : callable
        As `run` takes it.
    without : collection of str
        Parameters that get no flag.
    """
    documented = {p.arg_name: p.description for p in docstring_parser.parse(function.__doc__ or "").params}
    for name, parameter in parameters_of(function).items():
        if name in without:
            continue
        default = parameter.default
        described = (documented.get(name) or "").replace("%", "%%")
        if default is _NO_DEFAULT:
            # Whether it is there is checked later: a summary does without.
            parser.add_argument(name, nargs="?", default=argparse.SUPPRESS, help=described)
            continue
        many = isinstance(default, tuple)
        if isinstance(default, bool):
            kind = {"action": "store_true"}
        else:
            kind = {
                "type": _type_of(default[0] if many else default),
                "nargs": len(default) if many else None,
                "metavar": "PATH" if name in FILES else None,
            }
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            help=f"{described} (default: {_written(default).replace('%', '%%')})".lstrip(),
            **kind,
        )


def _add_output(parser):
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="No progress bar and none of the tutorial's lines, only the best score in the end.",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="Write the result to stdout as JSON, and the tutorial's lines to stderr. Errors are fractions.",
    )


def add_configuration(parser):
    """Add the flags that `configure` takes: ``--floatX``, ``--mode`` and ``--threads``."""
    parser.add_argument(
        "--floatX",
        choices=["float32", "float64"],
        default=argparse.SUPPRESS,
        help="Precision (default: float32, unless PyTensor's own configuration sets it).",
    )
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=argparse.SUPPRESS,
        help="PyTensor's back end (default: NUMBA, unless its own configuration says otherwise).",
    )
    parser.add_argument(
        "--threads",
        type=int,
        choices=range(1, numba.config.NUMBA_NUM_THREADS + 1),
        default=argparse.SUPPRESS,
        help="Threads of the kernels and of BLAS (default: one per core, or what NUMBA_NUM_THREADS and "
        "OPENBLAS_NUM_THREADS say).",
    )


def configure(arguments):
    """Set precision, back end and threads, and remove them from ``arguments``, a dict of flags given."""
    _set_floatX(arguments.pop("floatX", None))
    if "mode" in arguments:
        _set_mode(arguments.pop("mode"))
    if "threads" in arguments:
        _set_threads(arguments.pop("threads"))


def parameters_of(function):
    """Return the parameters of a training function that a command line gives, by name."""
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in UNSET}


def _type_of(default):
    return _text_or_none if default is None else type(default)


def _text_or_none(text):
    return None if text == "none" else text


def _written(default):
    if default is None:
        return "none"
    if isinstance(default, bool):
        return "yes" if default else "no"
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _set_floatX(floatX):
    if floatX is None:
        # PyTensor tells no other way whether the user's flags or .pytensorrc have set a value.
        untouched = pytensor.config._config_var_dict["floatX"].is_default
        floatX = "float32" if untouched else pytensor.config.floatX
    pytensor.config.floatX = floatX


def _set_mode(mode):
    """Choose the back end, and have it compute as PyTensor's graphs say and start at once."""
    package, extra = {"JAX": ("jax", "jax"), "PYTORCH": ("torch", "pytorch")}.get(mode, (None, None))
    if package is not None and importlib.util.find_spec(package) is None:
        sys.exit(f"--mode {mode} needs {package}; install the extra with pip install -e '.[{extra}]'")
    pytensor.config.mode = mode
    if mode == "FAST_RUN":
        # PyTensor's own linker, which calls each Op's C code or ``perform``.
        pytensor.config.linker = "cvm"
    elif mode == "JAX":
        import jax
        from pytensor.link.jax import dispatch  # noqa: F401  it sets the same for float64 alone

        # Else JAX makes int64 indices int32, and warns of each.
        jax.config.update("jax_enable_x64", True)
    elif mode == "PYTORCH":
        import torch

        # Its compiler takes minutes, needs one for C++, and leaves the convolutions as they are.
        torch.compiler.set_stance("force_eager")


def _set_threads(threads):
    # Its BLAS is the one that Numba calls; only libraries that are loaded can be limited.
    import scipy.linalg  # noqa: F401

    numba.set_num_threads(threads)
    threadpool_limits(threads)


def required(function):
    """List the parameters of a training function that have no default."""
    return [name for name, parameter in parameters_of(function).items() if parameter.default is _NO_DEFAULT]


def takes_mnist(function):
    """Tell whether a training function's data is MNIST where none is given."""
    dataset = inspect.signature(function).parameters.get("dataset")
    return dataset is not None and dataset.default == datasets.MNIST


def mnist_or_sample():
    """Return where MNIST lies, or else, after saying so on stderr, where the sample does."""
    try:
        return datasets.locate(datasets.MNIST)
    except datasets.DatasetNotFoundError as error:
        sample = datasets.sample_path()
        print(
            f"{error}\n\nNOTICE: going on with the sample of 5,000 digits in {sample}. "
            "Its figures do not compare with the tutorial's.\n",
            file=stderr,
        )
        return sample


def _may_be_mnist(dataset):
    """Tell whether it is MNIST itself that lies under its names, or can no longer be seen."""
    try:
        with redirect_stdout(io.StringIO()):
            return dataset is None or data_fingerprint(datasets.load_data(dataset)) == MNIST_FINGERPRINT
    except (OSError, ValueError):
        return True


def _compare(result, published):
    measured = {
        "validation error": result.best_validation_error * 100,
        "test error": result.test_error * 100,
        "epochs": result.epochs,
        "iteration": result.best_iteration,
    }
    print(f"\n{'':18}{'published':>12}{'this run':>12}", file=stderr)
    for name, figure in published.items():
        unit = "%" if "error" in name else ""
        form = ".6f" if unit else "d"
        print(f"{name:18}{figure:12{form}}{measured[name]:12{form}} {unit}".rstrip(), file=stderr)
