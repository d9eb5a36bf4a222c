"""Accuracy after the minutes that one has: `make bench BENCH=minutes`, or `python -m bench.minutes --minutes 1 3 10`.

Each method learns from the training classes for some minutes, in a process of its own on all cores, and then tells
apart validation classes; `bench.recipes` has the methods. They take turns, a seed after the other, so that a machine's
drift hits all alike. What is done is kept: the same command goes on where it was stopped, or adds minutes and seeds.
It writes results/minutes.json, docs/minutes.png and the table.

The data are those of ../shared/data, or of `--data`: Omniglot comes with the library, CIFAR-FS is `cifar100/images.zip`
with `cifar100/splits/cifar-fs-{train,val}.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.recipes import METHODS, Training
from umeta.data import archives, decode
from umeta.data.folder import read_class_list
from umeta.data.images import Items, Split
from umeta.data.omniglot import Omniglot
from umeta.evaluation.rows import find_origin
from umeta.report.write import format_markdown
from umeta.runtime import artifacts
from umeta.runtime.allocator import keep_buffers
from umeta.tasks.partition import PartitionTasks
from umeta.types import EpisodeSpec

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "minutes.json"
DATA = ROOT.parent / "shared" / "data"
NAMES = {"omniglot": "Omniglot", "cifar-fs": "CIFAR-FS"}
EPISODES = ("1", "5")  # shots, of 5 ways and 15 queries a class


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.minutes", description=__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 3, 10, 30])
    parser.add_argument("--seeds", type=int, default=3, help="repetitions, of which medians are shown")
    parser.add_argument("--tasks", type=int, default=1000, help="validation tasks")
    parser.add_argument("--datasets", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "minutes.png")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in a process of its own
    asked = parser.parse_args(arguments)
    if asked.one:
        return print(json.dumps(measure(json.loads(asked.one), asked.data)))
    result = artifacts.read_json(asked.out) if asked.out.exists() else {"rows": []}
    for question in list_questions(asked):
        same = [row for row in result["rows"] if all(row[key] == value for key, value in question.items())]
        if not any("accuracy" in row for row in same):  # what was missing may be there now
            print(", ".join(f"{key} {value}" for key, value in question.items()), "...", flush=True)
            others = [row for row in result["rows"] if row not in same]
            result["rows"] = [*others, {**question, **find_origin(), **ask(question, asked.data)}]
            artifacts.write_json(asked.out, result)
    print(f"\n{table(result)}")
    draw(result, asked.picture)


def list_questions(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Every run, in the order that they take turns in; pixels learn nothing, so that they are asked once."""
    found = [
        {"dataset": dataset, "method": method, "minutes": minutes, "seed": seed, "tasks": asked.tasks}
        for seed in range(asked.seeds)
        for minutes in sorted(asked.minutes)
        for dataset in asked.datasets
        for method in asked.methods
    ]
    first = min(asked.minutes)
    return [q for q in found if q["method"] != "pixels" or (q["minutes"], q["seed"]) == (first, 0)]


