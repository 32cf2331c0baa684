"""How the functions of kernels are compiled, and the version of their sources."""

import hashlib
from functools import partial
from pathlib import Path

from pytensor.link.numba.dispatch.basic import numba_njit

# Only the fused multiply-add. PyTensor's own choice also lets sums be reordered, which undoes steps that rely
# on rounding, such as the exact reduction in the hyperbolic tangent.
kernel_njit = partial(numba_njit, fastmath={"contract"})

# For functions that hold most of a kernel, which LLVM would optimise alone and again in each caller.
kernel_inline = partial(kernel_njit, inline="always")


def sources_of_kernels(nnet):
    """List the files of the folder ``nnet`` that can change a kernel: those of the Ops and of the kernels."""
    return sorted([*nnet.glob("*.py"), *nnet.glob("fused/**/*.py"), *nnet.glob("dispatch/numba/**/*.py")])


def digest_of_sources(nnet):
    """Return a number that changes with the kernels, and with the Ops' functions that they compile."""
    digest = hashlib.sha256()
    for path in sources_of_kernels(nnet):
        digest.update(f"{path.relative_to(nnet).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:6], "big")


# PyTensor's and Numba's caches notice neither that a kernel was edited nor that it calls another one by a
# name that no longer exists: what they stored of other sources must never be loaded.
VERSION = digest_of_sources(Path(__file__).parents[2])
