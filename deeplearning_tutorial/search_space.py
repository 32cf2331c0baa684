"""Search spaces: which values of a script's parameters a study tries.

On the command line, each ``NAME=`` and a domain:

    learning_rate=0.01:0.5            from 0.01 to 0.5
    learning_rate=log:0.01:0.5        the same, evenly on a logarithmic scale
    n_hidden=64:256:32                in steps of 32
    activation=tanh,relu              one of these
    "nkerns=6 16 120,8 24 120"        one of these tuples, each written as the script's flag takes it
    filter_sizes.0=5,7                the tuple's first element alone
    normalisation=none,contrast       none is None where that is the default, in the file "none"

In a TOML file:

    learning_rate = {low = 0.01, high = 0.5, log = true}
    n_hidden = {low = 64, high = 256, step = 32}
    activation = {choices = ["tanh", "relu"]}
    nkerns = {choices = [[6, 16, 120], [8, 24, 120]]}
    filter_sizes.0 = {choices = [5, 7]}
"""

import math
import tomllib
from dataclasses import dataclass
from decimal import Decimal

from deeplearning_tutorial.bounded import open_file

# More than any search space has.
_MAX_BYTES = 1 << 20
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Attributes
    ----------
    low, high : int or float
        Both of the parameter's type.
    log : bool
        Whether they are drawn evenly on a logarithmic scale.
    step : int, float or None
        Distance of the values; None for all of them.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __str__(self):
        step = "" if self.step is None else f":{self.step}"
        return f"{'log:' if self.log else ''}{self.low}:{self.high}{step}"

    def suggest(self, trial, name):
        """Have an Optuna trial choose one."""
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class Choices:
    """Some values.

    Attributes
    ----------
    values : tuple
        At least one; all of the parameter's type.
    """

    values: tuple

    def __str__(self):
        return ",".join(map(as_text, self.values))

    def suggest(self, trial, name):
        """Have an Optuna trial choose one, which knows a tuple, and None, by its text."""
        by_text = tuple, type(None)
        labels = {as_text(value) if isinstance(value, by_text) else value: value for value in self.values}
        return labels[trial.suggest_categorical(name, list(labels))]


def suggest(space, trial, arguments):
    """Return ``arguments`` with what an Optuna trial chooses from a search space in their place.

    Parameters
    ----------
    space : dict of str to Range or Choices
    trial : optuna.trial.Trial
    arguments : dict
        Those of the training function by name; a tuple of which the space has elements must be among them.

    Returns
    -------
    dict
    """
    chosen = dict(arguments)
    for name, domain in space.items():
        parameter, _, index = name.partition(".")
        value = domain.suggest(trial, name)
        if index:
            elements = list(chosen[parameter])
            elements[int(index)] = value
            value = tuple(elements)
        chosen[parameter] = value
    return chosen


def parse_searches(searches, defaults):
    """Read a search space from the command line.

    Parameters
    ----------
    searches : iterable of str
        Each a name, ``=`` and a domain, as above.
    defaults : dict
        What may be searched: parameters, and their defaults, which give the types.

    Returns
    -------
    dict of str to Range or Choices

    Raises
    ------
    ValueError
        If one of them cannot be read, or does not fit the parameter.
    """
    space = {}
    for text in searches:
        name, equals, domain = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not domain.strip():
            raise ValueError(f"--search {text!r} has no values; use e.g. learning_rate=log:0.01:0.5")
        convert = _converter(name, defaults)
        if name in space:
            raise ValueError(f"--search names {name} twice; give its values at once")
        try:
            space[name] = _parse_domain(domain, convert, _is_numeric(name, defaults))
        except ValueError as error:
            raise ValueError(f"--search {text!r}: {error}") from None
    return space


def read_space(path, defaults):
    """Read a search space from a TOML file; parameters, result and errors are those of `parse_searches`."""
    try:
        with open_file(path) as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        tables = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error
    space = {}
    for name, table in _flattened(tables):
        convert = _converter(name, defaults)
        try:
            space[name] = _domain_of(table, convert, _is_numeric(name, defaults))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return space


def merge(*spaces):
    """Make one search space of several; raise ValueError if a parameter is in it twice."""
    merged = {}
    for space in spaces:
        if both := merged.keys() & space.keys():
            raise ValueError(f"{both.pop()} is searched twice, in the file and by --search; give it once")
        merged |= space
    for name in merged:
        parameter, dot, _ = name.partition(".")
        if dot and parameter in merged:
            raise ValueError(f"{parameter} and {name} are both searched; give the tuple or its elements")
    return merged


