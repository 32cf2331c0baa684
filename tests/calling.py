"""How tests call training functions."""

from deeplearning_tutorial.training.run import OPTIONS, Run


def with_run(arguments):
    """Return arguments of a training function in which the options of a run have become a `Run`."""
    options = {name: value for name, value in arguments.items() if name in OPTIONS}
    others = {name: value for name, value in arguments.items() if name not in OPTIONS}
    return others | ({"run": Run(**options)} if options else {})
