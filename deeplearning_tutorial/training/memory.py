"""How a process that trains treats memory that was freed."""

import ctypes
import os
import sys


def retain_freed_memory():
    """Let glibc's malloc retain freed memory, unless the user's environment says how it should work.

    A training step frees its arrays and the next one allocates as many. Returned to the system in between,
    they cost a page fault for every 4 KiB: a tenth of LeNet's step, most of a pooling's time on large maps.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)  # otherwise each block above 32 MiB is mapped alone, and returned when freed
        mallopt(m_trim_threshold, 1 << 30)