def as_text(value):
    """Write a value as the script's flag takes it, and `parse_searches` a choice."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(as_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _flattened(tables):
    for name, table in tables.items():
        if isinstance(table, dict) and table and all(key.isdigit() for key in table):
            yield from ((f"{name}.{index}", element) for index, element in table.items())
        else:
            yield name, table


def _parse_domain(text, convert, numeric):
    if not numeric or ":" not in text:
        return _choices(text.split(","), convert)
    prefix, rest = ("log", text[4:]) if text.startswith("log:") else ("", text)
    bounds = rest.split(":")
    if len(bounds) not in (2, 3):
        raise ValueError("a range is LOW:HIGH, LOW:HIGH:STEP or log:LOW:HIGH")
    low, high, step = map(convert, [*bounds, None][:3])
    return _range(low, high, prefix == "log", step)


def _domain_of(table, convert, numeric):
    if not isinstance(table, dict):
        raise ValueError(f"{table!r} is no table; use e.g. {{low = 1, high = 9}} or {{choices = [1, 9]}}")
    if table.keys() == {"choices"} and isinstance(table["choices"], list):
        return _choices(table["choices"], convert)
    if not {"low", "high"} <= table.keys() <= {"low", "high", "log", "step"}:
        raise ValueError(
            f"has {', '.join(table) or 'nothing'}; give low and high, perhaps log or step, or choices alone"
        )
    if not numeric:
        raise ValueError("only numbers have a range; give choices")
    if not isinstance(table.get("log", False), bool):
        raise ValueError(f"log is {table['log']!r}; use true or false")
    low, high, step = (convert(table.get(key)) for key in ("low", "high", "step"))
    return _range(low, high, table.get("log", False), step)


def _choices(values, convert):
    converted = tuple(map(convert, values))
    if not converted:
        raise ValueError("there are no choices; give at least one")
    if len(set(converted)) < len(converted):
        raise ValueError("a choice is there twice; give each once")
    return Choices(converted)


def _range(low, high, log, step):
    if not low < high:
        raise ValueError(f"the range goes from {low} to {high}; begin with the smaller one")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range begins above 0, not with {low}")
    if step is not None and (log or step <= 0):
        raise ValueError(f"a step of {step} is not possible here; use a positive one, without log")
    if step is not None:
        # In decimals, as they are written: 0.1 to 0.5 is four steps of 0.1.
        first, last, each = (Decimal(str(number)) for number in (low, high, step))
        if (last - first) % each:
            fitting = first + max(1, round((last - first) / each)) * each
            raise ValueError(f"steps of {step} from {low} do not meet {high}; end e.g. with {fitting}")
    return Range(low, high, log, step)


def _default_of(name, defaults):
    parameter, dot, index = name.partition(".")
    if parameter not in defaults:
        raise ValueError(f"{parameter!r} is no parameter that can be searched; use {', '.join(defaults)}")
    default = defaults[parameter]
    if not dot:
        return default
    if not isinstance(default, tuple) or not index.isdigit() or int(index) >= len(default):
        elements = len(default) if isinstance(default, tuple) else 0
        raise ValueError(
            f"{name}: {parameter} has {elements} elements"
            + (f"; use {parameter}.0 to {parameter}.{elements - 1}" if elements else "; leave out the dot")
        )
    return default[int(index)]


def _is_numeric(name, defaults):
    return type(_default_of(name, defaults)) in (int, float)


def _converter(name, defaults):
    """Return what makes a text, or a value from TOML, one of the parameter's type; None stays None."""
    default = _default_of(name, defaults)

    def scalar(value, like):
        kind = str if like is None else type(like)
        if isinstance(value, str):
            value = value.strip()
            if like is None and value == "none":
                return None
            if kind is bool:
                value = _TRUTH.get(value.lower(), value)
            elif kind is not str:
                try:
                    value = kind(value)
                except ValueError:
                    pass
        elif kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise ValueError(f"{value!r} is no {kind.__name__} such as {name}={as_text(like)}")
        return value

    def convert(value):
        if value is None:
            return None
        if not isinstance(default, tuple):
            return scalar(value, default)
        elements = value.split() if isinstance(value, str) else value
        if not isinstance(elements, list) or len(elements) != len(default):
            raise ValueError(f"{value!r} has not {len(default)} elements such as {name}={as_text(default)}")
        return tuple(map(scalar, elements, default))

    return convert
