"""Measures sides in turn, A B C A B C ..., each in a process of its own, so that a machine's drift hits all alike."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Allocator = Literal["default", "tuned"]
Round = dict[str, Any]  # what a worker says of one round: seconds, cpu, memory (added), process (all of it), found


@dataclass(frozen=True)
class Side:
    """One of those measured: `module.function(**options)` sets up and returns what is timed.

    That is called without arguments, and may return numbers it found (an inertia, an error) by name.
    """

    module: str
    function: str
    options: dict[str, Any] = field(default_factory=dict)
    allocator: Allocator = "default"
    """`default`: as the C library is shipped; `tuned`: by `umeta.keep_buffers`, which suits any side"""
    count: float = 1
    """how many of the measurement's `unit` one call does"""


@dataclass(frozen=True)
class Measurement:
    """Sides that do the same work."""

    title: str
    sides: Mapping[str, Side]
    """by a name that says the allocator where it matters"""
    unit: str = "step"
    """what a call does so many of"""
    rounds: int = 11
    seconds: float = 90
    """after which no further round begins, once there are `LEAST`"""
    flop: float = 0
    """floating-point operations of one call, for the share of the roofline"""


LEAST = 3  # rounds
PAUSE = 0.02  # seconds before a round, in which the threads of the side before it stop waiting for work


class Worker:
    """A side's process, waiting to be asked for a round."""

    def __init__(self, side: Side) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", json.dumps(asdict(side))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,  # so that processes of its own end with it, which hold its stdout
        )

    def read(self) -> Round:
        """Its next message: the first says that it is set up, or what it lacks."""
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.process.wait()
        self.errors.seek(0)
        return {"missing": (self.errors.read().strip().splitlines() or ["it ended without a word"])[-1]}

    def round(self) -> Round:
        assert self.process.stdin is not None
        time.sleep(PAUSE)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self.errors.close()


def measure(measurement: Measurement, start: Callable[[Side], Worker] = Worker) -> dict[str, Any]:
    """All rounds of all sides, as JSON can hold them; a side that does not run is `missing`, with the reason."""
    workers: dict[str, Worker] = {}
    rounds: dict[str, list[Round]] = {}
    try:
        for name, side in measurement.sides.items():
            workers[name] = start(side)
        started = {name: worker.read() for name, worker in workers.items()}
        missing = {name: found["missing"] for name, found in started.items() if "missing" in found}
        begun = time.perf_counter()
        for done in range(measurement.rounds):
            if done >= LEAST and time.perf_counter() - begun > measurement.seconds:
                break
            for name in [name for name in workers if name not in missing]:
                found = workers[name].round()
                if "missing" in found:
                    missing[name] = found["missing"]
                else:
                    rounds.setdefault(name, []).append(found)
        threads = {found["threads"] for found in started.values() if "threads" in found}
    finally:
        for worker in workers.values():
            worker.close()
    return {
        "title": measurement.title,
        "unit": measurement.unit,
        "flop": measurement.flop,
        "threads": sorted(threads),
        "sides": {
            name: {
                **asdict(side),
                **({"missing": missing[name]} if name in missing else summary(rounds[name], side.count)),
            }
            for name, side in measurement.sides.items()
        },
    }


def summary(rounds: list[Round], count: float) -> dict[str, Any]:
    """Median and quartiles of the seconds a unit of work took, and what else the rounds found (the last of each)."""
    seconds = np.array([r["seconds"] for r in rounds]) / count
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return {
        "median": median,
        "low": low,
        "high": high,
        "cpu": float(np.median([r["cpu"] for r in rounds])) / count,
        "memory": rounds[-1]["memory"],
        "process": rounds[-1]["process"],
        "found": rounds[-1]["found"],
        "rounds": seconds.tolist(),
    }


def ratio(side: dict[str, Any], reference: dict[str, Any]) -> tuple[float, float, float]:
    """How many times faster than the reference: median and quartiles of the ratio within each round."""
    low, median, high = np.percentile(np.divide(reference["rounds"], side["rounds"]), [25, 50, 75])
    return float(median), float(low), float(high)


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"
