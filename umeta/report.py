"""What a run did, for people: tables, pictures of test tasks with their predictions, the training curve."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from umeta import artifacts, pictures
from umeta.benchmarks.labelled import LabelledImages
from umeta.context import read_step
from umeta.stages import Run
from umeta.types import EpisodeSpec


def note(message: str) -> None:
    """A line on standard error."""
    print(message, file=sys.stderr, flush=True)


def write(run: Run, test: LabelledImages, result: dict[str, Any], episode: EpisodeSpec) -> None:
    """Writes `report.md`, `report.json`, `test_tasks.png` and `training.png` into the run's folder."""
    pictures.save(task_pictures(run, test, episode, result["protocol"]["seed"]), run.folder / "test_tasks.png")
    log = run.folder / "metatrain.jsonl"
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    lines = [json.loads(line) for line in text.splitlines() if read_step(line) < math.inf]
    if lines:
        values = {name: [line.get(name, math.nan) for line in lines] for name in ("loss", "accuracy")}
        pictures.curve(run.folder / "training.png", [line["step"] for line in lines], values, "meta-step")
    artifacts.write_json(run.folder / "report.json", result)
    artifacts.write_text(run.folder / "report.md", page(run, result, bool(lines)))


def page(run: Run, result: dict[str, Any], curve: bool) -> str:
    """The report of one run as Markdown."""
    tasks = run.config.tasks_folder
    preview = tasks / "preview.png"
    parts = [f"# {result['title']}", "", markdown(table([result])), "", *(f"- {line}" for line in facts(result)), ""]
    parts += [
        "## Test tasks",
        "",
        "One task a row: its support left of the gap, queries right of it, framed green where the "
        "prediction is right and red where it is wrong.",
        "",
        "![test tasks](test_tasks.png)",
        "",
    ]
    if curve:
        parts += [
            "## Meta-training",
            "",
            "Query loss and accuracy on proposed tasks.",
            "",
            "![training](training.png)",
            "",
        ]
    if preview.exists():
        place = os.path.relpath(preview, run.folder)
        parts += [
            "## Proposed classes",
            "",
            "Samples of classes that were proposed, one a row.",
            "",
            f"![proposed classes]({place})",
            "",
        ]
    return "\n".join(parts)


def facts(result: dict[str, Any]) -> list[str]:
    """What a reader must know to compare the numbers with others."""
    p, minutes, title = result["protocol"], result["minutes"], result["title"]
    counts = {name: next(iter(cells.values()))["tasks"] for name, cells in result["rows"].items()}
    fewer = "".join(f" ({name}: {count} tasks)" for name, count in counts.items() if count != p["tasks"])
    steps = f", {p['steps']} inner steps" if p["steps"] else ""
    return [
        f"protocol {p['name']}: {p['classes']} classes of the split `{p['split']}`, {p['queries']} queries a class, "
        f"{p['tasks']} tasks of seed {p['seed']}{fewer}, mean and 95 % interval over tasks",
        f"{title}: {p['inference']}, normalisation `{p['normalisation']}`{steps}; proposed with {p['proposed_with']}",
        f"{title}: minutes {', '.join(f'{name} {value:g}' for name, value in minutes.items())}; {result['hardware']}; "
        f"seed {result['seed']}",
    ]


def table(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One table of several results: a row per method, a column per episode. First row: header.

    A baseline that several results share stands once; where its numbers differ, once for each.
    """
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        for name, cells in result["rows"].items():
            same = all(rows.get(name, {}).get(column, value) == value for column, value in cells.items())
            rows.setdefault(name if same else f"{name} ({result['name']})", {}).update(cells)
    own = [result["title"] for result in results]  # learners last, in the order they were asked for
    order = [name for name in rows if name not in own] + list(dict.fromkeys(own))
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    body = []
    for name in order:
        cells = [rows[name].get(column) for column in columns]
        body.append([name, *(cell(value) if value else "not run" for value in cells)])
    return [["", *columns], *body]


def cell(value: dict[str, float]) -> str:
    """`68.12 ± 0.61`, in percent."""
    return f"{value['mean']:.2f}" + (f" ± {value['interval']:.2f}" if value["interval"] else "")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table for Markdown."""
    header, *body = rows
    rule = "|" + "---|" + "---:|" * (len(header) - 1)
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in body)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


def together(results: Sequence[dict[str, Any]], folder: Path) -> Path:
    """`folder/report.md`: one table of several runs, and each run's pictures."""
    parts = ["# Results", "", markdown(table(results)), ""]
    for result in results:
        run = Path(result["folder"])
        place = os.path.relpath(run, folder)
        tasks = os.path.relpath(Path(result["tasks"]), folder)
        parts += [
            f"## {result['title']}",
            "",
            *(f"- {line}" for line in facts(result)),
            "",
            f"Test tasks with predictions ([report]({place}/report.md)):",
            "",
            f"![test tasks]({place}/test_tasks.png)",
            "",
            f"Proposed classes, one a row ([numbers]({tasks}/summary.md)):",
            "",
            f"![proposed classes]({tasks}/preview.png)",
            "",
        ]
    artifacts.write_text(folder / "report.md", "\n".join(parts))
    return folder / "report.md"


def task_pictures(run: Run, test: LabelledImages, episode: EpisodeSpec, seed: int, count: int = 4) -> np.ndarray:
    """Pictures of the first test tasks: support, a gap, up to 15 queries framed by whether they were answered right."""
    device = next(iter(run.theta.params.values())).device
    images = test.tasks(device=str(device))
    batch = images.sample(np.arange(count), episode=episode, seed=seed)
    with torch.no_grad():
        adapted = run.learner.adapt(run.theta, batch.support(), steps=run.test_steps)
        answers = run.learner.predict(run.theta, adapted, batch.query().x).argmax(-1).cpu()
    gap = np.full((pictures.TILE, pictures.TILE // 3, 3), 255, dtype=np.uint8)
    rows = []
    for t in range(count):
        first = [int((batch.support_label[t] == label).nonzero()[0, 0]) for label in range(min(episode.way, 5))]
        shown = [pictures.tile(images.items[batch.support_index[t, i]].cpu().numpy()) for i in first]
        row = [*shown, gap]
        for q in range(min(15, batch.query_index.shape[1])):
            right = bool(answers[t, q] == batch.query_label[t, q])
            frame = pictures.RIGHT if right else pictures.WRONG
            row.append(pictures.tile(images.items[batch.query_index[t, q]].cpu().numpy(), frame))
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows)
