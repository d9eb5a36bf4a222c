"""Results files as tables and plots: `python -m umeta.report.tables README.md` makes anew what its markers ask for.

A marker names the files, own results and published numbers alike, and, after semicolons, the rows wanted, by default
all. A plot is of the learning curves of a file's first result, or of its `step_curves`, or of all its results over the
value of a key of their configs, or on environments of their adaptation:

    <!-- results: results/omniglot.json results/omniglot_published.json -->
    <!-- end -->
    <!-- results: results/omniglot.json; from scratch; ACAI CACTUs-MAML -->
    <!-- end -->
    <!-- results: results/sinusoid.json | amplitude -->
    <!-- end -->
    <!-- curves: results/omniglot_best.json docs/omniglot_curves.png -->
    <!-- curves: results/omniglot_steps.json docs/omniglot_steps.png step_curves -->
    <!-- curves: results/omniglot_partitions.json docs/omniglot_partitions.png proposer.partitions -->
"""

from __future__ import annotations

import re
import sys
from functools import reduce
from pathlib import Path
from typing import Any

from umeta.draw.curves import plot_adaptation
from umeta.report import page
from umeta.report.write import cell, markdown
from umeta.runtime import artifacts

CURVES = re.compile(r"<!-- curves: (?P<file>\S+) (?P<picture>\S+)(?: (?P<key>\S+))? -->")
MARKER = re.compile(r"(<!-- results: (?P<files>[^>;]*?)(?P<rows>;[^>]*?)? -->\n).*?(<!-- end -->)", re.DOTALL)


def table(files: dict[str, Path], wanted: list[str] | None = None, change: str = "") -> str:
    """One Markdown table of the rows, all or those wanted, in that order: means and 95 % intervals, what it took, where
    it comes from. `files` are by the links to them.

    change: the results of the extrapolation by this change instead, such as `amplitude`.

    Raises:
        KeyError: no result has a row that is wanted.
    """
    lines: list[tuple[str, dict[str, Any], str, str]] = []
    columns: list[str] = []
    seen: set[str] = set()
    for link, path in files.items():
        for result in artifacts.read_json(path):
            for name, cells in (result.get("extrapolation", {}).get(change, {}) if change else result["rows"]).items():
                columns += [column for column in cells if column not in columns]
                own = name == result["title"]
                if own or name not in seen:
                    lines.append((name, cells, minutes(result) if own else "", source(result, link, name)))
                    seen.add(name)
    if wanted is not None:
        by_name = {line[0]: line for line in reversed(lines)}
        lines = [by_name[name] for name in wanted]
    body = [
        [name, *(cell(cells[c]) if c in cells else "" for c in columns), took, origin]
        for name, cells, took, origin in lines
    ]
    return markdown([["", *columns, "minutes", "source"], *body])


def minutes(result: dict[str, Any]) -> str:
    """Minutes of each stage."""
    return ", ".join(f"{stage} {value:.1f}" for stage, value in result.get("minutes", {}).items())


def source(result: dict[str, Any], link: str, row: str) -> str:
    """Where a row comes from: a citation, or the results file, seed, inference (a variant's name tells) and commit."""
    if "source" in result:
        return result["source"]
    p = result["protocol"]
    inference = "transductive" if row.endswith(", transductive") else p.get("inference", "")
    facts = [f"[{Path(link).name}]({link})", f"seed {result['seed']}", inference, f"commit {result['commit']}"]
    return ", ".join(fact for fact in facts if fact)


def draw(path: Path, picture: Path, key: str = "curves") -> None:
    """As PNG, with 95 % intervals: accuracy against minutes, or with the key `step_curves` against steps of adaptation,
    a line per episode; with a key of the config, such as `proposer.partitions`, the results' own rows against it; on
    environments return against steps of all rows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = artifacts.read_json(path)
    if "adaptation" in results[0]:
        curves = {name: curve for result in results for name, curve in result["adaptation"].items()}
        return plot_adaptation(picture, curves, page.MEASURES[page.domain(results[0])], "steps of adaptation")
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    configured = "." in key
    for name, curve in (series(results, key) if configured else results[0][key]).items():
        axes.errorbar(curve["x"], curve["mean"], curve["interval"], marker="o", markersize=3, capsize=2, label=name)
        axes.set_xlabel(curve["label"])
    if configured:
        axes.set_xscale("log")
    else:
        axes.set_title(results[0]["title"])
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    with artifacts.replacing(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    plt.close(figure)


def series(results: list[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """By episode, each result's accuracy over the value its config has under the key."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        value = reduce(lambda part, name: part[name], key.split("."), result["config"])
        for episode, measured in result["rows"][result["title"]].items():
            curve = found.setdefault(episode, {"label": key, "x": [], "mean": [], "interval": []})
            curve["x"].append(value)
            curve["mean"].append(measured["mean"])
            curve["interval"].append(measured["interval"])
    return found


def rewrite(text: str, root: Path) -> str:
    """The text, which is in the folder `root`, with every marked table made anew."""

    def made(m: re.Match[str]) -> str:
        names, _, change = m["files"].partition("|")
        files = {link: root / link for link in names.split()}
        wanted = [row.strip() for row in m["rows"].split(";")[1:]] if m["rows"] else None
        return f"{m[1]}{table(files, wanted, change.strip())}\n{m[4]}"

    return MARKER.sub(made, text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        target = Path(name)
        for marker in CURVES.finditer(target.read_text(encoding="utf-8")):
            draw(target.parent / marker["file"], target.parent / marker["picture"], marker["key"] or "curves")
        artifacts.write_text(target, rewrite(target.read_text(encoding="utf-8"), target.parent))
