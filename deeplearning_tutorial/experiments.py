"""Training functions as experiments, the form in which a scheduler calls them.

The convention is jobman's, which the tutorial's ``experiment(state, channel)`` was written for: the state has
what the experiment needs, and the channel is how a running experiment and its scheduler talk.
"""

import inspect


def experiment_of(function):
    """Make the function ``experiment(state, channel)`` of a script.

    Parameters
    ----------
    function : callable
        The script's training function. It takes ``channel`` by keyword.

    Returns
    -------
    callable
        Its attribute ``function`` is the training function.
    """

    def experiment(state, channel):
        names = inspect.signature(function).parameters.keys() - {"channel"}
        arguments = {name: getattr(state, name) for name in names if hasattr(state, name)}
        return function(**arguments, channel=channel)

    experiment.function = function
    # Where a script keeps it under this name, it is found there by other processes.
    experiment.__module__, experiment.__qualname__ = function.__module__, "experiment"
    experiment.__doc__ = f"""Run `{function.__name__}` as an experiment scheduler such as jobman calls it.

    Parameters
    ----------
    state : object
        Its attributes are the arguments; where it has none of a parameter's name, the default holds, and what
        is no parameter's name is left alone.
    channel : callable or None
        Given each `Validation`; training ends after the one for which it returns ``'stop'``.

    Returns
    -------
    TrainingResult

    Raises
    ------
    ValueError, OSError, TrainingInterrupted, DivergenceError
        As `{function.__name__}` raises them.
    """
    return experiment
