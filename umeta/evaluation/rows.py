"""Rows of an evaluation: finished ones are kept, all of them recorded with their provenance."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from umeta.errors import Interrupted, UserError
from umeta.evaluation.result import Origin, Provenance, Result
from umeta.runtime import artifacts, distributed
from umeta.runtime.lock import wait_for_lock
from umeta.runtime.progress import postpone_interrupt
from umeta.stages.runs import Run
from umeta.version import __version__


def describe_question(run: Run, **own: Any) -> dict[str, Any]:
    """All that the rows of an evaluation depend on, but which of the baselines are wanted; `own` is its kind's."""
    return {
        **asdict(run.config.evaluate),
        "baselines": None,
        "metalearner": run.config.plain["metalearner"],
        "model": artifacts.hash_file(run.folder / "model.safetensors"),
        "tasks": artifacts.hash_file(run.folder / "tasks.json"),
        "umeta": __version__,
        **own,
    }


class Kept:
    """Parts of an evaluation that are computed once: a file keeps them, for when it is interrupted.

    The processes of a run share the parts; the first of them writes the file.
    """

    def __init__(self, file: Path, asked: dict[str, Any], parts: Sequence[str] = ("rows",)) -> None:
        """Read what the file has for the same question `asked`; nothing if it has another, or is unusable."""
        self.file, self.asked = file, json.loads(json.dumps(asked))
        self.parts: dict[str, dict[str, Any]]
        self.parts, self.seconds = distributed.run_once(lambda: self._read(parts))

    def _read(self, parts: Sequence[str]) -> tuple[dict[str, dict[str, Any]], float]:
        try:
            before = artifacts.read_sealed(self.file)
        except UserError:
            before = {}
        if before.get("asked") != self.asked:
            return {part: {} for part in parts}, 0.0
        return {part: before.get(part, {}) for part in parts}, before["seconds"]

    @contextmanager
    def open(self) -> Iterator[Callable[..., None]]:
        """Yield `compute(part, name, work, *args)`: it puts what `work(*args)` returns into a part, unless it is there.

        Raises:
            Interrupted: after Ctrl-C, when the current work is done and kept.
        """
        with postpone_interrupt("row") as pressed:

            def compute(part: dict[str, Any], name: str, work: Callable[..., Any], *args: Any) -> None:
                if name in part:
                    return
                began = time.monotonic()
                part[name] = work(*args)
                self.seconds += time.monotonic() - began
                if distributed.is_first():
                    artifacts.write_sealed(self.file, {"asked": self.asked, **self.parts, "seconds": self.seconds})
                if distributed.any_process(pressed.is_set()):
                    raise Interrupted(
                        f"evaluate: stopped, finished rows are kept in {self.file}; go on with the same command and "
                        "--resume"
                    )

            yield compute

    def compute_rows(self, rows: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Return the rows' values: those in the file, or else computed by their functions."""
        with self.open() as compute:
            for name, work in rows.items():
                compute(self.parts["rows"], name, work)
        return {name: self.parts["rows"][name] for name in rows}


def describe_provenance(run: Run) -> Provenance:
    """Return a result's provenance."""
    origin = find_origin(run.theta.device)
    return {**origin, "seed": run.config.seed, "umeta": __version__, "config": run.config.plain}


def find_origin(device: torch.device | str = "cpu") -> Origin:
    """Return the day, the commit and the processor of what is measured now."""
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"date": today, "commit": find_commit(), "hardware": name_hardware(device)}


def name_hardware(device: torch.device | str = "cpu") -> str:
    """Describe in a few words the card, or the processor, that computes on a device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
        if cpu.exists()
        else []
    )
    return f"{torch.get_num_threads()} threads of {names[0] if names else platform.machine()}"


def find_commit() -> str | None:
    """Return the commit of this checkout, `+` when it has changes; None for an installed package."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--", "umeta", "proposers", "embeddings", "configs"],
            cwd=here,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return (head.stdout.strip() + ("+" if dirty.stdout.strip() else "")) or None


def record_result(path: Path, result: Result) -> None:
    """Add a result to a results file, in place of an earlier one of the same name, seed and protocol.

    Raises:
        UserError: the file is there and is not a list of results.
    """

    def identity(row: Result) -> tuple[Any, ...]:
        return row["name"], row["seed"], row["protocol"]["name"], row["protocol"]["split"]

    with wait_for_lock(path):
        artifacts.write_json(path, [*(row for row in read_results(path) if identity(row) != identity(result)), result])


def read_results(path: Path) -> list[Result]:
    """Return the results in a results file, none if it is not there yet; UserError when it is something else."""
    rows = artifacts.read_json(path) if path.exists() else []
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"name", "seed", "protocol"} <= row.keys() for row in rows
    ):
        raise UserError(f"{path}: expected a list of results, as --record writes it")
    return rows
