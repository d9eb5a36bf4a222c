"""Results files as tables and plots: `python -m umeta.report.tables README.md` makes anew what its markers ask for.

A marker names the files, own results and published numbers alike, and, after semicolons, the rows wanted, by default
all. A plot is of the learning curves of a file's first result, or of its `step_curves`, or of all its results over the
value of a key of their configs, or over their calibration error, or on environments of their rows' adaptation:

    <!-- results: results/omniglot.json results/omniglot_published.json -->
    <!-- end -->
    <!-- results: results/omniglot.json; from scratch; ACAI CACTUs-MAML -->
    <!-- end -->
    <!-- results: results/sinusoid.json | amplitude -->
    <!-- end -->
    <!-- results: results/ant.json | more than from scratch -->
    <!-- end -->
    <!-- curves: results/omniglot_best.json docs/omniglot_curves.png -->
    <!-- curves: results/omniglot_steps.json docs/omniglot_steps.png step_curves -->
    <!-- curves: results/omniglot_partitions.json docs/omniglot_partitions.png proposer.partitions -->
    <!-- curves: results/family_instances.json docs/family_instances.png certainty -->
    <!-- curves: results/nav2d.json results/nav2d_published.json docs/nav2d.png; from scratch; MAML (published) -->
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, cast

import numpy as np

from umeta.draw.curves import Curve, plot_adaptation, plot_points
from umeta.evaluation.result import Cell, Result, format_cell, summarize
from umeta.report import page
from umeta.report.write import format_markdown
from umeta.runtime import artifacts

CURVES = re.compile(
    r"<!-- curves: (?P<files>\S+\.json(?: \S+\.json)*) (?P<picture>[^\s;]+)(?: (?P<key>[^\s;]+))?(?P<rows>;[^>]*?)? -->"
)
CERTAINTY = {"log_likelihood": "log-likelihood", "ece": "calibration error"}
FACTS = ("file", "protocol", "seed", "inference", "commit")
MORE = "more than "
SEED = re.compile(r", seed \d+$")  # of a title, where a row is repeated with another seed
MARKER = re.compile(r"(<!-- results: (?P<files>[^>;]*?)(?P<rows>;[^>]*?)? -->\n).*?(<!-- end -->)", re.DOTALL)


def make_table(files: dict[str, Path], wanted: list[str] | None = None, change: str = "") -> str:
    """Make one Markdown table of the rows, all or those wanted, in that order, with a caption that says their origin.

    `files` are by the links to them. A row of ours ends with the minutes that learning took; before them, where a
    result has the former, how likely the right class was to it, and its calibration error.

    change: the results of the extrapolation by this change, such as `amplitude`, or those on ambiguous tasks or of
        unequally many queries, instead; or `more than` and a row of returns, for how much more the others are.

    Raises:
        KeyError: no result has a row that is wanted.
    """
    rows: dict[str, Row] = {}
    results = {link: artifacts.read_json(path) for link, path in files.items()}
    if change.startswith(MORE):
        results = {link: compare_returns(found, change.removeprefix(MORE)) for link, found in results.items()}
        change = ""
    for link, found in results.items():
        for result in found:
            changed = {**result.get("extrapolation", {}), **result.get("readings", {}), **result.get("unbalanced", {})}
            for name, cells in (changed.get(change, {}) if change else result["rows"]).items():
                own = name == result["title"]
                if own or name not in rows:
                    judged = judge_certainty(result) if own and not change else {}
                    minutes = sum_minutes(result) if own else ""
                    rows[name] = Row(cells | judged, minutes, describe_origin(result, link))
    if wanted is not None:
        rows = {name: rows[name] for name in wanted}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row.cells))
    sure = [column for name in CERTAINTY.values() for column in columns if column.startswith(name)]
    known = sure and sure[0].startswith(CERTAINTY["log_likelihood"])
    columns = [column for column in columns if column not in sure] + (sure if known else [])
    body = [
        [name, *(format_cell(row.cells[c]) if c in row.cells else "" for c in columns), row.minutes]
        for name, row in rows.items()
    ]
    timed = any(row.minutes for row in rows.values())
    lines = [["", *columns, "minutes"], *body]
    return f"{format_markdown(lines if timed else [line[:-1] for line in lines])}\n\n{write_caption(rows)}"


def compare_returns(results: list[Result], other: str) -> list[Result]:
    """Return results with how much more each one's own row earns than another, the mean of differences over goals.

    Then, of rows that further seeds repeat (`A` and `A, seed 1`), how much more they earn on average: each goal's mean
    over the seeds is one number, so that the interval is over goals. Those that did not keep the returns of each goal
    are left out.

    Raises:
        KeyError: none kept the other row's.
    """
    kept = [result["returns"] for result in results if "returns" in result]
    baseline = next((np.array(returns[other]) for returns in kept if other in returns), None)
    if baseline is None:
        raise KeyError(other)
    own = {result["title"]: result for result in results if result["title"] in result.get("returns", {})}
    more = {}
    for title, result in own.items():
        returns = np.array(result["returns"][title])
        count = min(returns.shape[1], baseline.shape[1])
        more[title] = returns[:, :count] - baseline[:, :count]
    found = [{**own[title], "rows": {title: summarize_steps(own[title], each)}} for title, each in more.items()]
    for title, result in own.items():
        seeds = [each for other, each in more.items() if SEED.sub("", other) == title]
        if len(seeds) > 1:
            mean = f"{title}, mean of {len(seeds)} seeds"
            rows = {mean: summarize_steps(result, np.mean(seeds, axis=0))}
            found.append({**result, "title": mean, "rows": rows, "minutes": {}})
    return cast(list[Result], found)


def summarize_steps(result: Result, values: np.ndarray) -> dict[str, Cell]:
    """Summarize values [goals, steps + 1] of a result's own row, at the steps that it shows."""
    shown = {column: int(column.split()[0]) for column in result["rows"][result["title"]]}
    return {column: summarize(values[:, k]) for column, k in shown.items() if k < values.shape[1]}


