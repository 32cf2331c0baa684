import os

import pytest
from pytensor.compile.mode import Mode

# Warnings are errors in the tests, and PyTensor warns of an Op that Numba would run in object mode: a
# function that compiles for Numba has a native kernel for each of its Ops.
MODES = {"py": Mode(linker="py", optimizer="fast_run"), "NUMBA": "NUMBA"}


@pytest.fixture(params=MODES)
def mode(request):
    return MODES[request.param]


@pytest.fixture
def every_case(mode):
    """Whether to test all cases: with Numba, which takes seconds for each kernel, only if asked."""
    return mode != "NUMBA" or "DEEPLEARNING_TUTORIAL_ALL_KERNELS" in os.environ
