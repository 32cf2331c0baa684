"""Parse search spaces: the values that a study tries for a script's parameters.

On the command line, each is ``NAME=`` and a domain:

    learning_rate=0.01:0.5            from 0.01 to 0.5
    learning_rate=log:0.01:0.5        the same, uniform on a logarithmic scale
    n_hidden=64:256:32                in steps of 32
    activation=tanh,relu              one of these
    "nkerns=6 16 120,8 24 120"        one of these tuples, each written as for the script's flag
    filter_sizes.0=5,7                only the tuple's first element
    normalisation=none,contrast       none means None if that is the default; in the file, "none"

In a TOML file:

    learning_rate = {low = 0.01, high = 0.5, log = true}
    n_hidden = {low = 64, high = 256, step = 32}
    activation = {choices = ["tanh", "relu"]}
    nkerns = {choices = [[6, 16, 120], [8, 24, 120]]}
    filter_sizes.0 = {choices = [5, 7]}

The command line uses neither TOML values nor Python literals (``ast.literal_eval``), because a shell also
interprets their braces, brackets and quotes. Both forms check each value's type against the default.
"""

import math
import tomllib
from dataclasses import dataclass
from decimal import Decimal

from deeplearning_tutorial.files.bounded import open_file

# More than any search space needs.
_MAX_BYTES = 1 << 20
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, inclusive.

    Attributes
    ----------
    low, high : int or float
        Of the parameter's type.
    log : bool
        Whether to sample uniformly on a logarithmic scale.
    step : int, float or None
        Distance between values; None for all values.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __str__(self):
        step = "" if self.step is None else f":{self.step}"
        return f"{'log:' if self.log else ''}{self.low}:{self.high}{step}"

    def suggest(self, trial, name):
        """Let an Optuna trial choose a value."""
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class Choices:
    """A list of values.

    Attributes
    ----------
    values : tuple
        At least one, all of the parameter's type.
    """

    values: tuple

    def __str__(self):
        return ",".join(map(as_text, self.values))

    def suggest(self, trial, name):
        """Let an Optuna trial choose a value. Optuna stores tuples and None as text."""
        as_label = tuple, type(None)
        labels = {as_text(value) if isinstance(value, as_label) else value: value for value in self.values}
        return labels[trial.suggest_categorical(name, list(labels))]


def suggest(space, trial, arguments):
    """Return ``arguments`` updated with the values that an Optuna trial chooses from a search space.

    Parameters
    ----------
    space : dict of str to Range or Choices
    trial : optuna.trial.Trial
    arguments : dict
        Arguments of the training function by name, including each tuple of which the space has elements.

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
    """Parse a search space from the command line.

    Parameters
    ----------
    searches : iterable of str
        Each ``NAME=DOMAIN``, as above.
    defaults : dict
        The parameters that can be searched and their defaults, which determine the types.

    Returns
    -------
    dict of str to Range or Choices

    Raises
    ------
    ValueError
        If a search cannot be parsed, or does not fit its parameter.
    """
    space = {}
    for text in searches:
        name, equals, domain = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not domain.strip():
            raise ValueError(f"--search {text!r} has no values; use e.g. learning_rate=log:0.01:0.5")
        convert = _converter(name, defaults)
        if name in space:
            raise ValueError(f"--search names {name} twice; give all its values in one search")
        try:
            space[name] = _parse_domain(domain, convert, _is_numeric(name, defaults))
        except ValueError as error:
            raise ValueError(f"--search {text!r}: {error}") from None
    return space


def read_space(path, defaults):
    """Read a search space from a TOML file; see `parse_searches` for ``defaults``, result and errors."""
    try:
        with open_file(path) as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        tables = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    space = {}
    for name, table in _flatten(tables):
        convert = _converter(name, defaults)
        try:
            space[name] = _domain_of(table, convert, _is_numeric(name, defaults))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return space


def merge(*spaces):
    """Merge search spaces; raise ValueError if a parameter occurs twice."""
    merged = {}
    for space in spaces:
        if duplicates := merged.keys() & space.keys():
            raise ValueError(f"{duplicates.pop()} is searched in the file and by --search; give one")
        merged |= space
    for name in merged:
        parameter, dot, _ = name.partition(".")
        if dot and parameter in merged:
            raise ValueError(f"{parameter} and {name} are both searched; search the tuple or its elements")
    return merged


def as_text(value):
    """Format a value as the script's flag and the choices of `parse_searches` accept it."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(as_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _flatten(tables):
    """Yield names and tables, with ``name.0`` for the element 0 of a tuple."""
    for name, table in tables.items():
        if isinstance(table, dict) and table and all(key.isdigit() for key in table):
            yield from ((f"{name}.{index}", element) for index, element in table.items())
        else:
            yield name, table


