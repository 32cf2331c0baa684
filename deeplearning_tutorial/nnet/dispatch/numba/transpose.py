"""Transposition, which layouts with the channels last, and narrow matrices, need."""

from deeplearning_tutorial.nnet.dispatch.numba.jit import kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.llvm.operands import Rows
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import BLOCK_SIDE, copy_elements, transpose_block


@kernel_njit
def transpose(out, x, rows, cols):
    """Set ``out[c, r]`` to ``x[r, c]``; both are `Rows`, of ``cols`` and of ``rows`` elements."""
    if rows < BLOCK_SIDE or cols < BLOCK_SIDE:
        for r in range(rows):
            for c in range(cols):
                copy_elements(out.array, out.first + c * out.step + r, x.array, x.first + r * x.step + c, 1)
        return
    # A block is always whole: the last one overlaps the one before.
    for row in range(0, rows, BLOCK_SIDE):
        r = min(row, rows - BLOCK_SIDE)
        for col in range(0, cols, BLOCK_SIDE):
            c = min(col, cols - BLOCK_SIDE)
            transpose_block(
                Rows(out.array, out.first + c * out.step + r, out.step),
                Rows(x.array, x.first + r * x.step + c, x.step),
            )
