"""Everything on a card that is not there (tests/helpers/card.py): no two devices meet, and no copy that is not meant.

The lists are the registry's: a new part is tested from the day it is there. Counts are of lines of the library, which
a test's message names.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.card import DEVICE, Card, card
from tests.helpers.toys import Corners
from umeta.config import registry
from umeta.config.images import TrainConfig
from umeta.config.regression import TrainConfig as RegressionConfig
from umeta.data.inputs import Format
from umeta.deploy.adapted import AdaptedLearner, MetaLearnt
from umeta.envs.nav2d import Nav2D
from umeta.evaluation.images import evaluate
from umeta.metalearners.protonet import ProtoNet
from umeta.models.mlp import MLP
from umeta.outer.adam import Adam
from umeta.runtime.loop import RunContext
from umeta.tasks.clustering import kmeans
from umeta.tasks.reward import RewardTasks, policy_spec
from umeta.testing import RawPixels, toy_images, toy_tasks
from umeta.train import BatchProblem, metatrain, roll_out
from umeta.types import Batch, EpisodeSpec, MetaLearner, PolicyLearner, Theta

EPISODE = EpisodeSpec(3, 2, 2)
MODEL = {"name": "mlp", "hidden": [4]}
LEARNERS = registry.built_in("metalearner")
ACT_ALONE = [name for name in LEARNERS if getattr(registry.find("metalearner", name), "policies_only", False)]
WAITS = {"caml": 1}  # for how many items its largest class has
OPTIONS: dict[str, dict[str, Any]] = {  # as small as they come
    "acai": {"depth": 2, "dimensions": 16, "batch": 8},
    "bigan": {"depth": 2, "dimensions": 8, "batch": 8},
    "deepcluster": {"dimensions": 4, "k": 6, "batch": 8, "every": 3, "model": MODEL},
    "simclr": {"batch": 8, "model": MODEL},
    "random_network": {"model": MODEL},
    "conv4": {"filters": 4},
    "resnet12": {"filters": [4, 4, 4, 4]},
    "mlp": {"hidden": [4]},
    "kmeans": {"k": 6, "partitions": 2, "smallest": 4},
    "hyperplanes": {"zones": 4, "partitions": 2, "smallest": 4, "margin": 0.01},
    "random_labels": {"k": 6, "partitions": 2},
    "progressive": {"neighbours": [8], "similarity": 0.2, "k": [6], "core": 1.0, "rotations": True},
    "whitened": {"model": MODEL, "features": 4},
    **{name: {"proposer": "instances"} for name in ("ambiguous", "distractors", "sequence", "shifted")},
    "completion": {"data": "digits"},
    "demonstrations": {"proposer": {"name": "diayn", "skills": 2, "iterations": 1, "episodes": 1, "hidden": 4}},
    "mixture": {"proposers": ["instances", {"name": "random_labels", "k": 6, "partitions": 2}]},
    "trpo": {"iterations": 2, "backtracks": 2},
    "diayn": {"skills": 2, "iterations": 1, "episodes": 1, "hidden": 4},
    "diayn_metra": {"skills": 2, "movers": 2, "iterations": 1, "episodes": 1, "hidden": 4},
    "metra": {"skills": 2, "iterations": 1, "episodes": 2, "map_steps": 1, "hidden": 4},
    "random_discriminator": {"skills": 2, "hidden": 4},
}
NEEDS_A_FILE_OR_A_RUN = {"precomputed", "learner", "pretrained", "backbone", "joint", "vectors", "curriculum"}


def build(kind: str, name: str, **options: Any) -> Any:
    return registry.build_part(kind, {"name": name, **OPTIONS.get(name, {}), **options})


def total(counts: Counter[str]) -> int:
    return sum(counts.values())


def on_card(*values: torch.Tensor) -> bool:
    return {value.device for value in values} == {DEVICE}


def train(learner: MetaLearner, tasks: Any, chunk: int) -> Theta:
    kind = RegressionConfig if tasks.spec.objective == "regression" else TrainConfig
    own = {"way": 3} if kind is TrainConfig else {}
    config = kind(Adam(), steps=1, shot=2, query=2, meta_batch=2, task_chunk=chunk, **own)
    return metatrain(learner, tasks, config, RunContext(0, DEVICE))


def check_meta_step(there: Card, learner: MetaLearner, tasks: Any, chunk: int = 2, waits: int = 0) -> Theta:
    """After one to begin with, each goes to the card with what was drawn, and comes back with metrics and a norm.

    waits: what the learner itself is waited for.
    """
    theta = train(learner, tasks, chunk)
    assert on_card(*theta.params.values())
    weights = {line: n for line, n in there.to.items() if line.startswith("umeta/train.py")}  # once a run
    sent = there.to - Counter(weights)
    assert {line.partition(":")[0] for line in sent} <= {"umeta/runtime/devices.py"}, there.to
    assert total(there.back) == 2 + waits, there.back
    return theta


@pytest.mark.parametrize("name", [name for name in LEARNERS if name not in ACT_ALONE])
def test_learners_on_images(name: str) -> None:
    steps = {"steps": 2} if "steps" in {o.name for o in registry.describe("metalearner", name)[1]} else {}
    options = build("metalearner", name, model=MODEL, **steps)
    with card() as there:
        tasks = toy_tasks().to(DEVICE)
        learner = options.build(tasks.spec, EPISODE)
        waits = WAITS.get(name, 0)
        theta = check_meta_step(there, learner, tasks, waits=waits)
        there.to.clear(), there.back.clear()
        source = MetaLearnt("", {}, learner, theta, Format((1, 16, 16)), False)
        pixels = toy_images().pixels
        adapted = AdaptedLearner.adapt(source, pixels[:6], ["a", "b", "c"] * 2)
        assert on_card(*adapted.adapted.params.values())
        assert adapted.answers(pixels)[1].shape == (len(pixels), 3)
        assert total(there.to) == 3, there.to  # examples, their labels, queries
        assert total(there.back) == 1 + waits, there.back


def test_all_chunks_of_tasks_are_waited_for_at_once() -> None:
    with card() as there:
        tasks = toy_tasks().to(DEVICE)
        learner = ProtoNet(MLP([4])).build(tasks.spec, EPISODE)
        theta = check_meta_step(there, learner, tasks, chunk=1)
        there.back.clear()
        evaluate(learner, theta, tasks, EPISODE, count=20)
        assert total(there.back) == 1, there.back


@pytest.mark.parametrize("name", sorted(set(registry.built_in("model")) - NEEDS_A_FILE_OR_A_RUN))
@pytest.mark.parametrize("metalearner", ["maml", "protonet"])
def test_networks(name: str, metalearner: str) -> None:
    steps = {"steps": 1, "first_order": True} if metalearner == "maml" else {}
    with card() as there:
        tasks = toy_tasks().to(DEVICE)
        learner = build("metalearner", metalearner, model={"name": name, **OPTIONS.get(name, {})}, **steps)
        check_meta_step(there, learner.build(tasks.spec, EPISODE), tasks)


@pytest.mark.parametrize("name", sorted(set(registry.built_in("embedding")) - NEEDS_A_FILE_OR_A_RUN))
def test_embeddings(name: str) -> None:
    images = toy_images()
    taught = "steps" in {option.name for option in registry.describe("embedding", name)[1]}
    counts = []
    with card() as there:
        for steps in (1, 2) if taught else (0,):
            embedder = build("embedding", name, **({"steps": steps} if taught else {}))
            embedder.fit(images, RunContext(0, DEVICE))
            counts.append((there.to.copy(), there.back.copy()))
            there.to.clear(), there.back.clear()
            vectors = embedder.embed(images)
            assert vectors.device.type == "cpu"
            assert len(vectors) == len(images)
            assert total(there.back) <= 1 + len(embedder.state_dict()), there.back
            assert all(value.device.type == "cpu" for value in embedder.state_dict().values())
            there.to.clear(), there.back.clear()
    if taught:
        (to, back), (to_after, back_after) = counts
        assert total(to_after - to) <= 3, to_after - to  # which images, and what is drawn for them
        assert total(back_after - back) == 1, back_after - back  # the losses


@pytest.mark.parametrize("name", registry.built_in("augment"))
def test_augmentations(name: str) -> None:
    augment = build("augment", name)
    for channels in (1, 3):
        with card() as there:
            x, u = (torch.zeros(4, *size, device=DEVICE) for size in ((channels, 16, 16), (augment.randoms,)))
            assert on_card(augment(x, u))
            assert not there.back


PROPOSERS = registry.built_in("proposer")
REWARDS = [name for name in PROPOSERS if registry.find("proposer", name).domain == "env"]


@pytest.mark.parametrize("name", [name for name in PROPOSERS if name not in {*REWARDS, *NEEDS_A_FILE_OR_A_RUN}])
def test_tasks_of_images_and_functions(name: str) -> None:
    proposer = build("proposer", name)
    images = toy_images()
    tasks = proposer.propose(images if proposer.domain == "image" else None, RunContext(0), RawPixels())
    with card() as there:
        tasks = tasks.to(DEVICE)
        batch = tasks.sample(np.arange(4), episode=EpisodeSpec(2, 2, 2), seed=0)
        for items in (batch.support(), batch.query()):
            assert on_card(*items.tensors().values())
        assert not there.back


REGRESS = [name for name in LEARNERS if name not in ACT_ALONE and registry.find("metalearner", name).regresses]


@pytest.mark.parametrize("name", REGRESS)
def test_learners_of_functions(name: str) -> None:
    with card() as there:
        tasks = build("proposer", "sinusoid").propose(None, RunContext(0)).to(DEVICE)
        learner = build("metalearner", name, model=MODEL).build(tasks.spec, EpisodeSpec(1, 2, 2))
        check_meta_step(there, learner, tasks)


@pytest.mark.parametrize("name", REWARDS)
def test_rewards(name: str) -> None:
    env = Nav2D(horizon=2)
    tasks = build("proposer", name).propose(env, RunContext(0))
    outer = build("outer", "adam" if tasks.spec.objective != "policy" else "promp")
    check_policy(build("metalearner", "maml", model=MODEL, steps=1), tasks, outer)


@pytest.mark.parametrize("outer", registry.built_in("outer"))
@pytest.mark.parametrize("name", ["maml", *ACT_ALONE])
def test_outer_steps_and_learners_that_act(name: str, outer: str) -> None:
    steps = {"steps": 1} if name == "maml" else {}
    check_policy(
        build("metalearner", name, model=MODEL, **steps),
        RewardTasks(Nav2D(horizon=2), Corners()),
        build("outer", outer),
    )


def check_policy(options: Any, tasks: RewardTasks, outer: Any) -> None:
    episode = EpisodeSpec(1, 2, 2)
    with card():
        tasks = tasks.to(DEVICE)
        learner: PolicyLearner = options.build(policy_spec(tasks.env), episode)
        theta = Theta({n: v.to(DEVICE).requires_grad_() for n, v in learner.init(0).params.items()})
        outer.start({n: v for n, v in theta.params.items() if n not in learner.fixed})
        batch = tasks.sample(np.arange(2), episode=episode, seed=0)
        supports, query = roll_out(learner, theta, batch, 2, 1)
        assert on_card(*query.tensors().values())
        outer.step(BatchProblem(learner, theta, tasks.spec, supports, query, 2), 0.0)
        assert on_card(*theta.params.values())


def test_clusters() -> None:
    z = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    with card() as there:
        labels, distances = kmeans(z, 5, 3, 0, DEVICE)
    assert labels.shape == distances.shape == (300,)
    assert total(there.to) == 3, there.to  # vectors, their centre, the first means
    assert total(there.back) == 5, there.back  # how many are in each cluster, three times; labels and distances


def test_pictures_that_do_not_fit_are_sent_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    images, tasks = toy_images(), toy_tasks()
    with card():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1000, 1000))
        moved = tasks.to(DEVICE)
        assert moved.items.device.type == "cpu"
        assert on_card(*moved.sample(np.arange(4), episode=EPISODE, seed=0).support().tensors().values())
        for index in (slice(3, 5), np.array([3, 4]), torch.tensor([3, 4]).to(DEVICE)):
            assert on_card(found := images.floats(index, DEVICE))
            assert found.shape == (2, 1, 16, 16)


# --- that it would notice ---


@dataclass
class Planted(ProtoNet):
    """A learner with a fault."""

    fault: str = ""

    def adapt(self, theta: Theta, support: Batch, **options: Any) -> Any:
        if self.fault == "mask on the CPU":
            support = replace(support, mask=torch.ones(support.y.shape, dtype=torch.bool))
        if self.fault == "asks for a number":
            support.x.mean().item()
        if self.fault == "goes by way of the CPU":
            support = replace(support, x=support.x.cpu().to(support.x.device))
        if self.fault == "counts":
            support.x[support.mask]
        return super().adapt(theta, support, **options)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("mask on the CPU", "on the card and on the CPU|two devices"),
        ("asks for a number", "tests/gpu"),
        ("goes by way of the CPU", "tests/gpu"),
        ("counts", "nonzero"),
    ],
)
def test_faults_are_found(fault: str, found: str) -> None:
    with card() as there:
        tasks = toy_tasks().to(DEVICE)
        learner = Planted(MLP([4]), fault=fault).build(tasks.spec, EPISODE)
        with pytest.raises((AssertionError, RuntimeError), match=found):
            check_meta_step(there, learner, tasks)
