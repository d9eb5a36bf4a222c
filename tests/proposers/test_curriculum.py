"""A curriculum: the tasks that a learner is right in, but not too often, and those alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from proposers.curriculum import Curriculum
from proposers.instances import Instances
from proposers.random_labels import RandomLabels
from umeta.errors import UserError
from umeta.metalearners.protonet import ProtoNet
from umeta.models.conv4 import Conv4
from umeta.objectives import accuracy
from umeta.runtime.loop import RunContext
from umeta.tasks.chosen import Chosen
from umeta.tasks.store import load_saved, save_tasks
from umeta.testing import check_proposer, toy_images
from umeta.types import EpisodeSpec

IMAGES, EPISODE = toy_images(), EpisodeSpec(3, 2, 4)
BASE = RandomLabels(k=6, partitions=2)
OPTIONS = {"way": 3, "shot": 2, "query": 4, "candidates": 50}


def trained() -> SimpleNamespace:
    learner = ProtoNet(Conv4(filters=4)).build(Instances().propose(IMAGES, RunContext()).spec, EPISODE)
    return SimpleNamespace(trained=SimpleNamespace(learner=learner, theta=learner.init(0)))


def test_tasks_between_the_bounds_are_chosen_and_come_again() -> None:
    tasks = Curriculum(BASE, least=0.3, most=0.5, **OPTIONS).propose(IMAGES, RunContext(), embedder := trained())
    whole = BASE.propose(IMAGES, RunContext().part(0)).sample(np.arange(50), episode=EPISODE, seed=0)
    learner, theta, query = embedder.trained.learner, embedder.trained.theta, whole.query()
    with torch.no_grad():
        right = accuracy(learner.predict(theta, learner.adapt(theta, whole.support()), query.x), query)
    expected = ((right >= 0.3) & (right <= 0.5)).nonzero()[:, 0]
    assert 0 < len(expected) < 50
    assert tasks.numbers.tolist() == expected.tolist()
    found = tasks.sample(np.arange(300), episode=EPISODE, seed=7).query().x
    known = {x.numpy().tobytes() for x in query.x[expected]}
    assert {x.numpy().tobytes() for x in found} == known


def test_contract_and_file(tmp_path: Path) -> None:
    proposer = Curriculum(BASE, least=0, most=1, **OPTIONS)
    check_proposer(proposer, IMAGES, trained(), EPISODE)
    tasks = proposer.propose(IMAGES, RunContext(), trained())
    loaded = load_saved(save_tasks(tasks, tmp_path), tmp_path, IMAGES)
    drawn = [each.sample(np.arange(5), episode=EPISODE, seed=0).query().x for each in (tasks, loaded)]
    assert torch.equal(*drawn)


def test_what_cannot_be_chosen_is_said() -> None:
    with pytest.raises(UserError, match="no learner to try tasks"):
        Curriculum(BASE, **OPTIONS).propose(IMAGES, RunContext())
    with pytest.raises(UserError, match="0 of 50 tasks"):
        Curriculum(BASE, least=1, most=0, **OPTIONS).propose(IMAGES, RunContext(), trained())
    tasks = Chosen(BASE.propose(IMAGES, RunContext()), np.arange(3), 0, 3)
    with pytest.raises(UserError, match=r"set proposer\.way"):
        tasks.sample(np.arange(2), episode=EpisodeSpec(2, 1, 1), seed=0)
