"""The command line that every script shares: a flag for each parameter of its training function."""

import argparse
import importlib.util
import io
import json
import math
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, fields

import docstring_parser
import numba
import pytensor
from threadpoolctl import threadpool_limits

from deeplearning_tutorial import datasets
from deeplearning_tutorial.files import streams
from deeplearning_tutorial.files.streams import stderr, stdout
from deeplearning_tutorial.training.interrupts import treat_sigterm_alike
from deeplearning_tutorial.training.memory import retain_freed_memory
from deeplearning_tutorial.training.results import CompilationFinished
from deeplearning_tutorial.training.run import Run

# The default first.
MODES = ("NUMBA", "JAX", "PYTORCH", "FAST_RUN")
# As a shell reports a program that Ctrl-C has ended.
INTERRUPTED = 130


def run(page, description):
    """Parse ``sys.argv``, train, and compare with the published figures.

    Parameters
    ----------
    page : Page
        Its training function's parameters become flags; those without a default are positional.
    description : str
        The page's docstring, shown by ``--help``.
    """
    streams.prepare()
    treat_sigterm_alike()
    retain_freed_memory()
    parser = _parser(page, description)
    arguments = vars(parser.parse_args())
    quiet, as_json = arguments.pop("quiet"), arguments.pop("json")
    summary_only, precompile = arguments.pop("summary", False), arguments.pop("precompile")
    options = {name: arguments.pop(name) for name in ("save", "checkpoint", "resume", "log")}
    if precompile:
        options = {}
    configure(arguments)
    # Where the data lie makes no difference to the figures.
    are_defaults = not arguments.keys() - {"dataset"}
    arguments = page.with_values(arguments)
    training_run = Run(**options, progress=not quiet, precompile=precompile)
    interrupted = False
    try:
        if summary_only:
            print(page.summary(**arguments), file=stdout)
            if streams.finish():
                sys.exit(1)
            return
        _complete(parser, page, arguments)
        with _lines_to(quiet or precompile, as_json):
            result = page.train(**arguments, run=training_run)
    except CompilationFinished as finished:
        if not quiet:
            print(finished, file=stdout)
        return
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt as error:
        # Before training begins an interrupt has neither a message nor a result.
        print(str(error) or "Interrupted", file=stderr)
        interrupted, result = True, getattr(error, "result", None)
    if as_json and result is not None:
        given = {name: arguments[name] for name in ("dataset",) if name in arguments}
        print(_as_json(page, given | training_run.arguments | options, result, interrupted), file=stdout)
    if interrupted:
        sys.exit(INTERRUPTED)
    if quiet and not as_json:
        print(result.closing_line(), file=stdout)
    elif not quiet and are_defaults and result.minibatches == page.minibatches:
        _compare(training_run, result, page.published)
    if result.write_errors:
        sys.exit("\n".join(result.write_errors))
    # The tutorial's lines are not what a run is for: that they were lost does not make it a failure.
    if streams.finish() and (quiet or as_json):
        sys.exit(1)


def _parser(page, description):
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_parameters(parser, page)
    _add_run(parser, page)
    _add_output(parser)
    _add_precompile(parser)
    add_configuration(parser)
    if page.summary is not None:
        parser.add_argument(
            "--summary",
            action="store_true",
            help="Print the layers, their outputs, parameters and connections, and exit; no data is read.",
        )
    return parser


def _complete(parser, page, arguments):
    """Add the data set to the arguments, a dict; end the process if a required one is missing."""
    missing = [name for name in page.required if name not in arguments]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    if "dataset" not in arguments and takes_mnist(page):
        arguments["dataset"] = mnist_or_sample()


def _lines_to(quiet, as_json):
    """Keep the tutorial's lines away from stdout if something else is to be printed there."""
    if quiet:
        return redirect_stdout(io.StringIO())
    return redirect_stdout(stderr) if as_json else nullcontext()


def _as_json(page, arguments, result, interrupted):
    figures = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "best_parameters"}
    figures["history"] = [asdict(validation) for validation in result.history]
    if math.isinf(result.best_validation_error):
        # JSON has no infinity.
        figures |= {"best_validation_error": None, "test_error": None}
    report = {"script": page.script, "arguments": arguments, "interrupted": interrupted}
    return json.dumps(report | figures, default=str)


def add_parameters(parser, page):
    """Add a flag for each parameter of a page's training function, described as its docstring has it.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Its namespace holds only what was given, so that the defaults stay in the function alone.
    page : Page
        As `run` takes it.
    """
    descriptions, defaults = _descriptions(page.train), page.defaults
    for name in page.parameters:
        if name not in defaults:
            # Whether it is there is checked later: a summary does without.
            parser.add_argument(name, nargs="?", default=argparse.SUPPRESS, help=descriptions.get(name, ""))
        else:
            default, metavar = defaults[name], "PATH" if name == "dataset" else None
            _add_flag(parser, name, default, descriptions, argparse.SUPPRESS, metavar, page.by_name.get(name))


def _add_run(parser, page):
    descriptions = _descriptions(Run)
    for name in ("save", "checkpoint", "log"):
        default = page.save if name == "save" else None
        _add_flag(parser, name, default, descriptions, default, "PATH")
    _add_flag(parser, "resume", False, descriptions, False)


def _descriptions(documented):
    """Return what a numpydoc docstring says of each parameter, fit for argparse."""
    parameters = docstring_parser.parse(documented.__doc__ or "").params
    return {each.arg_name: (each.description or "").replace("%", "%%") for each in parameters}


def _add_flag(parser, name, default, descriptions, unless_given, metavar=None, values=None):
    """Add the flag of a parameter; ``values`` are what it takes by name."""
    text = _written(default)
    if isinstance(default, bool):
        kind = {"action": "store_true"}
    elif values:
        kind = {"choices": tuple(values), "metavar": metavar}
    else:
        many = isinstance(default, tuple)
        kind = {
            "type": _type_of(default[0] if many else default),
            "nargs": len(default) if many else None,
            "metavar": metavar,
        }
    parser.add_argument(
        f"--{name.replace('_', '-')}",
        dest=name,
        default=unless_given,
        help=f"{descriptions.get(name, '')} (default: {text.replace('%', '%%')})".lstrip(),
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


def _add_precompile(parser):
    parser.add_argument(
        "--precompile",
        action="store_true",
        help="Compile all that these arguments need, for later runs, and exit; no other file is written.",
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
    """Choose the back end, and set it to PyTensor's dtypes, without slow compilation."""
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


def takes_mnist(page):
    """Tell whether a page's data is MNIST where none is given."""
    return page.parameters.get("dataset") == datasets.MNIST


def mnist_or_sample():
    """Return where MNIST lies, or else, after saying so on stderr, where the sample does."""
    try:
        return datasets.locate(datasets.MNIST)
    except datasets.DatasetNotFoundError as error:
        sample = datasets.sample_path()
        print(
            f"{error}\n\nNOTICE: training continues with the sample of 5,000 digits in {sample}. "
            "Its figures are not comparable with the tutorial's.\n",
            file=stderr,
        )
        return sample


def _compare(training_run, result, published):
    if not training_run.is_on_mnist():
        notice = "These data are not MNIST's, so the figures are not comparable with the tutorial's."
        print(f"\n{notice}", file=stderr)
        return
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
