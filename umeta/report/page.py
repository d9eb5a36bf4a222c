"""The report as one HTML page: offline, without scripts, light or dark as the reader's system is, down to a phone.

Titles, class names and options are whatever a stranger's folder or config says: `element` escapes all of it.
"""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from umeta.draw.curves import Curve, label_of
from umeta.evaluation.result import Result, Rows, format_cell, list_cautions

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
# no script runs and nothing is fetched, whatever the page holds
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
POINTS = 300  # of a line, at most
TONES = "red", "green", "amber", "violet", "soft"  # of lines beside the one that a plot is about
DASHES = "7 4", "2 3", "9 3 2 3", "14 4"

MEASURES = {"image": "accuracy, %", "env": "return", "regression": "mean squared error"}
NUMBERS = {
    "image": "Accuracy in percent: mean over test tasks, and its 95 % interval.",
    "env": "Return of an episode after so many steps of adaptation: mean over test goals, and its 95 % interval.",
    "regression": "Mean squared error, by points to adapt to and steps: mean over test tasks, and its 95 % interval.",
}
EXTRAPOLATION = "Tasks farther and farther from those of meta-training: mean over test tasks, and its 95 % interval."
UNBALANCED = (
    "A row that says transductive lets all queries of a task have a part in the answer to each, which equally many of "
    "each class flatter. Beside those are queries whose classes have the unequal shares of a Dirichlet distribution."
)
# files in the folders of a run and its tasks, by the heading they stand under, and what they show
PICTURES = {
    "image": {
        "Right and wrong predictions": {
            "test_tasks.png": "One test task a row: labelled examples left of the gap, then queries, framed green "
            "where the prediction is right and red where it is wrong.",
        },
        "Extrapolation": {"extrapolation.png": EXTRAPOLATION},
        "What was proposed": {"preview.png": "Samples of classes that were proposed, one class a row."},
    },
    "env": {
        "Before and after adaptation": {
            "behaviour.png": "Paths of the policy on some of the test goals.",
            "before.gif": "An episode before adaptation.",
            "after.gif": "An episode after adaptation.",
        },
        "What was proposed": {
            "preview.png": "The proposed rewards, and the skills they come from where they come from skills.",
            "skills.gif": "An episode of the skills.",
        },
    },
    "regression": {
        "Before and after adaptation": {
            "fits.png": "Tests: the points to adapt to, the answer, some draws of one that has several, the truth. "
            "Of curves one task, and predictions by steps taken.",
        },
        "Extrapolation": {"extrapolation.png": EXTRAPOLATION},
        "What was proposed": {"preview.png": "The first tasks, with the points to adapt to."},
    },
}


Place = Callable[[Any], Any]  # from values to where they are in a picture: a number, or an array of them


class Markup(str):
    """HTML that is finished; any other text is escaped where it is put."""


@dataclass(frozen=True)
class Chapter:
    """What a page shows of one run."""

    result: Result
    """as in `report.json`"""
    config: str
    """YAML that repeats the run"""
    proposed: Sequence[str]
    """the proposed tasks in numbers"""
    loops: Mapping[str, Sequence[Mapping[str, float]]]
    """the logged steps of each loop: `step` and metrics"""
    answers: Sequence[Mapping[str, Any]]
    """the pictured test tasks in words, as in `test_tasks.json`"""
    pictures: Mapping[str, bytes]
    """PNG and GIF files of those in PICTURES, by name"""


