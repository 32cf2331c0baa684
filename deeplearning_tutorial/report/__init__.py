"""A page about a training run."""
