"""Tables and the plot of results/bench.json: `python -m bench.table README.md` makes its marked tables anew.

<!-- bench: goals results/bench.json -->
<!-- end -->

and the same with `ratios`, the goals that the README shows; `sides`, the table of all that was measured; `gpu`, that of
`make gpu`; `plot`, the picture of `make bench BENCH=minutes`; and `minutes`, `joint`, `pick`, `teach` and `scale`, the
tables of the modules of that name.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from bench import gpu, minutes
from bench.driver import duration, ratio, size
from bench.measurements import CURVES, GOALS, SHOWN, Goal
from umeta.report.write import format_markdown
from umeta.runtime import artifacts

MARKER = re.compile(r"(<!-- bench: (?P<table>\w+) (?P<file>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = {"grocery": "groceries", "cifar_fs": "CIFAR-FS", "omniglot": "Omniglot", "eurosat": "land cover"}
ROOFLINE = ("sgemm", "convolution")  # the faster of the two, in float32


def goals(result: dict[str, Any]) -> str:
    """Each goal beside what was reached, as Markdown, and those that were not."""
    rows = [["", "umeta", "reference", "ratio (quartiles)", "at least", "aim"]]
    missed = []
    for goal, measured in list_known(result):
        cells, holds = compare(goal, measured)
        rows.append([goal.text, *cells])
        missed += [] if holds else [goal.text]
    below = f"Not reached: {'; '.join(missed)}." if missed else "All are reached."
    return f"{format_markdown(rows)}\n\n{describe_origin(result)}. {below}" if len(rows) > 1 else ""


def list_known(result: dict[str, Any]) -> list[tuple[Goal, dict[str, Any]]]:
    """Goals of sides that the result has, with their measurements."""
    found = [(goal, result["measurements"].get(goal.measurement, {"sides": {}})) for goal in GOALS]
    return [(goal, measured) for goal, measured in found if {goal.side, goal.reference} <= measured["sides"].keys()]


def compare(goal: Goal, measured: dict[str, Any]) -> tuple[list[str], bool]:
    """Cells of a goal's row, and whether what was shown of the ratio is enough."""
    ours, theirs = measured["sides"][goal.side], measured["sides"][goal.reference]
    if missing := ours.get("missing") or theirs.get("missing"):
        return [f"not measured: {missing}", "", "", "", ""], True
    if goal.memory:
        factor = round(ours["process"] / theirs["process"], 2)
        sizes = [size(ours["process"]), size(theirs["process"])]
        return [*sizes, f"{factor:.2f}", f"at most {goal.least}", f"{goal.aim}"], factor <= goal.least
    factor, low, high = ratio(ours, theirs)
    times = [duration(ours["median"]), duration(theirs["median"])]
    shown = f"**{factor:.2f}** ({low:.2f} to {high:.2f})"
    return [*times, shown, f"{goal.least:g}", f"{goal.aim:g}"], round(factor, 2) >= goal.least


def ratios(result: dict[str, Any]) -> str:
    """Ratios that the README shows, each beside another library; when they were measured, and on which machine."""
    rows = [["", "umeta", "", "times as fast"]]
    for goal, measured in list_known(result):
        if goal.text in SHOWN:
            what, other = SHOWN[goal.text]
            (ours, theirs, factor, *_), _ = compare(goal, measured)
            rows.append([what, ours, f"{other}: {theirs}", factor.partition(" ")[0]])
    versions = [found for found in list_versions(result) if found.split()[0] in ("torch", "learn2learn")]
    return f"{format_markdown(rows)}\n\n*{describe_origin(result)}; {', '.join(versions)}, as they are shipped.*"


def plot(result: dict[str, Any]) -> str:
    """Return the picture that `bench.minutes` drew, in the README, and where it is from."""
    text = "accuracy on validation classes against minutes of training, by this project's recipe and by others"
    return f"![{text}](docs/minutes.png)\n\n*{minutes.name_origin(result)}.*"


def sides(result: dict[str, Any]) -> str:
    """Every side of every measurement, as Markdown."""
    rows = [["", "median", "quartiles", "share of the roofline", "memory it added", "found"]]
    top = roofline(result)
    for measured in result["measurements"].values():
        rows.append([f"**{measured['title']}**, a {measured['unit']}", *[""] * 5])
        for name, side in measured["sides"].items():
            if "missing" in side:
                rows.append([name, f"not measured: {side['missing']}", *[""] * 4])
                continue
            speed = measured["flop"] / side["median"]
            share = f"{speed / top:.0%} ({speed / 1e9:.0f} GFLOP/s)" if speed and top else ""
            found = ", ".join(f"{key} {value:.6g}" for key, value in side["found"].items())
            spread = f"{duration(side['low'])} to {duration(side['high'])}"
            rows.append([name, duration(side["median"]), spread, share, size(side["memory"]), found])
    commits = ", ".join(map(str, list_facts(result, "commit")))
    facts = [describe_origin(result), f"commit {commits}", *list_versions(result)]
    return f"{format_markdown(rows)}\n\n{'; '.join(facts)}."


def describe_origin(result: dict[str, Any]) -> str:
    """Name the days and the machines of the measurements."""
    return ", ".join([*list_facts(result, "date"), *list_facts(result, "hardware")])