def render_page(title: str, table: Sequence[Sequence[str]], own: Collection[str], chapters: Sequence[Chapter]) -> str:
    """Return the report of one run, or of several in one table.

    table: a header and a row per method, as text; empty where nothing was tested.
    own: the names of the rows that are not baselines; they stand out.
    """
    results = [chapter.result for chapter in chapters]
    shown = [build_table(table, own, dict.fromkeys(NUMBERS[name_domain(r)] for r in results))] if table else []
    body = [element("h1", title), *shown]
    if cautions := [f"{r['title']}, {text}" for r in results if table for text in list_cautions(r)]:
        body.append(list_items(cautions))
    for i, chapter in enumerate(chapters):
        if len(chapters) > 1:
            body.append(element("h2", chapter.result["title"], id=f"run{i}"))
        for heading, content in build_sections(chapter):
            body += [element("h2" if len(chapters) == 1 else "h3", heading), *content]
    if table:
        body += [element("h2", "What these numbers do not say"), list_items(list_limits(results))]
    if len(chapters) > 1:
        links = [element("li", element("a", r["title"], href=f"#run{i}")) for i, r in enumerate(results)]
        body.insert(2, element("ul", *links))
    body.append(element("footer", f"Written by umeta {results[0]['umeta']} on {results[0]['date']}."))
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE)),
    ]
    document = element("html", element("head", *head), element("body", element("main", *body)), lang="en")
    return f"<!doctype html>\n{document}\n"


def name_domain(result: Result) -> str:
    """Which of `image`, `env` and `regression` a result is of."""
    return result.get("domain", "image")


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """`element("td", "a < b", class_="own")` is `<td class="own">a &lt; b</td>`; `_` in an attribute's name is `-`."""
    given = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(str(v))}"' for name, v in attributes.items())
    if tag in ("img", "meta"):
        return Markup(f"<{tag}{given}>")
    inside = "".join(child if isinstance(child, Markup) else escape(child) for child in children)
    return Markup(f"<{tag}{given}>{inside}</{tag}>")


def list_items(lines: Sequence[str]) -> Markup:
    return element("ul", *(element("li", line) for line in lines))


def build_table(table: Sequence[Sequence[str]], own: Collection[str], numbers: Iterable[str]) -> Markup:
    """Return the methods' results, in a box that scrolls by itself where it is too wide, and what the numbers are."""
    header, *rows = table
    body = [
        element("tr", element("th", name, scope="row"), *(element("td", cell) for cell in cells), class_=kind)
        for name, *cells in rows
        for kind in ["own" if name in own else "baseline"]
    ]
    columns = element("tr", *(element("th", cell, scope="col") for cell in header))
    shown = element("table", element("thead", columns), element("tbody", *body))
    caption = element("figcaption", " ".join(numbers))
    return element("figure", caption, element("div", shown, class_="scroll", tabindex=0))


def tabulate_rows(rows: Rows) -> list[list[str]]:
    """Return a table of rows that have the same columns: a row per method. First row: header."""
    return [["", *next(iter(rows.values()))], *([n, *map(format_cell, cells.values())] for n, cells in rows.items())]


def build_sections(chapter: Chapter) -> list[tuple[str, list[Markup]]]:
    """Return a run's sections with their headings, without empty ones."""
    result = chapter.result
    shown = {
        heading: embed_pictures(files, chapter.pictures) for heading, files in PICTURES[name_domain(result)].items()
    }
    heading = "How it was measured" if result["rows"] else "What was done"
    parts: dict[str, list[Markup]] = {heading: [describe_protocol(result)]}
    if curves := result.get("adaptation"):
        parts["Adaptation"] = draw_comparison(
            MEASURES[name_domain(result)], curves, result.get("handed_back", result["title"])
        )
    for heading in ("Before and after adaptation", "Extrapolation"):
        parts[heading] = shown.get(heading, [])
    words = [describe_answers(chapter.answers)] if chapter.answers else []
    parts["Right and wrong predictions"] = shown.get("Right and wrong predictions", []) + words
    if plots := [
        draw_plot(name, curve["label"], curve["x"], curve["mean"], interval=curve["interval"])
        for name, curve in {**result.get("curves", {}), **result.get("step_curves", {})}.items()
    ]:
        parts["Learning curves"] = [element("div", *plots, class_="plots")]
    if calibration := result.get("calibration"):
        parts["Calibration"] = draw_calibration(calibration)
    for change, rows in result.get("unbalanced", {}).items():
        parts[change] = [build_table(tabulate_rows(rows), [result["title"]], [UNBALANCED])]
    if readings := result.get("readings"):
        lines = [
            f"{change}, {name}: {format_cell(cell)}"
            for change, rows in readings.items()
            for name, cell in rows[result["title"]].items()
        ]
        parts["Readings"] = [list_items(lines)]
    numbers = [list_items(chapter.proposed)] if chapter.proposed else []
    parts["What was proposed"] = numbers + shown["What was proposed"]
    if plots := [
        draw_plot(f"{loop}: {metric}", "step", steps, values, smooth=True)
        for loop, lines in chapter.loops.items()
        for metric in dict.fromkeys(name for line in lines for name in line if name != "step")
        for steps, values in [zip(*((line["step"], line[metric]) for line in lines if metric in line), strict=True)]
    ]:
        parts["How training went"] = [element("div", *plots, class_="plots")]
    name = f"{result['name']}.yaml"
    parts["Run it again"] = [
        element("p", f"Save the configuration as {name}, in the folder that its paths are relative to, and run"),
        element("pre", f"umeta run {shlex.quote(name)} out=again"),
        element("details", element("summary", "configuration"), element("pre", chapter.config)),
    ]
    return [(heading, content) for heading, content in parts.items() if content]


