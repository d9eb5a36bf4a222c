"""MAML++ against a plain loop, at the beginning, in the middle and at the end of meta-training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, forward, taught

from umeta.config.images import TrainConfig
from umeta.metalearners.maml import MAML
from umeta.metalearners.mamlplusplus import MAMLPlusPlus
from umeta.models.conv4 import Conv4
from umeta.outer.adam import Adam
from umeta.testing import check_metalearner, toy_tasks
from umeta.train import BatchProblem, metatrain


@pytest.mark.parametrize(("progress", "second"), [(0.0, False), (0.1, False), (0.4, True), (1.0, True)])
def test_meta_gradient_equals_a_plain_loop(progress: float, second: bool) -> None:
    """Of weights and rates alike, each of which is another number here."""
    learner = MAMLPlusPlus(MODELS["mlp"], 0.4, 3, normalisation="group", multi_step=0.2, first_order_until=0.3)
    learner = learner.build(SPEC, EPISODE).at(progress)
    theta, support, query = begun(learner), batch(2), batch(2, seed=1)
    weights = [name for name in theta.params if not name.startswith("rate.")]
    v = {0.0: [1 / 3, 1 / 3, 1 / 3], 0.1: [1 / 6, 1 / 6, 4 / 6]}.get(progress, [0, 0, 1])
    losses = []
    for t in range(len(support)):
        fast = {name: theta.params[name] for name in weights}
        for name in ("head.weight", "head.bias"):
            fast[name] = fast[name].repeat(3, *[1] * (fast[name].dim() - 1))
        for step in range(3):
            loss = F.cross_entropy(forward("mlp", fast, support.x[t], "group")[0], support.y[t])
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=second, retain_graph=True)
            fast = {n: p - theta.params[f"rate.{n}"][step] * g for (n, p), g in zip(fast.items(), grads, strict=True)}
            losses.append(v[step] * F.cross_entropy(forward("mlp", fast, query.x[t], "group")[0], query.y[t]))
    expected = torch.autograd.grad(sum(losses) / len(support), list(theta.params.values()))
    _, found = BatchProblem(learner, theta, SPEC, [support], query, 2).loss_and_grad()
    torch.testing.assert_close(found, dict(zip(theta.params, expected, strict=True)))


def test_meta_training_tells_the_learner_how_much_of_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(MAMLPlusPlus, "at", lambda self, progress: asked.append(progress) or self)
    tasks, config = toy_tasks(), TrainConfig(Adam(), steps=4, way=2, shot=1, query=1, meta_batch=1)
    metatrain(MAMLPlusPlus(MODELS["mlp"], steps=1).build(tasks.spec, config.episode), tasks, config)
    assert asked == [0, 0.25, 0.5, 0.75]


def test_a_step_beyond_the_last_is_as_long_as_the_last() -> None:
    learner, maml = (kind(MODELS["mlp"], 0.7, 2).build(SPEC, EPISODE) for kind in (MAMLPlusPlus, MAML))
    theta, support = begun(learner), batch(2)
    for name in theta.params:
        if name.startswith("rate."):
            theta.params[name] = torch.tensor([0.1, 0.7]).double()
    twice = learner.adapt(theta, support)
    third = learner.adapt(theta, support, start=twice, steps=1)
    torch.testing.assert_close(third.params, maml.adapt(theta, support, start=twice, steps=1).params)
    assert third.steps == 3


def test_contract() -> None:
    check_metalearner(MAMLPlusPlus(Conv4(4, down="stride"), steps=2))


def test_it_learns_to_learn() -> None:
    trained, after, before = taught(MAMLPlusPlus(Perceptron(), inner_lr=0.5, steps=2), 100)
    assert after > 0.9
    assert before < 0.5
    assert trained.params["rate.head.weight"].std() > 0.001
