"""What a run did, for people: tables, test tasks with their predictions, the training curve; Markdown and files."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from umeta.benchmarks.labelled import LabelledImages
from umeta.config.reading import dump_yaml
from umeta.draw import curves, mosaic
from umeta.draw.curves import Curve
from umeta.evaluation.result import Cell, Result, Rows, format_cell, list_cautions
from umeta.parts import Tracker
from umeta.report import page as web
from umeta.runtime import artifacts
from umeta.runtime.checkpoints import read_step
from umeta.stages.runs import Run
from umeta.types import EpisodeSpec

# of what meta-training logs, the numbers in `training.png`
TRAINING = "loss", "accuracy", "return before", "return", "gain"
TRAINED = {"How training went": {"training.png": "Meta-training on proposed tasks."}}


def write(
    run: Run, test: LabelledImages, result: Result, episode: EpisodeSpec, trackers: Sequence[Tracker] = ()
) -> None:
    """Write `report.{html,md,json}`, `test_tasks.{png,json}` and `training.png` into the run's folder."""
    tested, answers = answer_tasks(run, test, episode, result["protocol"]["seed"])
    mosaic.save(tested, run.folder / "test_tasks.png")
    artifacts.write_json(run.folder / "test_tasks.json", answers)
    write_files(run, result)
    for tracker in trackers:
        tracker.picture("test tasks", tested)
    track_result(result, trackers, "accuracy", {**result.get("curves", {}), **result.get("step_curves", {})})


def write_adaptation(run: Run, result: Result, trackers: Sequence[Tracker] = ()) -> None:
    """Write `report.{html,md,json}`, `adaptation.png` and `training.png` into the run's folder."""
    measure = web.MEASURES[web.name_domain(result)]
    curves.plot_adaptation(run.folder / "adaptation.png", result["adaptation"], measure)
    write_files(run, result)
    track_result(result, trackers, measure, result["adaptation"])


def write_untested(run: Run, made: Mapping[str, Any], again: str) -> Path:
    """Write `report.{html,md}` and `training.png` of a run that is not tested: what was proposed, how training went.

    made: what the run was made by, as in a result. again: how it can be tested.
    """
    title = run.config.title or run.config.name
    minutes = ", ".join(f"{name} {value:g}" for name, value in run.minutes().items())
    told = [f"Not tested, so that nothing is known of how often it is right. {again}", f"minutes: {minutes}"]
    result: Any = {"name": run.config.name, "title": title, "rows": {}, "protocol": {}, "facts": told, **made}
    result["domain"] = run.config.domain
    draw_training(run)
    lines = [f"# {title}", "", *(f"- {line}" for line in told), ""]
    lines += list_pictures(result, run.folder, run.config.tasks_folder, run.folder, "##", TRAINED)
    artifacts.write_text(run.folder / "report.md", "\n".join(lines))
    shown = collect_chapter(result, run.folder, run.config.tasks_folder)
    page = run.folder / "report.html"
    artifacts.write_text(page, web.render_page(title, [], (), [shown]))
    return page


def draw_training(run: Run) -> None:
    """Draw what meta-training logged into `training.png`."""
    if lines := read_log(run.folder / "metatrain.jsonl"):
        names = [name for name in TRAINING if any(name in line for line in lines)]
        values = {name: [line.get(name, math.nan) for line in lines] for name in names}
        curves.plot_training(run.folder / "training.png", [line["step"] for line in lines], values, "meta-step")


def write_files(run: Run, result: Result) -> None:
    """Write the files that the reports of all runs have."""
    draw_training(run)
    if farther := result.get("extrapolation"):
        curves.plot_extrapolation(run.folder / "extrapolation.png", farther, web.MEASURES[web.name_domain(result)])
    artifacts.write_sealed(run.folder / "report.json", result)
    artifacts.write_text(run.folder / "report.md", render_markdown(run, result))
    shown = collect_chapter(result, run.folder, run.config.tasks_folder)
    artifacts.write_text(
        run.folder / "report.html", web.render_page(result["title"], tabulate([result]), own_rows([result]), [shown])
    )


def track_result(result: Result, trackers: Sequence[Tracker], metric: str, curves: dict[str, Curve]) -> None:
    """Pass the table and the curves on to the trackers."""
    means = {f"{name}, {e}": cell["mean"] for name, cells in result["rows"].items() for e, cell in cells.items()}
    numbers = {name: mean for name, mean in means.items() if mean is not None}
    for tracker in trackers:
        tracker.scalars("evaluate", 0, numbers)
        for name, curve in curves.items():
            for x, mean in zip(curve["x"], curve["mean"], strict=True):
                tracker.scalars(name, int(x), {metric: mean})


