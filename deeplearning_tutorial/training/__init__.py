"""Train with three compiled functions: the patience loop, a run's options and files, the command line."""

# Before anything else, because it has to come before `deeplearning_tutorial.nnet`.
from deeplearning_tutorial.training import compilation_cache  # noqa: F401
