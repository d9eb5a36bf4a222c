"""One side of a measurement in a process of its own: `python -m bench.worker SIDE`, driven by lines on its stdin."""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from umeta.runtime.allocator import keep_buffers

PAGE = resource.getpagesize()


def say(**message: Any) -> None:
    print(json.dumps(message), file=sys.__stdout__, flush=True)


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def main(side: dict[str, Any]) -> None:
    sys.stdout = sys.stderr  # what libraries print is not part of the conversation
    tuned = side["allocator"] == "tuned" and keep_buffers()
    try:
        run = getattr(importlib.import_module(side["module"]), side["function"])(**side["options"])
    except ImportError as error:
        return say(missing=str(error))
    before = resident()
    run()  # the first time is a warm-up
    say(ready=True, tuned=tuned, threads=torch.get_num_threads())
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        found = run() or {}
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        say(seconds=seconds, cpu=cpu, memory=peak - before, process=peak, found=found)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