def collect_chapter(result: Result, folder: Path, tasks: Path) -> web.Chapter:
    """Return what the web page shows of a run, from the run's folder and that of its tasks."""
    proposed = artifacts.is_intact(tasks, "tasks")
    numbers = (tasks / "summary.md").read_text(encoding="utf-8") if proposed else ""
    places = [tasks, folder] if proposed else [folder]
    loops = {path.stem: read_log(path) for place in places for path in sorted(place.glob("*.jsonl"))}
    words = folder / "test_tasks.json"
    return web.Chapter(
        result,
        dump_yaml({key: value for key, value in result["config"].items() if key not in ("tasks", "out")}),
        [line.removeprefix("- ") for line in numbers.splitlines() if line.startswith("- ")],
        {name: lines for name, lines in loops.items() if len(lines) > 1},
        artifacts.read_json(words) if words.exists() else [],
        {
            path.name: path.read_bytes()
            for files in web.PICTURES[web.name_domain(result)].values()
            for path in find_files(files, *reversed(places))
        },
    )


def find_files(names: Iterable[str], *folders: Path) -> list[Path]:
    """Those of the files that are in one of the folders."""
    return [folder / name for name in names for folder in folders if (folder / name).exists()]


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the steps that a loop logged, `step` and metrics; none if there is no such file."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if read_step(line) < math.inf]


def render_markdown(run: Run, result: Result) -> str:
    """Return the report of one run as Markdown."""
    about = [
        f"# {result['title']}",
        "",
        format_markdown(tabulate([result])),
        "",
        *(f"- {line}" for line in list_facts(result)),
        "",
    ]
    for heading, tables in (("Extrapolation", result.get("extrapolation")), ("Readings", result.get("readings"))):
        for change, rows in (tables or {}).items():
            about += [f"## {heading}: {change}", "", format_markdown(web.tabulate_rows(rows)), ""]
    for change, rows in result.get("unbalanced", {}).items():
        about += [f"## {change}", "", web.UNBALANCED, "", format_markdown(web.tabulate_rows(rows)), ""]
    return "\n".join([*about, *list_pictures(result, run.folder, run.config.tasks_folder, run.folder, "##", TRAINED)])


def list_pictures(
    result: Result, folder: Path, tasks: Path, place: Path, level: str, more: dict[str, dict[str, str]]
) -> list[str]:
    """Markdown, to stand in `place`, of the pictures of a run and its tasks, under headings of a level."""
    curves = {"Adaptation": {"adaptation.png": web.NUMBERS[web.name_domain(result)]}} if "adaptation" in result else {}
    lines = []
    for heading, files in {**curves, **web.PICTURES[web.name_domain(result)], **more}.items():
        paths = find_files(files, folder, tasks)
        lines += [f"{level} {heading}", ""] if paths else []
        for path in paths:
            alternative = path.stem.replace("_", " ")
            lines += [files[path.name], "", f"![{alternative}]({os.path.relpath(path, place)})", ""]
    return lines


def list_facts(result: Result) -> list[str]:
    """Return what a reader must know to compare the numbers with others, and what makes them look better."""
    cautions = [f"{result['title']}, {text}" for text in list_cautions(result)]
    if "facts" in result:
        return [*cautions, *result["facts"], *result.get("notes", [])]
    p, minutes, title = result["protocol"], result["minutes"], result["title"]
    counts = {name: next(iter(cells.values()))["tasks"] for name, cells in result["rows"].items()}
    fewer = "".join(f" ({name}: {count} tasks)" for name, count in counts.items() if count != p["tasks"])
    steps = f", {p['steps']} inner steps" if p["steps"] else ""
    classes = f"tasks of {p['attributes']} attributes" if p.get("attributes") else f"{p['classes']} classes"
    tuned = ", ".join(f"{lr:g} ({episode})" for episode, lr in result.get("scratch_lr", {}).items())
    return [
        *cautions,
        f"protocol {p['name']}: {classes} of the split `{p['split']}`, {p['queries']} queries a class, "
        f"{p['tasks']} tasks of seed {p['seed']}{fewer}, mean and 95 % interval over tasks",
        *([f"from scratch: step sizes {tuned}, chosen on validation classes where there are some"] if tuned else []),
        f"{title}: {p['inference']}, normalisation `{p['normalisation']}`{steps}; proposed with {p['proposed_with']}",
        f"{title}: minutes {', '.join(f'{name} {value:g}' for name, value in minutes.items())}; {result['hardware']}; "
        f"seed {result['seed']}",
    ]


def tabulate(results: Sequence[Result]) -> list[list[str]]:
    """One table of several results: a row per method, a column per episode. First row: header.

    A baseline that several results share stands once; where its numbers differ, once for each.
    """
    rows: Rows = {}
    for result in results:
        for name, cells in result["rows"].items():
            same = all(rows.get(name, {}).get(column, value) == value for column, value in cells.items())
            rows.setdefault(name if same else f"{name} ({result['name']})", {}).update(cells)
    own = own_rows(results)  # learners last, in the order they were asked for
    order = [name for name in rows if name not in own] + own
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    body = [[name, *(format_cell(rows[name][c]) if c in rows[name] else "not run" for c in columns)] for name in order]
    return [["", *columns], *body]


def own_rows(results: Sequence[Result]) -> list[str]:
    """Return the rows of the learners, of which a result has its baselines first: the title, then the variants."""
    own: list[str] = []
    for result in results:
        names = list(result["rows"])
        own += names[names.index(result["title"]) :]
    return list(dict.fromkeys(own))