@dataclass(frozen=True)
class Row:
    """A row of a table: its cells by column, the minutes that learning took, and where it comes from."""

    cells: dict[str, Cell]
    minutes: str
    origin: dict[str, str]


def judge_certainty(result: Result) -> dict[str, Cell]:
    """Return the cells that say how sure a result's answers were, and how rightly, as far as it knows."""
    found = result.get("calibration") or {}
    tasks = result.get("protocol", {}).get("tasks", 0)
    return {
        f"{name}, {found['episode']}": {"mean": found[key], "interval": None, "tasks": tasks, "digits": 3}
        for key, name in CERTAINTY.items()
        if key in found
    }


def sum_minutes(result: Result) -> str:
    """Add up the minutes of all stages but the evaluation."""
    stages = [value for stage, value in result.get("minutes", {}).items() if stage != "evaluate"]
    return f"{sum(stages):.1f}" if stages else ""


def describe_origin(result: Result, link: str) -> dict[str, str]:
    """Say where a result comes from: a citation, or the results file, protocol, tasks, seed, inference and commit."""
    if "source" in result:
        return {"published": result["source"]}
    protocol = result["protocol"]
    name, split = protocol["name"], protocol["split"]
    facts = {
        "file": f"`results/{Path(link).name}`",
        "protocol": f"protocol {name}, {split.removeprefix(name).strip()} split",
        "seed": str(result["seed"]),
        "inference": protocol.get("inference", ""),
        "commit": result["commit"],
    }
    if "goals" in protocol:
        facts["tasks"] = f"{protocol['goals']} goals"
    elif isinstance(protocol["tasks"], int):  # of a regression it is what tells the tasks from others
        facts["tasks"] = f"{protocol['tasks']:,} tasks"
    return {name: fact for name, fact in facts.items() if fact}


def write_caption(rows: Mapping[str, Row]) -> str:
    """Say where the rows of a table come from: what they share once, and which of them had fewer tasks.

    The results files tell which row is of which commit, and the rows themselves tell their seeds.
    """
    own = {name: row.origin for name, row in rows.items() if "published" not in row.origin and name != "chance"}
    found = {fact: list(dict.fromkeys(o[fact] for o in own.values() if fact in o)) for fact in FACTS}
    found["seed"] = sorted({seed for seeds in found["seed"] for seed in seeds.split(", ")}, key=int)
    facts = [", ".join(found["file"]), *found["protocol"], count_tasks(own)]
    facts += [f"{name}{'s' * (len(found[name]) > 1)} {', '.join(found[name])}" for name in ("seed", "commit")]
    varied = any(name.endswith(", transductive") for name in own)
    facts[-1:-1] = [f"{one} unless a row says transductive" if varied else one for one in found["inference"]]
    sentences = [f"Source: {'; '.join(filter(None, facts))}."] if own else []
    cited: dict[str, list[str]] = {}
    for name, row in rows.items():
        if "published" in row.origin:
            cited.setdefault(row.origin["published"], []).append(name.replace(" (published)", ""))
    if cited:
        sentences.append(f"Published: {'; '.join(f'{join_names(names)} ({by})' for by, names in cited.items())}.")
    return f"*{' '.join(sentences)}*"


