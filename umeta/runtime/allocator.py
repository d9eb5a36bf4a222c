"""How much memory there is, and the C library's allocator, set for work that takes the same large buffers again."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

MEMORY_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
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


def available() -> int:
    """Bytes that this process can still take: what the machine has free, or less where a control group allows less.

    Swap counts: work in it is slow, but it is done.
    """
    free, swap = _machine()
    return max(0, min([free, *(int(limit) - used for limit, used in _groups() if limit.isdigit())])) + swap


def _machine() -> tuple[int, int]:
    info = Path("/proc/meminfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
        if "MemAvailable" in fields:
            free, swap = (int(fields.get(name, "0").split()[0]) << 10 for name in ("MemAvailable", "SwapFree"))
            return free, swap
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0


def _groups() -> list[tuple[str, int]]:
    """Limit and use, page cache left out, of the control groups (version 2, or 1) this process is in."""
    own = Path("/proc/self/cgroup")
    found = []
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        names = ("memory.max", "memory.current") if not controllers else MEMORY_V1
        below = Path(place.lstrip("/"))
        for folder in (root / below, *(root / parent for parent in below.parents)):
            try:
                limit, used = ((folder / name).read_text().strip() for name in names)
                fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cached = sum(int(fields.get(name, 0)) for name in ("inactive_file", "active_file"))
                found.append((limit, int(used) - cached))
            except (OSError, ValueError):
                continue
    return found
