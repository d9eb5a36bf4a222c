"""On a graphics card, with the CPU's float64 as the truth: `make gpu`.

`UMETA_TEST_DEVICE=cpu` shows that the tests themselves run. Parts are built without pydantic, which a bare image lacks.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bench.cards import gradients, record_graph
from bench.maml import Case, umeta_problem
from umeta.augment.drawing import Drawing
from umeta.config import registry
from umeta.config.images import TrainConfig
from umeta.errors import UserError
from umeta.metalearners.maml import MAML
from umeta.metalearners.protonet import ProtoNet
from umeta.models.conv4 import Conv4
from umeta.models.resnet12 import ResNet12
from umeta.outer.adam import Adam
from umeta.runtime.loop import RunContext
from umeta.tasks.clustering import kmeans
from umeta.tasks.instances import Augmented
from umeta.testing import toy_images, toy_tasks
from umeta.train import BatchProblem, metatrain
from umeta.types import EpisodeSpec, MetaLearner, Theta

DEVICE = os.environ.get("UMETA_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE != "cpu" and not torch.cuda.is_available(), reason="there is no graphics card"),
]
EPISODE = EpisodeSpec(3, 2, 2)
CONFIG = TrainConfig(Adam(), steps=4, way=3, shot=2, query=2, meta_batch=2)
TINY = Conv4(filters=4)
LEARNERS = [name for name in registry.built_in("metalearner") if name != "rl2"]
EMBEDDINGS: dict[str, dict[str, Any]] = {
    "pixels": {},
    "random_network": {"model": TINY},
    "acai": {"depth": 2, "dimensions": 16, "batch": 8, "steps": 3},
    "bigan": {"depth": 2, "dimensions": 8, "batch": 8, "steps": 3},
    "simclr": {"model": TINY, "batch": 8, "steps": 3},
    "deepcluster": {"model": TINY, "dimensions": 4, "k": 6, "batch": 8, "every": 2, "steps": 3},
}


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    kinds = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "ieee"
    yield
    for kind, precision in zip(kinds, before, strict=True):
        kind.fp32_precision = precision


def problem(options: MetaLearner, device: str, dtype: torch.dtype) -> BatchProblem:
    tasks = toy_tasks()
    learner = options.build(tasks.spec, EPISODE)
    theta = Theta({n: v.to(device, dtype).requires_grad_() for n, v in learner.init(0).params.items()})
    batch = tasks.to(device).sample(np.arange(4), episode=EPISODE, seed=0)
    support, query = (replace(one, x=one.x.to(dtype)) for one in (batch.support(), batch.query()))
    return BatchProblem(learner, theta, tasks.spec, [support], query, 4)


def apart(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    """The largest distance, as a share of the largest number there is."""
    largest = max(float(value.abs().max()) for value in truth.values())
    return max(float((found[n].cpu().double() - truth[n].double()).abs().max()) for n in truth) / largest


@pytest.mark.parametrize("model", [TINY, ResNet12([4, 4, 4, 4])], ids=["conv4", "resnet12"])
@pytest.mark.parametrize("name", LEARNERS)
def test_meta_gradients_are_the_cpus(name: str, model: Any) -> None:
    options = registry.find("metalearner", name)(model)
    metrics, truth = problem(options, "cpu", torch.float64).loss_and_grad()
    found, gradient = problem(options, DEVICE, torch.float64).loss_and_grad()
    assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-9)
    assert apart(gradient, truth) < 1e-8
    rough = problem(options, DEVICE, torch.float32).loss_and_grad()[1]  # which an inner loop drives apart
    assert all(bool(value.isfinite().all()) for value in rough.values())


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings_are_the_cpus(name: str) -> None:
    """Its training in float32 nearly so: rounding grows from step to step."""
    images = toy_images()
    found = []
    for device in ("cpu", DEVICE):
        embedder = registry.find("embedding", name)(**EMBEDDINGS[name])
        embedder.fit(images, RunContext(0, device))
        found.append(embedder.embed(images))
    there = copy.deepcopy(embedder)
    there.load_state_dict(embedder.state_dict())
    there._device = "cpu"
    torch.testing.assert_close(found[1], there.embed(images), rtol=1e-3, atol=1e-3)
    assert torch.cosine_similarity(*(z.flatten() for z in found), dim=0) > 0.9


def test_a_run_that_was_interrupted_goes_on(tmp_path: Any) -> None:
    def train(steps: int, **options: Any) -> Theta:
        tasks = Augmented(toy_tasks(), Drawing()).to(DEVICE)
        learner = MAML(TINY, steps=1).build(tasks.spec, EPISODE)
        return metatrain(learner, tasks, replace(CONFIG, steps=steps), RunContext(0, DEVICE, **options))

    train(2, folder=tmp_path)
    resumed = train(4, folder=tmp_path, resume=True)
    assert apart(resumed.params, {n: v.cpu() for n, v in train(4).params.items()}) < 1e-4


def test_what_is_not_a_number_stops_the_run_or_is_left_out() -> None:
    tasks = toy_tasks().to(DEVICE)
    learner = ProtoNet(TINY).build(tasks.spec, EPISODE)
    begun = learner.init(0)
    broken = Theta({**begun.params, "0.weight": begun.params["0.weight"] * float("nan")})
    with pytest.raises(UserError, match="is nan at step 0"):
        metatrain(learner, tasks, CONFIG, RunContext(0, DEVICE), start=broken)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_clusters_are_the_cpus(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the vectors fit on the card, and where they are sent block by block."""
    if not share and DEVICE != "cpu":
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (0, 0))
    centres = np.random.default_rng(0).normal(size=(8, 16)) * 20
    z = (centres[np.arange(5000) % 8] + np.random.default_rng(1).normal(size=(5000, 16))).astype(np.float32)
    (labels, distances), (truth, expected) = (kmeans(z, 8, 10, 0, device) for device in (DEVICE, "cpu"))
    assert np.array_equal(labels, truth)
    np.testing.assert_allclose(distances, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs are a card's")
@pytest.mark.parametrize("first_order", [False, True])
def test_a_recorded_meta_step_is_the_meta_step(first_order: bool) -> None:
    case = Case(tasks=2, filters=8, steps=2, first_order=first_order, device=DEVICE)
    recorded = umeta_problem(case)
    replay = record_graph(recorded)
    truth = gradients(recorded)  # at the weights that the steps so far have led to
    replay()
    torch.cuda.synchronize()
    found = {name: param.grad for name, param in recorded.params.items()}
    assert apart(found, {n: g.cpu() for n, g in truth.items()}) < 1e-4