def count_tasks(own: Mapping[str, Mapping[str, str]]) -> str:
    """Say how many test tasks the rows had, and name those that had another number than most."""
    holders: dict[str, list[str]] = {}
    for name, origin in own.items():
        if "tasks" in origin:
            holders.setdefault(origin["tasks"], []).append(name)
    if not holders:
        return ""
    usual = max(holders, key=lambda count: len(holders[count]))
    others = [f"{count.split()[0]} for {join_names(names)}" for count, names in holders.items() if count != usual]
    return f"{usual} ({', '.join(others)})" if others else usual


def join_names(names: Sequence[str]) -> str:
    """Write names as a list within a sentence."""
    return " and ".join(filter(None, [", ".join(f"“{name}”" for name in names[:-1]), f"“{names[-1]}”"]))


def draw(paths: Sequence[Path], picture: Path, key: str = "curves", wanted: list[str] | None = None) -> None:
    """Draw curves with 95 % intervals as PNG.

    That is accuracy against minutes, or with the key `step_curves` against steps of adaptation, a line per episode;
    with a key of the config, such as `proposer.partitions`, the results' own rows against it; with `certainty` a point
    for each result, by its calibration error; on environments return against environment steps, of all rows or of
    those wanted.

    Raises:
        KeyError: no result has a row that is wanted.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = [result for path in paths for result in artifacts.read_json(path)]
    if "adaptation" in results[0]:
        curves = {name: curve for result in results for name, curve in result["adaptation"].items()}
        if wanted is not None:
            curves = {name: curves[name] for name in wanted}
        return plot_adaptation(picture, curves, page.MEASURES[page.name_domain(results[0])])
    if key == "certainty":
        return plot_points(picture, collect_certainty(results), ("calibration error, %", "accuracy, %"))
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    configured = "." in key
    for name, curve in (collect_series(results, key) if configured else results[0][key]).items():
        axes.errorbar(curve["x"], curve["mean"], curve["interval"], marker="o", markersize=3, capsize=2, label=name)
        axes.set_xlabel(curve["label"])
    if configured:
        axes.set_xscale("log")
    else:
        axes.set_title(results[0]["title"])
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    with artifacts.replace_atomically(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    plt.close(figure)


def collect_certainty(results: list[Result]) -> dict[str, tuple[float, float]]:
    """Return calibration error and accuracy of each result in percent, in the episode that the former is of."""
    found = {}
    for result in results:
        if judged := result.get("calibration"):
            accuracy = result["rows"][result["title"]][judged["episode"]]["mean"]
            assert accuracy is not None
            found[result["title"].rpartition(", ")[2]] = (100 * judged["ece"], accuracy)
    return found


def collect_series(results: list[Result], key: str) -> dict[str, Curve]:
    """By episode, each result's accuracy over the value its config has under the key."""
    found: dict[str, Curve] = {}
    for result in results:
        value: Any = reduce(lambda part, name: part[name], key.split("."), result["config"])
        for episode, measured in result["rows"][result["title"]].items():
            if measured["mean"] is not None and measured["interval"] is not None:
                curve = found.setdefault(episode, {"label": key, "x": [], "mean": [], "interval": []})
                curve["x"].append(value)
                curve["mean"].append(measured["mean"])
                curve["interval"].append(measured["interval"])
    return found


def rewrite(text: str, root: Path) -> str:
    """Return the text, which is in the folder `root`, with every marked table made anew."""

    def made(m: re.Match[str]) -> str:
        names, _, change = m["files"].partition("|")
        files = {link: root / link for link in names.split()}
        return f"{m[1]}{make_table(files, list_rows(m), change.strip())}\n{m[4]}"

    return MARKER.sub(made, text)


def list_rows(marker: re.Match[str]) -> list[str] | None:
    """Return the rows that a marker wants, or None for all."""
    return [row.strip() for row in marker["rows"].split(";")[1:]] if marker["rows"] else None


def remake(target: Path) -> None:
    """Make what a page's markers ask for anew, plots and tables."""
    text = target.read_text(encoding="utf-8")
    for marker in CURVES.finditer(text):
        files = [target.parent / file for file in marker["files"].split()]
        draw(files, target.parent / marker["picture"], marker["key"] or "curves", list_rows(marker))
    artifacts.write_text(target, rewrite(text, target.parent))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        remake(Path(name))
