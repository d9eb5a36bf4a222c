"""Distractors: further classes in the support, without a label; who can make use of them, and who is told that not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.toys import Itself

from umeta.config.build import load
from umeta.config.images import TrainConfig
from umeta.config.registry import build_part
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.evaluation.images import check
from umeta.metalearners.semiproto import SemiProto
from umeta.objectives import accuracy
from umeta.outer.adam import Adam
from umeta.runtime.loop import RunContext
from umeta.tasks.distracted import Distracted
from umeta.tasks.instances import InstanceTasks
from umeta.tasks.partition import PartitionTasks
from umeta.tasks.store import load_saved, save_tasks
from umeta.train import metatrain
from umeta.types import EpisodeSpec, TaskSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
EPISODE = EpisodeSpec(4, 2, 3)


def test_the_support_has_further_classes_and_the_query_has_not() -> None:
    plain, numbers = InstanceTasks(PIXELS), np.arange(5)
    batch = Distracted(plain, 3).sample(numbers, episode=EPISODE, seed=0)
    larger = plain.sample(numbers, episode=EpisodeSpec(7, 2, 3), seed=0)
    support, query = batch.support(), batch.query()
    assert (support.way, query.way) == (4, 4)
    assert torch.equal(support.x, larger.support().x)
    assert torch.equal(support.y, torch.where(larger.support().y < 4, larger.support().y, -1))
    assert query.x.shape == (5, 12, 1, 8, 8)
    whole = larger.query()
    for t in range(5):
        kept = whole.y[t] < 4
        assert torch.equal(query.y[t], whole.y[t][kept])
        assert torch.equal(query.x[t], whole.x[t][kept])


def test_they_are_saved_with_the_tasks(tmp_path: Path) -> None:
    proposer = build_part("proposer", {"name": "distractors", "proposer": "instances", "classes": 2})
    images = UnlabelledImages.of(PIXELS)
    tasks = proposer.propose(images, RunContext())
    assert not proposer.sees_labels
    loaded = load_saved(save_tasks(tasks, tmp_path), tmp_path, images)
    drawn = [each.sample(np.arange(3), episode=EPISODE, seed=0).support() for each in (tasks, loaded)]
    assert torch.equal(drawn[0].x, drawn[1].x)
    assert torch.equal(drawn[0].y, drawn[1].y)
    assert "2 classes" in tasks.describe(EPISODE)[-1]


MIXTURE = "proposer={name: mixture, proposers: [instances, {name: distractors, proposer: instances}]}"


@pytest.mark.parametrize("proposer", ["proposer={name: distractors, proposer: instances}", MIXTURE])
def test_a_learner_that_needs_labels_is_refused(proposer: str) -> None:
    with pytest.raises(UserError, match="protonet needs the label of each item"):
        load("omniglot_instances_protonet", [proposer])
    load("omniglot_instances_semiproto", [proposer])
    with pytest.raises(UserError, match=r"evaluate\.distractors: protonet needs"):
        check(load("omniglot_instances_protonet", ["evaluate.distractors=[5]"]))


def test_masks_make_distractors_do_less_harm() -> None:
    """Classes are corners in 4 coordinates; those of the other 12 are noise."""

    def tasks(seed: int) -> PartitionTasks:
        draw, labels = np.random.default_rng(seed), np.arange(16).repeat(30)
        corners = 2 * np.stack(np.meshgrid(*[[-1.0, 1.0]] * 4), axis=-1).reshape(16, 4)
        x = np.concatenate([corners[labels] + 0.7 * draw.standard_normal((480, 4))], axis=1)
        return PartitionTasks(x.astype(np.float32), labels)

    episode, right = EpisodeSpec(3, 5, 5), {}
    for masked in (False, True):
        learner = SemiProto(Itself(), masked=masked).build(TaskSpec((4,)), episode)
        config = TrainConfig(Adam(lr=0.01), steps=150, way=3, shot=5, query=5, meta_batch=4)
        theta = metatrain(learner, Distracted(tasks(0), 5), config)
        test = Distracted(tasks(1), 5).sample(np.arange(200), episode=episode, seed=1)
        with torch.no_grad():
            output = learner.predict(theta, learner.adapt(theta, test.support()), test.query().x)
        right[masked] = accuracy(output, test.query()).mean().item()
    assert right[True] > right[False] + 0.01
