"""`python -m bench [NAME ...]`: measures, prints the tables, and writes results/bench.json and docs/bench.png.

A name is one of bench/measurements.py, or `growth` for all its curves; these are measured anew. Without names all is
measured that this commit has not measured yet: an interrupted run goes on where it was. The results file and the plot
are written once everything has been measured at one commit on one machine. `minutes`, with options of its own behind
it, is bench/minutes.py.
"""

from __future__ import annotations

import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench import minutes, table
from bench.driver import measure
from bench.measurements import CURVES, MEASUREMENTS
from umeta.errors import UserError, suggest
from umeta.evaluation.rows import find_commit, name_hardware
from umeta.runtime import artifacts
from umeta.types import Theta

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "bench.json"
PICTURE = ROOT / "docs" / "bench.png"
UNFINISHED = Path(__file__).parent / "unfinished.json"
PACKAGES = ("torch", "learn2learn", "higher", "torchopt", "jax", "faiss-gpu", "faiss-cpu", "scikit-learn", "mujoco")


def main(names: list[str]) -> None:
    if names[:1] == ["minutes"]:
        return minutes.main(names[1:])
    every = [*MEASUREMENTS, *CURVES]
    if unknown := set(names) - {*every, "growth"}:
        name = min(unknown)
        raise UserError(f"no measurement '{name}'{suggest(name, [*every, 'growth'])}; there are {', '.join(every)}")
    wanted = [name for name in every if name in names or (name in CURVES and "growth" in names)]
    result = begun()
    for name in wanted or every:
        if name in MEASUREMENTS:
            if wanted or name not in result["measurements"]:
                print(f"{MEASUREMENTS[name].title} ...", flush=True)
                result["measurements"][name] = measure(MEASUREMENTS[name])
        else:
            known = {} if wanted else result["curves"].get(name, {}).get("points", {})
            for x, point in CURVES[name].points.items():
                if str(x) not in known:
                    print(f"{point.title} ...", flush=True)
                    known[str(x)] = measure(point)
                result["curves"][name] = {"label": CURVES[name].label, "points": known}
                artifacts.write_json(UNFINISHED, result)
        artifacts.write_json(UNFINISHED, result)
    print(f"\n{table.goals(result)}\n\n{table.sides(result)}")
    if set(every) <= {*result["measurements"], *result["curves"]}:
        artifacts.write_json(RESULTS, result)
        table.draw(result, PICTURE)
        UNFINISHED.unlink()


def begun() -> dict[str, Any]:
    """Return what this commit has measured on this machine so far; nothing where its code has been changed since."""
    result = {
        "date": date.today().isoformat(),
        "commit": find_commit(),
        "hardware": name_hardware(Theta({"": torch.zeros(1)})),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "measurements": {},
        "curves": {},
    }
    same = ("commit", "hardware", "versions")
    if UNFINISHED.exists() and not str(result["commit"]).endswith("+"):
        earlier = artifacts.read_json(UNFINISHED)
        if all(earlier[key] == result[key] for key in same):
            return earlier
    return result


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"bench: {error}")
