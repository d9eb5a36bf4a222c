"""Rows of an evaluation: finished ones are kept, all of them recorded with their provenance."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from umeta.errors import Interrupted, UserError
from umeta.runtime import artifacts
from umeta.runtime.lock import wait_for_lock
from umeta.runtime.progress import postpone_interrupt
from umeta.stages.runs import Run
from umeta.types import Theta
from umeta.version import __version__

PARTS = ("rows", "scratch_lr", "curves", "step_curves", "extrapolation", "calibration")  # of what is kept


def interval(accuracies: np.ndarray) -> dict[str, float]:
    """Mean and half width of its 95 % interval over tasks, 1.96 * std / sqrt(n), in percent."""
    return {
        "mean": 100 * float(accuracies.mean()),
        "interval": 196 * float(accuracies.std()) / len(accuracies) ** 0.5,
        "tasks": len(accuracies),
    }


def question(run: Run, **own: Any) -> dict[str, Any]:
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


def finished(kept: Path, asked: dict[str, Any], parts: Sequence[str] = ("rows",)) -> dict[str, Any]:
    """Read what was computed before for the same question, and its seconds; nothing if the file is unusable."""
    try:
        before = artifacts.read_sealed(kept)
    except UserError:
        before = {}
    if before.get("asked") != json.loads(json.dumps(asked)):
        before = {part: {} for part in parts} | {"seconds": 0.0}
    return {name: before[name] for name in (*parts, "seconds")}


def computed(kept: Path, asked: dict[str, Any], rows: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Compute the rows, each by its function, and their seconds; those in `kept` are not computed again.

    Raises:
        Interrupted: after Ctrl-C, when the current row is done and kept.
    """
    done = finished(kept, asked)
    with postpone_interrupt("row") as pressed:
        for name, method in rows.items():
            if name in done["rows"]:
                continue
            began = time.monotonic()
            done["rows"][name] = method()
            done["seconds"] += time.monotonic() - began
            artifacts.write_sealed(kept, {"asked": asked, **done})
            if pressed.is_set():
                raise stopped(kept)
    return {"rows": {name: done["rows"][name] for name in rows}, "seconds": done["seconds"]}


def stopped(kept: Path) -> Interrupted:
    """Return the error that ends an evaluation after Ctrl-C."""
    return Interrupted(f"evaluate: stopped, finished rows are kept in {kept}; go on with the same command and --resume")


def provenance(run: Run) -> dict[str, Any]:
    """Return what a result was made by."""
    return {
        "seed": run.config.seed,
        "hardware": hardware(run.theta),
        "umeta": __version__,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "config": run.config.plain,
    }


def hardware(theta: Theta) -> str:
    """Describe the machine in a few words."""
    if (device := next(iter(theta.params.values())).device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
        if cpu.exists()
        else []
    )
    return f"{torch.get_num_threads()} threads of {names[0] if names else platform.machine()}"


def commit() -> str | None:
    """Return the commit of this checkout, `+` when it has changes; None for an installed package."""
    here = Path(__file__).parent.parent
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


def append(path: Path, result: dict[str, Any]) -> None:
    """Add a result to a results file, in place of an earlier one of the same name, seed and protocol.

    Raises:
        UserError: the file is there and is not a list of results.
    """

    def identity(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["name"], row["seed"], row["protocol"]["name"], row["protocol"]["split"]

    with wait_for_lock(path):
        artifacts.write_json(path, [*(row for row in recorded(path) if identity(row) != identity(result)), result])


def recorded(path: Path) -> list[dict[str, Any]]:
    """Return the results in a results file, none if it is not there yet; UserError when it is something else."""
    rows = artifacts.read_json(path) if path.exists() else []
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"name", "seed", "protocol"} <= row.keys() for row in rows
    ):
        raise UserError(f"{path}: expected a list of results, as --record writes it")
    return rows
