"""ANIL against MAML whose inner gradients of the body are zeroed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, taught

from umeta.metalearners._gradient import InnerLoop
from umeta.metalearners.anil import ANIL
from umeta.metalearners.maml import MAML
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.train import BatchProblem
from umeta.types import Adapted, Batch, PolicyLearner, Theta


@dataclass
class Zeroed(MAML):
    def adapt(self, theta: Theta, support: Batch, **_: object) -> Adapted:
        loop = InnerLoop(self, theta, support, None)
        phi = loop.start
        for _ in range(self.steps):
            gradient = {n: g if n.startswith("head.") else 0 * g for n, g in loop.gradient(phi).items()}
            phi = {name: value - self.inner_lr * gradient[name] for name, value in phi.items()}
        return loop.finish(phi)


@pytest.mark.parametrize("normalisation", ["batch", "support", "running", "group"])
@pytest.mark.parametrize("first_order", [False, True])
def test_it_is_maml_with_the_bodys_inner_gradients_zeroed(first_order: bool, normalisation: str) -> None:
    found = []
    for kind in (ANIL, Zeroed):
        options = {"first_order": first_order, "head": "fixed", "normalisation": normalisation}
        learner = kind(MODELS["mlp"], 0.4, 3, **options).build(SPEC, EPISODE)
        problem = BatchProblem(learner, begun(learner), SPEC, [batch(2)], batch(2, seed=1), 2)
        found.append((*problem.loss_and_grad(), problem.stats))
    (metrics, grads, stats), (expected_metrics, expected, expected_stats) = found
    assert metrics == pytest.approx(expected_metrics)
    torch.testing.assert_close(grads, expected)
    torch.testing.assert_close(stats, expected_stats)
    assert grads["1.weight"].norm() > 1e-3


def test_the_head_moves_and_the_body_does_not() -> None:
    learner = ANIL(MODELS["pool"], 0.4, 3, head="prototypes", normalisation="group").build(SPEC, EPISODE)
    theta, support = begun(learner), batch(2)
    with torch.no_grad():
        none, three = (learner.adapt(theta, support, steps=steps).params for steps in (0, 3))
    for name, value in theta.params.items():
        assert torch.equal(three[name], value.expand_as(three[name])), name
    assert not torch.allclose(none["head.weight"], three["head.weight"])


def test_contract() -> None:
    check_metalearner(ANIL(Conv4(4, down="stride"), steps=2))


def test_it_can_act() -> None:
    assert isinstance(ANIL(MODELS["mlp"]), PolicyLearner)


def test_it_learns_to_learn_in_one_step() -> None:
    _, after, before = taught(ANIL(Perceptron(), inner_lr=1.0, steps=1), 100)
    assert after > 0.9
    assert before < 0.4