def _parse_domain(text, convert, numeric):
    if not numeric or ":" not in text:
        return _choices(text.split(","), convert)
    log = text.startswith("log:")
    bounds = text.removeprefix("log:").split(":")
    if len(bounds) not in (2, 3):
        raise ValueError("a range is LOW:HIGH, LOW:HIGH:STEP or log:LOW:HIGH")
    low, high, step = map(convert, [*bounds, None][:3])
    return _range(low, high, log, step)


def _domain_of(table, convert, numeric):
    if not isinstance(table, dict):
        raise ValueError(f"{table!r} is not a table; use e.g. {{low = 1, high = 9}} or {{choices = [1, 9]}}")
    if table.keys() == {"choices"} and isinstance(table["choices"], list):
        return _choices(table["choices"], convert)
    if not {"low", "high"} <= table.keys() <= {"low", "high", "log", "step"}:
        raise ValueError(
            f"it has {', '.join(table) or 'nothing'}; give low and high, perhaps log or step, or only choices"
        )
    if not numeric:
        raise ValueError("only numbers can have a range; give choices")
    if not isinstance(table.get("log", False), bool):
        raise ValueError(f"log is {table['log']!r}; use true or false")
    low, high, step = (convert(table.get(key)) for key in ("low", "high", "step"))
    return _range(low, high, table.get("log", False), step)


def _choices(values, convert):
    converted = tuple(map(convert, values))
    if not converted:
        raise ValueError("there are no choices; give at least one")
    if len(set(converted)) < len(converted):
        raise ValueError("a choice occurs twice; give each once")
    return Choices(converted)


def _range(low, high, log, step):
    if not low < high:
        raise ValueError(f"the range is from {low} to {high}; low must be less than high")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range must start above 0, not at {low}")
    if step is not None and (log or step <= 0):
        raise ValueError(f"the step {step} is not allowed; use a positive step, without log")
    if step is not None:
        # Optuna would lower ``high`` instead. In decimals, as written, 0.1 to 0.5 is four steps of 0.1.
        first, last, each = (Decimal(str(number)) for number in (low, high, step))
        if (last - first) % each:
            fitting = first + max(1, round((last - first) / each)) * each
            raise ValueError(f"steps of {step} from {low} do not reach {high}; end e.g. at {fitting}")
    return Range(low, high, log, step)


def _default_of(name, defaults):
    parameter, dot, index = name.partition(".")
    if parameter not in defaults:
        raise ValueError(f"{parameter!r} is not a parameter that can be searched; use {', '.join(defaults)}")
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
    """Return a function that converts text or a TOML value to the parameter's type; None stays None."""
    default = _default_of(name, defaults)

    def scalar(value, like):
        kind = str if like is None else type(like)
        if isinstance(value, str):
            value = value.strip()
            if like is None and value == "none":
                return None
            if kind is bool:
                value = _BOOLEANS.get(value.lower(), value)
            elif kind is not str:
                try:
                    value = kind(value)
                except ValueError:
                    pass
        elif kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise ValueError(f"{value!r} is not of type {kind.__name__}; use e.g. {name}={as_text(like)}")
        return value

    def convert(value):
        if value is None:
            return None
        if not isinstance(default, tuple):
            return scalar(value, default)
        elements = value.split() if isinstance(value, str) else value
        if not isinstance(elements, list) or len(elements) != len(default):
            raise ValueError(f"{value!r} needs {len(default)} elements; use e.g. {name}={as_text(default)}")
        return tuple(map(scalar, elements, default))

    return convert
