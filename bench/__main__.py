"""`python -m bench [NAME ...]`: measures, prints the tables, and writes results/bench.json and docs/bench.png.

A name is one of bench/measurements.py, or `growth` for all its curves; these are measured anew. Without names all is
measured that this commit has not measured yet on this machine: an interrupted run goes on where it was. A measurement
is written with its commit, date, machine and versions as soon as it is done, and its sides are of one run. `minutes`,
with options of its own behind it, is bench/minutes.py.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import minutes, table
from bench.driver import Measurement, measure
from bench.measurements import CURVES, MEASUREMENTS
from umeta.errors import UserError, suggest
from umeta.evaluation.rows import find_origin
from umeta.runtime import artifacts

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "bench.json"
PICTURE = ROOT / "docs" / "bench.png"
PACKAGES = ("torch", "learn2learn", "higher", "torchopt", "jax", "faiss-gpu", "faiss-cpu", "scikit-learn", "mujoco")


def main(names: list[str]) -> None:
    if names[:1] == ["minutes"]:
        return minutes.main(names[1:])
    every = [*MEASUREMENTS, *CURVES]
    if unknown := set(names) - {*every, "growth"}:
        name = min(unknown)
        raise UserError(f"no measurement '{name}'{suggest(name, [*every, 'growth'])}; there are {', '.join(every)}")
    wanted = [name for name in every if name in names or (name in CURVES and "growth" in names)]
    result = artifacts.read_json(RESULTS) if RESULTS.exists() else {"measurements": {}, "curves": {}}
    facts = find_facts()

    def measure_once(known: dict[str, Any], name: str, measurement: Measurement) -> None:
        if wanted or not is_of(known.get(name), facts):
            print(f"{measurement.title} ...", flush=True)
            known[name] = measure(measurement) | {"facts": facts}
            artifacts.write_json(RESULTS, result)

    for name in wanted or every:
        if name in MEASUREMENTS:
            measure_once(result["measurements"], name, MEASUREMENTS[name])
        else:
            curve = result["curves"].setdefault(name, {"points": {}}) | {"label": CURVES[name].label}
            result["curves"][name] = curve
            for x, point in CURVES[name].points.items():
                measure_once(curve["points"], str(x), point)
    print(f"\n{table.goals(result)}\n\n{table.sides(result)}")
    if result["curves"]:
        table.draw(result, PICTURE)


def is_of(measured: dict[str, Any] | None, facts: dict[str, Any]) -> bool:
    """Whether it was measured by this code, which nobody has changed since, on this machine with these versions."""
    changed = (facts["commit"] or "").endswith("+")
    if measured is None or changed:
        return False
    return all(measured["facts"][key] == facts[key] for key in ("commit", "hardware", "versions"))


def find_facts() -> dict[str, Any]:
    """Return what a measurement is of."""
    return {**find_origin(), "versions": {name: found for name in PACKAGES if (found := installed(name))}}


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
