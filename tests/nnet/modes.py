"""Modes for tests of what a graph becomes, in which no kernel need be compiled."""

from pytensor.compile.mode import Mode, get_mode
from pytensor.graph.rewriting.db import RewriteDatabaseQuery

INCOMPATIBLE = get_mode("NUMBA").linker.incompatible_rewrites
REWRITTEN_FOR_NUMBA = Mode(
    linker="py", optimizer=RewriteDatabaseQuery(include=["fast_run", "numba"], exclude=INCOMPATIBLE)
)
"""Numba's rewrites; the Ops' perform computes the results."""
