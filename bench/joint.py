"""A pre-trained network, a learner of a few minutes, and the sum of both, its weight chosen without labels.

    python -m bench.joint results/joint.json --network NAME --weights FILE [--steps N] [--way N] DATA.yaml ...

A file describes a data source with classes to learn from and others to be tested on, as `data` of a config. The learner
is what `umeta run --images` begins with, meta-trained on instance tasks of all but some pictures; on those the weight
is chosen. True labels only judge. What was learnt and seen is kept in bench/many/joint: the same command goes on there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.backbones import choose_pictures, record_each
from umeta.augment.suited import suited
from umeta.benchmarks.labelled import LabelledImages
from umeta.config.images import TrainConfig
from umeta.data.images import UnlabelledImages, to_float
from umeta.evaluation.images import evaluate
from umeta.metalearners.protonet import ProtoNet
from umeta.models.backbone import Backbone
from umeta.models.conv4 import Conv4
from umeta.models.described import Described
from umeta.models.vectors import Vectors
from umeta.models.weigh import Choice, look_twice, mix, unit, weigh
from umeta.models.whitened import find_whitening
from umeta.outer.adam import Adam
from umeta.quickstart.route import HELD_OUT, SOME
from umeta.runtime.loop import RunContext
from umeta.tasks.instances import Augmented, InstanceTasks
from umeta.tasks.partition import PartitionTasks
from umeta.train import metatrain
from umeta.types import EpisodeSpec, TaskSpec, Theta

KEPT = Path(__file__).parent / "many" / "joint"
TASKS = 600  # of the test
PART = 200  # pictures seen at a time
MOST, CLASSES = 40, 50  # pictures of a test class, and classes
SIGHTED = (0.25, 0.5, 1.0)  # weights that are measured beside the one chosen


def judge(vectors: np.ndarray, labels: np.ndarray, episode: EpisodeSpec) -> list[float]:
    """Return the mean and the 95 % interval of the accuracy of prototypes by the cosine, in percent."""
    tasks = PartitionTasks(vectors, labels[None])
    learner = ProtoNet(Vectors(), distance="cosine").build(TaskSpec(vectors.shape[1:]), episode)
    found = 100 * evaluate(learner, learner.init(0), tasks, episode, count=TASKS)
    return [round(float(found.mean()), 2), round(float(1.96 * found.std() / TASKS**0.5), 2)]


def see(network: Callable[[Tensor], Tensor], images: np.ndarray, place: Path, what: str) -> np.ndarray:
    """Return the features of images, from what was kept as far as that goes."""
    parts = []
    for i, part in enumerate(torch.from_numpy(images).split(PART)):
        if not (path := place / f"{what}-{i}.npy").exists():
            with torch.no_grad():
                np.save(path, network(to_float(part)).float().numpy())
        parts.append(np.load(path))
    return np.concatenate(parts)


def learn(pixels: np.ndarray, steps: int, place: Path) -> Callable[[Tensor], Tensor]:
    """Meta-train, and return the learner's features."""
    grey, small = pixels.shape[1] == 1, pixels.shape[-1] <= 32
    network = Conv4([64 if small else 32, 64, 128, 256], down="pool_first", halvings=3 if small else 4)
    train = TrainConfig(Adam(lr=2e-3, schedule="cosine"), steps=steps, meta_batch=1, way=64, shot=1, query=2)
    tasks = Augmented(InstanceTasks(pixels), suited(pixels.shape[1:]))
    model = network if grey else Described(network)
    learner = ProtoNet(model, distance="cosine", precision="auto").build(tasks.spec, train.episode)
    context = RunContext(0, torch.device("cpu"), folder=place, resume=True, checkpoint_seconds=20)
    theta = metatrain(learner, tasks, train, context)
    if grey:
        return lambda x: learner.features(theta, x)
    images = UnlabelledImages.of(pixels)
    whole, fitted = Described(network).complete(images, lambda x: learner.features(theta, x), 0)
    described = ProtoNet(whole, distance="cosine", precision="auto").build(tasks.spec, train.episode)
    complete = Theta({**theta.params, **fitted}, theta.running)
    return lambda x: described.features(complete, x)


def measure(data: Any, backbone: Backbone, name: str, steps: int, way: int, split: str) -> dict[str, Any]:
    """Meta-train, choose the weight, and judge: the choice, and accuracies by episode and row."""
    place = KEPT / f"{name}-{steps}"
    place.mkdir(parents=True, exist_ok=True)
    pixels = UnlabelledImages.of(data.read("train").pixels).pixels
    back = np.zeros(len(pixels), dtype=bool)  # kept back
    back[np.random.default_rng(0).permutation(len(pixels))[: min(HELD_OUT, len(pixels) // 5)]] = True
    networks = {"frozen": backbone.build(pixels.shape[1:]).eval(), "learnt": learn(pixels[~back], steps, place)}
    views = look_twice(to_float(torch.from_numpy(pixels[back])), suited(pixels.shape[1:]), [torch.nn.Identity()], 0)[0]
    known = pixels[~back][np.linspace(0, (~back).sum() - 1, min(SOME, (~back).sum())).astype(int)]
    test = LabelledImages.load(data, split)
    kept = choose_pictures(test, MOST, CLASSES)
    shown = {"known": known, "first": views[0], "second": views[1], split: test.images.pixels[kept]}
    frozen, learnt = (
        {what: see(network, images, place, f"{who}-{what}") for what, images in shown.items()}
        for who, network in networks.items()
    )
    mean, directions = (found.numpy() for found in find_whitening(frozen["known"]))
    whitened = {what: (z - mean) @ directions for what, z in frozen.items()}
    choice = weigh(*([found["first"], found["second"]] for found in (whitened, learnt)))
    rows = {"as it is": frozen[split], "pre-trained": whitened[split], "learnt": learnt[split]}
    weights = {"both": choice.weight, **{f"weight {weight:g}": weight for weight in SIGHTED}}
    for row, weight in weights.items():
        rows[row] = learnt[split] if np.isinf(weight) else mix(whitened[split], learnt[split], weight)
    labels = np.unique(test.labels[kept], return_inverse=True)[1]
    judged = {
        str(episode): {row: judge(unit(z), labels, episode) for row, z in rows.items()}
        for episode in (EpisodeSpec(way, shot, 5) for shot in (1, 5))
    }
    return {**describe(choice), "split": split, "steps": steps, "tasks": TASKS, "accuracies": judged}


def describe(choice: Choice) -> dict[str, Any]:
    """Return a choice as JSON has it."""
    return {**asdict(choice), "weight": None if np.isinf(choice.weight) else choice.weight}


def main() -> None:
    record_each(
        __doc__,
        lambda data, backbone, asked, name: measure(data, backbone, name, asked.steps, asked.way, asked.split),
        steps=200,
        way=5,
        split="test",
    )


if __name__ == "__main__":
    main()