def describe_protocol(result: Result) -> Markup:
    """Return what a reader must know to compare the numbers with others."""
    version = f"umeta {result['umeta']}" + (f", commit {result['commit']}" if result["commit"] else "")
    if "facts" in result:
        return list_items([*result["facts"], *result.get("notes", []), version])
    p, minutes = result["protocol"], result["minutes"]
    counts = {name: next(iter(cells.values()))["tasks"] for name, cells in result["rows"].items()}
    fewer = "".join(f", {name}: {count}" for name, count in counts.items() if count != p["tasks"])
    how = {
        "inductive": "inductive: a query is answered whatever the other queries are",
        "transductive": "transductive: the other queries of a task have a part in the answer to each",
    }
    pairs = {
        "Protocol": p["name"],
        "Split": f"{p['split']}, {p['classes']} classes",
        "Queries": f"{p['queries']} a class",
        "Tasks": f"{p['tasks']} of seed {p['seed']}{fewer}",
        "Prediction": how[p["inference"]],
        "Normalisation": p["normalisation"],
        "Inner steps": p["steps"] or "none",
        "Proposed with": p["proposed_with"],
        "Training seed": result["seed"],
        "Minutes": ", ".join(f"{stage} {value:g}" for stage, value in minutes.items()),
        "Hardware": result["hardware"],
        "Version": version,
    }
    return element("dl", *(part for k, v in pairs.items() for part in (element("dt", k), element("dd", str(v)))))


