"""What people wait for: an evaluation, and pictures on disk to a table of answers."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench.maml import Case, package
from umeta.data import archives, decode
from umeta.data.inputs import Format
from umeta.deploy.adapted import AdaptedLearner, MetaLearnt
from umeta.deploy.predict import predict_images
from umeta.evaluation.images import evaluate
from umeta.metalearners.maml import MAML
from umeta.metalearners.protonet import ProtoNet
from umeta.models.conv4 import Conv4
from umeta.tasks.partition import PartitionTasks
from umeta.types import EpisodeSpec, TaskSpec, Theta

SIDE = 32  # of an item
PICTURE = (500, 375)  # of a file, pixels


def evaluation(tasks: int, steps: int, **case: Any) -> Callable[[], dict[str, float]]:
    """`umeta.evaluate`, sampling included."""
    sizes = Case(**case)
    episode = EpisodeSpec(sizes.way, sizes.shot, sizes.query)
    learner = MAML(sizes.options, inner_lr=sizes.inner_lr, head="fixed", normalisation="batch")
    distribution = make_tasks(sizes)
    learner = learner.build(distribution.spec, episode)
    theta = learner.init(seed=0)
    return lambda: {"accuracy": float(evaluate(learner, theta, distribution, episode, count=tasks, steps=steps).mean())}


def evaluation_by_learn2learn(tasks: int, steps: int, **case: Any) -> Callable[[], dict[str, float]]:
    """Adapt a clone for each task step by step, without second derivatives, as learn2learn's examples do."""
    l2l: Any = package("learn2learn", "algorithms")
    sizes = Case(**case)
    maml = l2l.algorithms.MAML(sizes.network(), lr=sizes.inner_lr, first_order=True)
    distribution, episode = make_tasks(sizes), EpisodeSpec(sizes.way, sizes.shot, sizes.query)

    def run() -> dict[str, float]:
        right = []
        for i in range(tasks):
            batch = distribution.sample(np.array([i]), episode=episode, seed=0)
            support, query = batch.support(), batch.query()
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(F.cross_entropy(learner(support.x[0]), support.y[0]))
            with torch.no_grad():
                right.append(float((learner(query.x[0]).argmax(1) == query.y[0]).float().mean()))
        return {"accuracy": float(np.mean(right))}

    return run


def make_tasks(sizes: Case) -> PartitionTasks:
    """Classes of noise around a pattern of their own."""
    draw = np.random.default_rng(0)
    patterns = draw.integers(0, 128, (50, 1, sizes.channels, sizes.size, sizes.size))
    noise = draw.integers(0, 128, (50, 20, sizes.channels, sizes.size, sizes.size))
    pixels = (patterns + noise).reshape(1000, sizes.channels, sizes.size, sizes.size).astype(np.uint8)
    return PartitionTasks(pixels, np.arange(50).repeat(20))


def make_learner() -> AdaptedLearner:
    """Give a ProtoNet that knows five classes, in colour."""
    learner = ProtoNet(Conv4()).build(TaskSpec((3, SIDE, SIDE)), EpisodeSpec(5, 1, 1))
    support = np.random.default_rng(0).integers(0, 256, (25, 3, SIDE, SIDE), dtype=np.uint8)
    begun = learner.init(0)
    shown = torch.from_numpy(support).float() / 255
    theta = Theta(begun.params, learner.built.network.shared(begun.params, shown)[1])
    source = MetaLearnt("", {}, learner, theta, Format((3, SIDE, SIDE)), False)
    return AdaptedLearner.adapt(source, support, [f"class {i}" for i in range(5)] * 5)


def pictures(folder: Path, count: int) -> list[Path]:
    """JPEG files of a camera's shape."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize(PICTURE, Image.Resampling.BICUBIC).save(folder / f"{i:05}.jpg", quality=90)
    return sorted(folder.iterdir())


def predict(count: int) -> Callable[[], dict[str, float]]:
    """`umeta predict`: from files to a CSV, decoded by threads."""
    place = tempfile.TemporaryDirectory()
    folder = Path(place.name, "pictures")
    folder.mkdir()
    pictures(folder, count)
    learner = make_learner()

    def run(place: Any = place) -> dict[str, float]:  # which lives as long as the run
        return {"pictures": predict_images(learner, [folder], Path(place.name, "table.csv"), overwrite=True)["images"]}

    return run


def predict_by_processes(count: int) -> Callable[[], dict[str, float]]:
    """Do the same with decoding in processes, which are started beforehand."""
    place = tempfile.TemporaryDirectory()
    files = pictures(Path(place.name), count)
    learner = make_learner()
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))
    work = partial(decode.try_decode, rule=learner.source.format.rule)

    def run(place: Any = place) -> dict[str, float]:
        with open(Path(place.name, "table.csv"), "w", newline="") as file:
            table = csv.writer(file)
            reads = [partial(archives.read_contents, path) for path in files]
            items = list(pool.map(work, reads, chunksize=16))
            for start in range(0, count, 256):
                _, probabilities = learner.answers(np.stack(items[start : start + 256]))
                table.writerows(zip(files[start:], probabilities.argmax(1), *probabilities.T, strict=False))
        return {"pictures": len(items)}

    return run


def predict_plainly(count: int) -> Callable[[], dict[str, float]]:
    """Write the loop that everybody writes: open, resize, one picture a pass, a row."""
    from PIL import Image

    place = tempfile.TemporaryDirectory()
    files = pictures(Path(place.name), count)
    learner = make_learner()

    def run(place: Any = place) -> dict[str, float]:
        with open(Path(place.name, "table.csv"), "w", newline="") as file:
            table = csv.writer(file)
            for path in files:
                picture = Image.open(path).convert("RGB").resize((SIDE, SIDE))
                _, probabilities = learner.answers(np.moveaxis(np.asarray(picture), 2, 0)[None])
                table.writerow([path, probabilities[0].argmax(), *probabilities[0]])
        return {"pictures": len(files)}

    return run
