"""A learnt inner loss against a plain loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, forward, taught

from umeta.errors import UserError
from umeta.metalearners.learnt_loss import LearntLoss
from umeta.models.conv4 import Conv4
from umeta.models.mlp import MLP
from umeta.testing import check_metalearner
from umeta.train import BatchProblem
from umeta.types import Batch, EpisodeSpec, TaskSpec


def test_meta_gradient_equals_a_plain_loop() -> None:
    """Of the perceptron's weights as well as of the initialisation."""
    learner = LearntLoss(MODELS["mlp"], 0.4, 2, normalisation="group").build(SPEC, EPISODE)
    theta, support, query = begun(learner), batch(2), batch(2, seed=1)
    g = {name: p for name, p in theta.params.items() if name.startswith("learntloss.")}
    losses = []
    for t in range(len(support)):
        fast = {name: p for name, p in theta.params.items() if name not in g}
        for name in ("head.weight", "head.bias"):
            fast[name] = fast[name].repeat(3, *[1] * (fast[name].dim() - 1))
        for _ in range(2):
            said = forward("mlp", fast, support.x[t], "group")[0].log_softmax(-1)
            loss = 0
            for i in range(6):
                for k in range(3):
                    seen = torch.stack([said[i, k], (support.y[t, i] == k).double()])
                    hidden = (g["learntloss.0.weight"] @ seen + g["learntloss.0.bias"]).tanh()
                    loss = loss + (g["learntloss.2.weight"] @ hidden + g["learntloss.2.bias"]).square().sum() / 6
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {n: p - 0.4 * grad for (n, p), grad in zip(fast.items(), grads, strict=True)}
        losses.append(F.cross_entropy(forward("mlp", fast, query.x[t], "group")[0], query.y[t]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(theta.params.values()))
    _, found = BatchProblem(learner, theta, SPEC, [support], query, 2).loss_and_grad()
    assert found["learntloss.0.weight"].norm() > 0
    torch.testing.assert_close(found, dict(zip(theta.params, expected, strict=True)))


def test_without_labels_they_are_of_no_matter() -> None:
    x, y = torch.rand(2, 5, 1), torch.rand(2, 5, 1)
    mask = torch.ones(2, 5, dtype=torch.bool)
    for labels in (False, True):
        learner = LearntLoss(MLP([4]), 0.1, 2, labels=labels)
        learner = learner.build(TaskSpec((1,), "regression", 1), EpisodeSpec(1, 5, 5))
        theta = learner.init(0)
        found = [learner.adapt(theta, Batch(x, label, mask, 1)).params["head.weight"] for label in (y, 2 * y)]
        assert torch.equal(*found) != labels
        assert not torch.equal(found[0][0], theta.params["head.weight"])


@pytest.mark.parametrize(
    ("spec", "said"), [(SPEC, "labels"), (TaskSpec((2,), "policy", 2, 2), "rewards")], ids=["classes", "policy"]
)
def test_what_it_cannot_do_is_refused(spec: TaskSpec, said: str) -> None:
    with pytest.raises(UserError, match=said):
        LearntLoss(MLP([4]), labels=False).build(spec, EPISODE)


def test_contract() -> None:
    check_metalearner(LearntLoss(Conv4(4, down="stride"), inner_lr=0.1, steps=2))


def test_it_learns_to_learn() -> None:
    _, after, before = taught(LearntLoss(Perceptron(), inner_lr=0.5, steps=3), 150)
    assert after > 0.8
    assert before < 0.5
