"""Implementations of the Ops for PyTensor's back ends, one package or module per back end.

Numba is PyTensor's default, so its kernels are registered at once. JAX and PyTorch are neither needed nor
imported until a function is compiled for them: PyTensor then imports its package of conversions, and an
import hook imports ours after it. PyTensor has no entry point for this. The hook also works if
``jax_funcify`` is called directly, and replaces nothing of PyTensor's.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

from deeplearning_tutorial.nnet.dispatch import known_lengths, numba  # noqa: F401

FOLLOWERS = {f"pytensor.link.{name}.dispatch": f"{__name__}.{name}" for name in ("jax", "pytorch")}


class _Follow(MetaPathFinder):
    """Import each of FOLLOWERS right after the module that it follows."""

    def find_spec(self, name, path, target=None):
        if name not in FOLLOWERS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        exec_module = spec.loader.exec_module

        def exec_both(module):
            exec_module(module)
            import_module(FOLLOWERS[name])

        spec.loader.exec_module = exec_both
        return spec


sys.meta_path.insert(0, _Follow())
for _followed, _follower in FOLLOWERS.items():
    if _followed in sys.modules:
        import_module(_follower)
