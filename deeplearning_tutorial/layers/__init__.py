"""What several pages build their networks with."""

# Before anything else, because it has to come before `deeplearning_tutorial.nnet`.
from deeplearning_tutorial.training import compilation_cache  # noqa: F401