def average_seeds(results: Sequence[Result]) -> Result:
    """One result of several that differ in their seed alone, without the baselines.

    Means over the seeds, with 95 % intervals (Student's t) of what proposed tasks, training and initial weights vary; a
    run's own interval is over test tasks.
    """
    from scipy.stats import t

    first, quantile = results[0], float(t.ppf(0.975, len(results) - 1))
    own = first["title"].removesuffix(f", seed {first['seed']}")
    title = f"{own}, mean of {len(results)} seeds"
    rows = {}
    for names in zip(*(own_rows([result]) for result in results), strict=True):
        cells = [result["rows"][name] for result, name in zip(results, names, strict=True)]
        rows[names[0].replace(first["title"], title, 1)] = {
            column: average_cells([one[column] for one in cells], quantile) for column in cells[0]
        }
    mean: Result = {
        "name": f"{first['name']} and more",
        "title": title,
        "rows": rows,
        "protocol": first["protocol"],
        "hardware": first["hardware"],
        "umeta": first["umeta"],
        "commit": first["commit"],
        "date": first["date"],
        "config": first["config"],
        "seed": ", ".join(str(result["seed"]) for result in results),
    }
    return {**mean, "domain": first["domain"]} if "domain" in first else mean


def average_cells(cells: Sequence[Cell], quantile: float) -> Cell:
    """Return the mean of the cells' means, and the interval that the quantile gives; None where one is no number."""
    means = [cell["mean"] for cell in cells if cell["mean"] is not None]
    if len(means) < len(cells):
        return {**cells[0], "mean": None, "interval": None}
    error = np.std(means, ddof=1) / len(means) ** 0.5
    return {**cells[0], "mean": float(np.mean(means)), "interval": float(quantile * error)}


def format_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table for Markdown."""
    header, *body = rows
    rule = "|" + "---|" + "---:|" * (len(header) - 1)
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in body)])


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return a table for the terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


def write_combined(results: Sequence[Result], folder: Path, means: Sequence[Result] = ()) -> Path:
    """`folder/report.{html,md}`: one table of several runs and of means over seeds, and each run's pictures."""
    rows = tabulate([*results, *means])
    parts = ["# Results", "", format_markdown(rows), ""]
    for result in results:
        run, tasks = Path(result["folder"]), Path(result["tasks"])
        links = f"[report]({os.path.relpath(run, folder)}/report.md)"
        if find_files(["summary.md"], tasks):
            links += f", [proposed tasks]({os.path.relpath(tasks, folder)}/summary.md)"
        parts += [f"## {result['title']}", "", *(f"- {line}" for line in list_facts(result)), "", links, ""]
        parts += list_pictures(result, run, tasks, folder, "###", {})
    artifacts.write_text(folder / "report.md", "\n".join(parts))
    chapters = [collect_chapter(result, Path(result["folder"]), Path(result["tasks"])) for result in results]
    own = own_rows([*results, *means])
    artifacts.write_text(folder / "report.html", web.render_page("Results", rows, own, chapters))
    return folder / "report.md"


def answer_tasks(
    run: Run, test: LabelledImages, episode: EpisodeSpec, seed: int, count: int = 4
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the first test tasks as a picture and in words.

    A row of the picture shows the support, a gap, and up to 15 queries framed by whether they were answered right. The
    words are the task's classes, how many of all its queries were answered right, and which classes were mistaken.
    """
    images = test.tasks(device=str(run.theta.device))
    batch = images.sample(np.arange(count), episode=episode, seed=seed)
    with torch.no_grad():
        adapted = run.learner.adapt(run.theta, batch.support(), steps=run.test_steps)
        answers = run.learner.predict(run.theta, adapted, batch.query().x).argmax(-1).cpu()
    gap = np.full((mosaic.TILE, mosaic.TILE // 3, 3), 255, dtype=np.uint8)
    rows, words = [], []
    for t in range(count):
        first = [int((batch.support_label[t] == label).nonzero()[0, 0]) for label in range(episode.way)]
        shown = [mosaic.tile(images.items[batch.support_index[t, i]].cpu().numpy()) for i in first[:5]]
        row = [*shown, gap]
        right = answers[t] == batch.query_label[t]
        for q in range(min(15, len(right))):
            frame = mosaic.RIGHT if right[q] else mosaic.WRONG
            row.append(mosaic.tile(images.items[batch.query_index[t, q]].cpu().numpy(), frame))
        rows.append(np.concatenate(row, axis=1))
        classes = [test.names[test.labels[int(batch.support_index[t, i])]] for i in first]
        wrong = Counter(zip(batch.query_label[t][~right].tolist(), answers[t][~right].tolist(), strict=True))
        mistakes = [{"true": classes[a], "answer": classes[b], "count": n} for (a, b), n in wrong.most_common()]
        words.append({"classes": classes, "right": int(right.sum()), "queries": len(right), "mistakes": mistakes})
    return np.concatenate(rows), words