def ask(question: dict[str, Any], data: Path) -> dict[str, Any]:
    """Run one method in a process: accuracies by shots, or what is missing."""
    command = [sys.executable, "-m", "bench.minutes", "--data", str(data), "--one", json.dumps(question)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(question: dict[str, Any], data: Path) -> dict[str, Any]:
    """Learn for the minutes, and give accuracies in percent on validation classes, with their 95 % intervals."""
    keep_buffers()  # for all methods alike
    train, val = (read(question["dataset"], split, data) for split in ("train", "val"))
    assert train.labels is not None
    seconds = 60 * question["minutes"]
    began = time.monotonic()
    answer = METHODS[question["method"]](Training(train.pixels, train.labels, seconds, question["seed"]))
    took = time.monotonic() - began
    tasks = PartitionTasks(val.pixels, val.labels)
    found = {}
    for shot in EPISODES:
        accuracies = 100 * answer(tasks, EpisodeSpec(5, int(shot), 15), question["tasks"])
        found[shot] = [float(accuracies.mean()), float(1.96 * accuracies.std() / len(accuracies) ** 0.5)]
    return {"accuracy": found, "took": took / 60, "threads": torch.get_num_threads()}


def read(dataset: str, split: Split, data: Path) -> Items:
    """Read pictures and labels."""
    if dataset == "omniglot":
        return Omniglot(split="vinyals").read(split)
    root = data / "cifar100" / "images.zip"
    classes = {name: i for i, name in enumerate(read_class_list(root.parent / "splits" / f"cifar-fs-{split}.txt"))}
    files = {f: classes[p] for f in archives.list_files(root) if (p := Path(f.name).parent.name) in classes}
    pixels, kept = decode.decode(list(files), decode.Rule(32, 3), root=root)
    labels = np.array(list(files.values()))[kept]
    return Items(np.array(pixels), labels.astype(np.int64), tuple(classes))


def table(result: dict[str, Any]) -> str:
    """Medians over the seeds as Markdown: a row for each method, a column for each number of minutes."""
    parts = []
    for dataset in dict.fromkeys(row["dataset"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["dataset"] == dataset]
        minutes = sorted({row["minutes"] for row in rows})
        lines = [[f"{NAMES[dataset]}, 5-way 1-shot / 5-shot, %", *(f"{m:g} min" for m in minutes)]]
        for method in [name for name in METHODS if any(row["method"] == name for row in rows)]:
            cells = [median_of(rows, method, m) for m in minutes]
            lines.append([method, *(" / ".join(f"{v:.1f}" for v in c) if isinstance(c, list) else c for c in cells)])
        parts.append(format_markdown(lines))
    commits = ", ".join(dict.fromkeys(str(row["commit"]) for row in result["rows"]))
    facts = f"{name_origin(result)}; commits {commits}; medians, validation classes."
    return "\n\n".join([*parts, facts])


def name_origin(result: dict[str, Any]) -> str:
    """Name the days and the machines of the rows."""
    return ", ".join(dict.fromkeys(row[key] for key in ("date", "hardware") for row in result["rows"]))


def median_of(rows: list[dict[str, Any]], method: str, minutes: float) -> list[float] | str:
    """Return the median accuracy for each number of shots, or the reason that there is none."""
    found = [row for row in rows if (row["method"], row["minutes"]) == (method, minutes)]
    done = [row["accuracy"] for row in found if "accuracy" in row]
    if not done:
        return found[0]["missing"] if found else ""
    return [float(np.median([accuracy[shot][0] for accuracy in done])) for shot in EPISODES]


def draw(result: dict[str, Any], picture: Path) -> None:
    """Accuracy in 5-way 1-shot tasks against minutes, a column for each data set, as PNG."""
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(row["dataset"] for row in result["rows"]))
    figure = Figure(figsize=(4.5 * len(datasets), 4), layout="constrained")
    axes = figure.subplots(1, len(datasets), squeeze=False)[0]
    for axis, dataset in zip(axes, datasets, strict=True):
        rows = [row for row in result["rows"] if row["dataset"] == dataset]
        minutes = sorted({row["minutes"] for row in rows})
        for method in METHODS:
            points = [(m, median_of(rows, method, m)) for m in minutes]
            known = [(m, found[0]) for m, found in points if isinstance(found, list)]
            if method == "pixels" and known:
                axis.axhline(known[0][1], linestyle=":", color="grey", label=method)
            elif known:
                axis.plot(*zip(*known, strict=True), marker="o", markersize=4, label=method)
        axis.set(xscale="log", xlabel="minutes", ylabel="accuracy, 5-way 1-shot, %", title=NAMES[dataset])
        axis.set_xticks(minutes, [f"{m:g}" for m in minutes])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    if datasets:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    with artifacts.replace_atomically(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


if __name__ == "__main__":
    main(sys.argv[1:])
