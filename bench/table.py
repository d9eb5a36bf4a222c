"""Tables and the plot of results/bench.json: `python -m bench.table README.md` makes its marked tables anew.

<!-- bench: goals results/bench.json -->
<!-- end -->

and the same with `sides`, the table of all that was measured; `gpu`, that of `make gpu`; and `joint`, `pick` and
`teach`, those of the modules of that name.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from bench import gpu
from bench.driver import duration, ratio, size
from bench.measurements import CURVES, GOALS, Goal
from umeta.report.write import format_markdown
from umeta.runtime import artifacts

MARKER = re.compile(
    r"(<!-- bench: (?P<table>goals|sides|gpu|joint|pick|teach) (?P<file>\S+) -->\n).*?(<!-- end -->)", re.DOTALL
)
NAMES = {"grocery": "groceries", "cifar_fs": "CIFAR-FS", "omniglot": "Omniglot", "eurosat": "land cover"}
ROOFLINE = ("sgemm", "convolution")  # the faster of the two, in float32


def goals(result: dict[str, Any]) -> str:
    """Each goal beside what was reached, as Markdown."""
    rows = [["", "umeta", "reference", "ratio (quartiles)", "at least", "aim"]]
    for goal in GOALS:
        if goal.measurement in result["measurements"]:
            rows.append([goal.text, *reached(goal, result["measurements"][goal.measurement])])
    return format_markdown(rows) if len(rows) > 1 else ""


def reached(goal: Goal, measured: dict[str, Any]) -> list[str]:
    ours, theirs = measured["sides"][goal.side], measured["sides"][goal.reference]
    if missing := ours.get("missing") or theirs.get("missing"):
        return [f"not measured: {missing}", "", "", "", ""]
    if goal.memory:
        factor = ours["process"] / theirs["process"]
        return [size(ours["process"]), size(theirs["process"]), f"{factor:.2f}", f"at most {goal.least}", str(goal.aim)]
    factor, low, high = ratio(ours, theirs)
    return [
        duration(ours["median"]),
        duration(theirs["median"]),
        f"**{factor:.2f}** ({low:.2f} to {high:.2f})",
        str(goal.least),
        str(goal.aim),
    ]


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
    facts = [f"{result['date']}, commit {result['commit']}, {result['hardware']}"]
    facts += [f"{name} {version}" for name, version in result["versions"].items()]
    return f"{format_markdown(rows)}\n\n{'; '.join(facts)}."


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


def rewrite(text: str, root: Path) -> str:
    """Return the text with every marked table made anew."""

    def table(marker: re.Match[str]) -> str:
        makers = {"goals": goals, "sides": sides, "gpu": gpu.table, "joint": joint, "pick": pick, "teach": teach}
        make = makers[marker["table"]]
        file = root / marker["file"]
        made = make(artifacts.read_json(file)) if file.exists() else "Not measured."
        return f"{marker[1]}{made}\n{marker[4]}"

    return MARKER.sub(table, text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        target = Path(name)
        artifacts.write_text(target, rewrite(target.read_text(encoding="utf-8"), target.parent))