def list_versions(result: dict[str, Any]) -> list[str]:
    """List packages with their versions, each once."""
    every = [f"{name} {found}" for versions in list_facts(result, "versions") for name, found in versions.items()]
    return list(dict.fromkeys(every))


def list_facts(result: dict[str, Any], key: str) -> list[Any]:
    """List what the measurements are of, each once, in their order."""
    found = []
    for measured in result["measurements"].values():
        if measured["facts"][key] not in found:
            found.append(measured["facts"][key])
    return found


def roofline(result: dict[str, Any]) -> float:
    """Operations a second of the fastest kernel, float32; 0 where none was measured."""
    measured = [result["measurements"][name] for name in ROOFLINE if name in result["measurements"]]
    return max((m["flop"] / m["sides"]["float32"]["median"] for m in measured), default=0.0)


def draw(result: dict[str, Any], picture: Path) -> None:
    """Time and memory against each size, a column each, as PNG."""
    from matplotlib.figure import Figure

    curves = [result["curves"][name] for name in CURVES if name in result["curves"]]
    figure = Figure(figsize=(3.2 * len(curves), 5.6), layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False)
    for (time, memory), curve in zip(axes.T, curves, strict=True):
        names = dict.fromkeys(name for point in curve["points"].values() for name in point["sides"])
        for name in names:
            found = [(float(x), point["sides"][name]) for x, point in curve["points"].items()]
            found = [(x, side) for x, side in found if "missing" not in side]
            xs = [x for x, _ in found]
            time.plot(xs, [side["median"] for _, side in found], marker="o", markersize=3, label=name)
            memory.plot(xs, [side["memory"] / 1e6 for _, side in found], marker="o", markersize=3, label=name)
        for axis, label in ((time, "seconds"), (memory, "MB")):
            axis.set(xscale="log", yscale="log", ylabel=label)
            axis.grid(alpha=0.3)
        time.legend(fontsize=7)
        memory.set_xlabel(curve["label"].replace(" (", "\n("), fontsize=7)
    with artifacts.replace_atomically(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def joint(result: dict[str, Any]) -> str:
    """Each episode of each data set: the pre-trained network as it is and whitened, what was learnt, and both."""
    rows = [["", "pre-trained", "whitened", "learnt", "kept", "more than the best", "weight"]]
    for name, found in result.items():
        for episode, judged in found["accuracies"].items():
            known = [judged[row] for row in ("as it is", "pre-trained", "learnt", "both")]
            more = known[-1][0] - max(mean for mean, _ in known[:-1])
            weight = "the learner alone" if found["weight"] is None else f"{found['weight']:.2f}"
            cells = [f"{mean:.1f} ± {interval:.1f}" for mean, interval in known]
            rows.append([f"{NAMES.get(name, name)}, {episode}", *cells, f"{more:+.1f}", weight])
    return format_markdown(rows)


def pick(result: dict[str, Any]) -> str:
    """Each number of labels a class: pictures that were chosen, random ones, and the gain."""
    columns = list(next(iter(next(iter(result.values()))["labels a class"].values())))
    rows = [["labels a class", *columns]]
    for name, found in result.items():
        for labels, judged in found["labels a class"].items():
            cells = [f"{judged[column]['mean']:.1f} ± {judged[column]['interval']:.1f}" for column in columns]
            rows.append([f"{NAMES.get(name, name)}, {labels}", *cells])
    return format_markdown(rows)


def teach(result: dict[str, Any]) -> str:
    """Seconds that a person waits."""
    rows = [[f"{result['pictures']:,} pictures", "seconds"]]
    rows += [[what, f"{seconds:.2f}"] for what, seconds in result["seconds"].items()]
    return f"{format_markdown(rows)}\n\n{result['date']}, {result['hardware']}."


def scale(result: dict[str, Any]) -> str:
    """Minutes and memory of each step on the way of many pictures."""
    lines = [[f"{result['images']:,} pictures", "minutes", "pictures a second", "memory"]]
    for row in result["rows"]:
        pace = f"{result['images'] / row['seconds']:,.0f}"
        lines.append([row["what"], f"{row['seconds'] / 60:.2f}", pace, f"{row['memory'] / 1e6:,.0f} MB"])
    return f"{format_markdown(lines)}\n\n{result['date']}, {result['hardware']}."


MAKERS = {
    "goals": goals,
    "ratios": ratios,
    "sides": sides,
    "gpu": gpu.table,
    "plot": plot,
    "minutes": minutes.table,
    "joint": joint,
    "pick": pick,
    "teach": teach,
    "scale": scale,
}


def rewrite(text: str, root: Path) -> str:
    """Return the text with every marked table made anew."""

    def table(marker: re.Match[str]) -> str:
        make = MAKERS[marker["table"]]
        file = root / marker["file"]
        made = make(artifacts.read_json(file)) if file.exists() else "Not measured."
        return f"{marker[1]}{made}\n{marker[4]}"

    return MARKER.sub(table, text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        target = Path(name)
        artifacts.write_text(target, rewrite(target.read_text(encoding="utf-8"), target.parent))
