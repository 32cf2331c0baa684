"""Transposition, which layouts with the channels last, and narrow matrices, need."""

from deeplearning_tutorial.nnet.dispatch.numba.kernel import kernel_njit
from deeplearning_tutorial.nnet.dispatch.numba.llvm.vectors import BLOCK_SIDE, copy_elements, transpose_block


@kernel_njit
def transpose(out, out_at, out_step, x, x_at, x_step, rows, cols):
    """Set ``out[out_at + c * out_step + r]`` to ``x[x_at + r * x_step + c]``, both in flat offsets."""
    if rows < BLOCK_SIDE or cols < BLOCK_SIDE:
        for r in range(rows):
            for c in range(cols):
                copy_elements(out, out_at + c * out_step + r, x, x_at + r * x_step + c, 1)
        return
    # A block is always whole: the last one overlaps the one before.
    for row in range(0, rows, BLOCK_SIDE):
        r = min(row, rows - BLOCK_SIDE)
        for col in range(0, cols, BLOCK_SIDE):
            c = min(col, cols - BLOCK_SIDE)
            transpose_block(out, out_at + c * out_step + r, out_step, x, x_at + r * x_step + c, x_step)
