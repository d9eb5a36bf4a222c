"""The C library's allocator, set for work that allocates and frees the same large buffers again and again."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_buffers(limit: int = 1 << 30) -> bool:
    """Lets glibc keep freed buffers up to `limit` bytes instead of handing each back to the kernel.

    Without it a training step on a CPU spends much of its time in page faults. The setting is the whole process's, so
    the command line makes it and a library user may; returns whether it took (glibc only).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_M_MMAP_THRESHOLD, limit) and mallopt(_M_TRIM_THRESHOLD, limit))