def describe_answers(answers: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the pictured tasks for those who do not see the picture, or the difference between green and red."""
    lines = []
    for i, task in enumerate(answers, 1):
        wrong = "".join(f"; {m['true']} taken for {m['answer']}: {m['count']}" for m in task["mistakes"])
        lines.append(f"Task {i} ({', '.join(task['classes'])}): {task['right']} of {task['queries']} right{wrong}.")
    return element("details", element("summary", "all queries of these tasks in words"), list_items(lines))


def draw_calibration(calibration: Mapping[str, Any]) -> list[Markup]:
    """Return the expected calibration error `ece`, and accuracy against confidence.

    Every bin has a mean `confidence`, an `accuracy` and a `count`; all but counts are shares in [0, 1].
    """
    text = (
        f"Expected calibration error: {calibration['ece']:.1%}, the mean distance between how sure the learner is and "
        "how often it is right. On the dashed line the two agree."
    )
    if "log_likelihood" in calibration:  # evaluations of earlier versions have none
        text += f" The right class has a log-probability of {calibration['log_likelihood']:.3f} on average."
    bins = [one for one in calibration["bins"] if one["count"]]
    x, y = ([100 * one[key] for one in bins] for key in ("confidence", "accuracy"))
    shown = draw_plot("accuracy by confidence, in percent", "confidence", x, y, ideal=True)
    return [element("p", text), element("div", shown, class_="plots")]


def list_limits(results: Sequence[Result]) -> list[str]:
    """List conclusions that the numbers do not support."""
    sentences = [
        "The interval says how well the mean over test tasks is known. It does not say how much the number would "
        "change if the learner were trained again from another seed.",
    ]
    domains = {name_domain(result) for result in results}
    if "image" in domains:
        sentences.append(
            "Every test task has equally many labelled examples of each class, and every query belongs to one of its "
            "classes. Unbalanced data, queries of other classes and images from elsewhere are not measured here."
        )
    if "env" in domains:
        sentences += [
            "Returns are of the environment and the reward as they are defined here. They cannot be compared with "
            "published returns whose formula, horizon, bounds or simulator differ.",
            "All goals are of one family, and adaptation sees the true reward of its goal at every step. Rewards of "
            "another kind, sparse ones, and other bodies or surroundings are not measured here.",
        ]
    if "regression" in domains:
        sentences.append("The functions are without noise and of one family. Other families are not measured here.")
    for result in results:
        p = result["protocol"]
        if p.get("split", "").endswith("val"):
            sentences.append(f"{result['title']}: these are validation data, on which settings may have been chosen.")
        if "transductive" in (p.get("inference"), *(name.rpartition(", ")[2] for name in result["rows"])):
            sentences.append(
                f"{result['title']}: where it is transductive the same query beside other queries may be answered "
                "differently, and equally many queries of each class flatter it."
            )
        if "pre-trained on" in (source := p.get("proposed_with", "")):
            sentences.append(f"{result['title']}: made with {source}; no result of learning without labels alone.")
        if source.startswith("true"):
            sentences.append(f"{result['title']}: its tasks were made with {source}; it is a reference for the others.")
    return sentences


def embed_pictures(texts: Mapping[str, str], pictures: Mapping[str, bytes]) -> list[Markup]:
    """Those of the pictures that are there, each over what it shows; moving ones side by side."""
    shown = {name: embed_picture(pictures[name], name, text) for name, text in texts.items() if name in pictures}
    moving = [shown.pop(name) for name in list(shown) if name.endswith(".gif")]
    return [*shown.values(), *([element("div", *moving, class_="plots")] if moving else [])]


def embed_picture(content: bytes, name: str, caption: str) -> Markup:
    """Return a PNG or GIF inside the page, which scrolls on a phone where it is wide."""
    stem, _, kind = name.partition(".")
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    shown = element("img", src=source, alt=stem.replace("_", " "))
    return element("figure", element("div", shown, class_="scroll", tabindex=0), element("figcaption", caption))


def draw_plot(
    title: str,
    xlabel: str,
    at: Sequence[float],
    values: Sequence[float],
    *,
    interval: Sequence[float] | None = None,
    smooth: bool = False,
    ideal: bool = False,
) -> Markup:
    """Return a line as SVG.

    interval: half widths of a band around it.
    smooth: draws the mean over a twentieth of the points as the line, and the points faintly.
    ideal: draws the line x = y from 0 to 100 as well.
    """
    x, y = np.asarray(at, float), np.asarray(values, float)
    half = np.zeros(len(y)) if interval is None else np.asarray(interval, float)
    reach = (0, 100) if ideal else ()
    drawn, xs, ys = draw_grid([*x, *reach], [*(y - half), *(y + half), *reach], xlabel, 360, 196)
    if ideal:
        drawn.append(element("line", x1=xs(0), y1=ys(0), x2=xs(100), y2=ys(100), class_="ideal"))
    if interval is not None:
        drawn.append(draw_band(xs(x), ys(y - half), ys(y + half)))
    if smooth:
        window = max(1, len(y) // 20)
        drawn.append(draw_line(xs(x), ys(y), class_="faint"))
        x, y = x[window - 1 :], np.convolve(y, np.ones(window) / window, mode="valid")
    drawn.append(draw_line(xs(x), ys(y), class_="line"))
    label = f"{title}, from {y[0]:.4g} at {x[0]:g} to {y[-1]:.4g} at {x[-1]:g}"
    figure = element("svg", *drawn, viewBox="0 0 360 196", role="img", aria_label=label)
    return element("figure", element("figcaption", title), figure)


def draw_comparison(what: str, curves: Mapping[str, Curve], first: str) -> list[Markup]:
    """Several lines with bands in one plot, told apart by colour and dashes, the one named `first` the boldest.

    curves: `x`, `mean` and the half width `interval` of each by name. The legend has them in the order of their ends.
    """
    xlabel = label_of(curves)
    arrays = {name: [np.asarray(curve[k], float) for k in ("x", "mean", "interval")] for name, curve in curves.items()}
    every = [np.concatenate(values) for values in zip(*arrays.values(), strict=True)]
    drawn, xs, ys = draw_grid(every[0], [*(every[1] - every[2]), *(every[1] + every[2])], xlabel, 720, 340)
    others = [name for name in arrays if name != first]
    ends = []
    for name, (x, mean, half) in arrays.items():
        i = others.index(name) if name in others else None
        tone = {"class_": "first" if i is None else TONES[i % len(TONES)]}
        dashes = {} if i is None else {"stroke_dasharray": DASHES[i % len(DASHES)]}
        drawn.append(
            element(
                "g",
                draw_band(xs(x), ys(mean - half), ys(mean + half)),
                draw_line(xs(x), ys(mean), class_="line", **dashes),
                **tone,
            )
        )
        stroke = element(
            "svg", draw_line([0, 40], [6, 6], class_="line", **dashes), viewBox="0 0 40 12", aria_hidden="true"
        )
        ends.append((-mean[-1], element("li", stroke, element("span", name), **tone)))
    told = "; ".join(
        f"{name}: {y[0]:.4g} at {x[0]:g} to {y[-1]:.4g} at {x[-1]:g}" for name, (x, y, _) in arrays.items()
    )
    figure = element("svg", *drawn, viewBox="0 0 720 340", role="img", aria_label=f"{what} by {xlabel}; {told}")
    legend = element("ul", *(entry for _, entry in sorted(ends, key=lambda end: end[0])), class_="legend")
    return [element("figure", element("div", figure, class_="scroll large", tabindex=0), legend)]


def draw_grid(
    x: Iterable[float], y: Iterable[float], xlabel: str, width: int, height: int
) -> tuple[list[Markup], Place, Place]:
    """Return a plot without its lines, large enough for these values, and the places of values in it."""
    left, right, top, bottom = 44, width - 8, 8, height - 36
    xticks, xs = place_ticks(x, left, right)
    yticks, ys = place_ticks(y, bottom, top)
    drawn = []
    for value in yticks:
        at = f"{ys(value):.1f}"
        drawn.append(element("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
        drawn.append(element("text", f"{value:g}", x=left - 6, y=at, text_anchor="end", dominant_baseline="middle"))
    drawn += [element("text", f"{v:g}", x=f"{xs(v):.1f}", y=bottom + 16, text_anchor="middle") for v in xticks]
    drawn.append(element("text", xlabel, x=(left + right) / 2, y=bottom + 32, text_anchor="middle"))
    return drawn, xs, ys


def draw_line(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, **attributes: object) -> Markup:
    """Return a line through these places, thinned to POINTS."""
    some = slice(None, None, math.ceil(len(x) / POINTS))
    return element("polyline", points=format_points(x[some], y[some]), **attributes)


def draw_band(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> Markup:
    """Return the area between two lines."""
    points = format_points(np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]]))
    return element("polygon", points=points, class_="band")


def format_points(x: Iterable[float], y: Iterable[float]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def place_ticks(values: Iterable[float], start: float, end: float) -> tuple[list[float], Place]:
    """Round numbers to mark on an axis, and the function from a value to its place between `start` and `end`."""
    values = list(values)
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    unit = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(unit * m for m in (1, 2, 5, 10) if (high - low) / (unit * m) <= 5)
    ticks = [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return ticks, lambda value: start + (value - low) / (high - low) * (end - start)
