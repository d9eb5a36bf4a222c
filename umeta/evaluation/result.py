"""What an evaluation finds, as it is written to `report.json` and results files: plain JSON, with its keys typed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from umeta.draw.curves import Curve, name_steps


class Cell(TypedDict):
    """A number of a table: a mean over test tasks, and the half width of its 95 % interval; None where it diverged."""

    mean: float | None
    interval: float | None
    tasks: int
    digits: NotRequired[int]
    """decimals to show, by default two"""


Rows = dict[str, dict[str, Cell]]  # a table: by method, then by column


class Origin(TypedDict):
    """When, on what and by which code something was measured."""

    date: str
    hardware: str
    commit: str | None
    """None where an installed package was used"""


class Provenance(Origin):
    """What a result was made by."""

    seed: int | str
    """of several seeds, all of them"""
    umeta: str
    config: dict[str, Any]


class Result(Provenance):
    """What one run was measured to do, and how."""

    name: str
    title: str
    """the row of the run's own learner; rows before it are baselines, rows after it variants"""
    handed_back: NotRequired[str]
    """the variant that the run hands back, where it is one"""
    rows: Rows
    protocol: dict[str, Any]
    """how it was tested: always `name`, `split` and `proposed_with`; the rest is the domain's"""
    minutes: NotRequired[dict[str, float]]
    """by stage; of one run"""
    source: NotRequired[str]
    """of a published number, its paper"""
    seen: NotRequired[int]
    """how many of the test images are among those of meta-training, where there are any"""
    domain: NotRequired[str]
    """`image`, the default, `env` or `regression`"""
    facts: NotRequired[list[str]]
    """what a reader must know to compare the numbers; images have it from the protocol"""
    notes: NotRequired[list[str]]
    adaptation: NotRequired[dict[str, Curve]]
    """by method, against what its label says, by default steps of adaptation"""
    returns: NotRequired[dict[str, list[list[float]]]]
    """by method, on environments: of each goal after 0 to K steps, to be paired with other rows'"""
    curves: NotRequired[dict[str, Curve]]
    """by episode, accuracy against minutes of learning"""
    step_curves: NotRequired[dict[str, Curve]]
    extrapolation: NotRequired[dict[str, Rows]]
    """by kind of change: a column for each strength of it"""
    unbalanced: NotRequired[dict[str, Rows]]
    """by how unequally many the queries of a class are: a column for each episode with equally many, and with those"""
    readings: NotRequired[dict[str, Rows]]
    """by episode: what was made of ambiguous tasks"""
    calibration: NotRequired[dict[str, Any]]
    scratch_lr: NotRequired[dict[str, float]]
    folder: NotRequired[str]
    """the run's, while its command goes on; `tasks` is that of its tasks"""
    tasks: NotRequired[str]


def list_cautions(result: Result) -> list[str]:
    """Say what makes the learner's numbers look better than they are: images that it has seen, a better baseline.

    A baseline is better in a column where the difference is above both intervals together. Functions to regress have
    none: their baselines are told what the learner is not. Before the learner has adapted no comparison says anything.
    """
    rows, title = result["rows"], result["title"]
    simpler, handed_back = list(rows)[: list(rows).index(title)], rows[result.get("handed_back", title)]
    found = []
    if seen := result.get("seen"):
        count = result["protocol"]["images"]
        found.append(f"test images that were trained on: {seen:,} of {count:,}; those are no test of new ones")
    for column, own in handed_back.items() if result.get("domain") != "regression" else ():
        leads = {name: lead_over(rows[name][column], own) for name in simpler if column in rows[name]}
        best = max(leads, key=lambda name: leads[name], default="")
        if best and leads[best] > 0 and column != name_steps(0):
            found.append(f"{column}: a simpler method is better here, {best}")
    return found


def lead_over(one: Cell, other: Cell) -> float:
    """Return how far a mean is above another beyond both intervals; minus infinity where one is not a number."""
    if one["mean"] is None or other["mean"] is None:
        return -math.inf
    return one["mean"] - other["mean"] - (one["interval"] or 0) - (other["interval"] or 0)


def format_cell(value: Cell) -> str:
    """`68.12 ± 0.61`: an accuracy in percent, a return or an error; `diverged` where that is no number."""
    if value["mean"] is None:
        return "diverged"
    digits = value.get("digits", 2)
    return f"{value['mean']:.{digits}f}" + (f" ± {value['interval']:.{digits}f}" if value["interval"] else "")


def summarize(values: Any) -> Cell:
    """Return the mean over tasks [n] and the half width of its 95 % interval, 1.96 * std / sqrt(n)."""
    values = np.asarray(values, float)
    return {
        "mean": float(values.mean()),
        "interval": 1.96 * float(values.std()) / len(values) ** 0.5,
        "tasks": len(values),
    }


def trace(x: Sequence[float], cells: Sequence[Cell], label: str = "") -> Curve:
    """Return the curve of these cells over x."""
    curve: Curve = {
        "x": list(x),
        "mean": [cell["mean"] for cell in cells],  # type: ignore[misc]  # what diverged is left out by callers
        "interval": [cell["interval"] for cell in cells],  # type: ignore[misc]
    }
    return {**curve, "label": label} if label else curve
