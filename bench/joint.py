"""A pre-trained network, a learner of a few minutes, and the sum of both, its weight chosen without labels.

    python -m bench.joint results/joint.json --network NAME --weights FILE [--steps N] DATA.yaml ...

A file describes a data source with classes to learn from and others to be tested on, as `data` of a config. The learner
is meta-trained on instance tasks of all but some pictures; on those the weight is chosen. True labels only judge.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from bench.backbones import choose_pictures, record_each
from umeta.augment.suited import suited
from umeta.benchmarks.labelled import LabelledImages
from umeta.config.images import TrainConfig
from umeta.data.images import UnlabelledImages, to_float
from umeta.evaluation.images import evaluate
from umeta.metalearners.protonet import ProtoNet
from umeta.models.backbone import Backbone
from umeta.models.conv4 import Conv4
from umeta.models.vectors import Vectors
from umeta.outer.adam import Adam
from umeta.quickstart.route import HELD_OUT, look_twice, mix, weigh
from umeta.runtime.loop import RunContext
from umeta.tasks.instances import Augmented, InstanceTasks
from umeta.tasks.partition import PartitionTasks
from umeta.train import metatrain
from umeta.types import EpisodeSpec, TaskSpec

TASKS, MOST = 600, 100  # test tasks, and pictures of a test class
SIGHTED = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)  # weights that are measured beside the one chosen


def judge(vectors: np.ndarray, labels: np.ndarray, episode: EpisodeSpec) -> list[float]:
    """Return the mean and the 95 % interval of the accuracy of prototypes by the cosine, in percent."""
    tasks = PartitionTasks(vectors, labels[None])
    learner = ProtoNet(Vectors(), distance="cosine").build(TaskSpec(vectors.shape[1:]), episode)
    found = 100 * evaluate(learner, learner.init(0), tasks, episode, count=TASKS)
    return [round(float(found.mean()), 2), round(float(1.96 * found.std() / TASKS**0.5), 2)]


def measure(data: Any, backbone: Backbone, steps: int, way: int) -> dict[str, Any]:
    """Meta-train, choose the weight, and judge: accuracies by episode and row."""
    pixels = UnlabelledImages.of(data.read("train").pixels).pixels
    back = np.zeros(len(pixels), dtype=bool)  # kept back
    back[np.random.default_rng(0).permutation(len(pixels))[: min(HELD_OUT, len(pixels) // 5)]] = True
    augment = suited(pixels.shape[1:])
    small = pixels.shape[-1] <= 32
    model = Conv4([64 if small else 32, 64, 128, 256], down="pool_first", halvings=3 if small else 4)
    train = TrainConfig(Adam(lr=2e-3, schedule="cosine"), steps=steps, meta_batch=1, way=64, shot=1, query=2)
    tasks = Augmented(InstanceTasks(pixels[~back]), augment)
    learner = ProtoNet(model, distance="cosine").build(tasks.spec, train.episode)
    theta = metatrain(learner, tasks, train, RunContext(0, torch.device("cpu")))
    networks = [backbone.build(pixels.shape[1:]).eval(), lambda x: learner.features(theta, x)]
    choice = weigh(*look_twice(to_float(torch.from_numpy(pixels[back])), augment, networks, seed=0))

    test = LabelledImages.load(data, "test")
    kept = choose_pictures(test, MOST)
    labels, parts = test.labels[kept], np.array_split(kept, 1 + len(kept) // 256)
    with torch.no_grad():
        frozen, learnt = (torch.cat([net(test.images.floats(part)) for part in parts]).numpy() for net in networks)
    rows = {f"weight {w:g}": mix(frozen, learnt, w) for w in (*SIGHTED, choice.weight) if w < np.inf}
    rows["learnt alone"] = learnt
    episodes = [EpisodeSpec(way, shot, 5) for shot in (1, 5)]
    judged = {str(e): {name: judge(z, labels, e) for name, z in rows.items()} for e in episodes}
    return {**asdict(choice), "steps": steps, "tasks": TASKS, "accuracies": judged}


def main() -> None:
    record_each(
        __doc__, lambda data, backbone, asked: measure(data, backbone, asked.steps, asked.way), steps=200, way=5
    )


if __name__ == "__main__":
    main()
