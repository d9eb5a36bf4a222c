"""MLDG against a plain loop, and against MAML, whose meta-loss has the query's half alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, forward, taught

from umeta.metalearners.maml import MAML
from umeta.metalearners.mldg import MLDG
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.train import BatchProblem


def test_meta_gradient_equals_a_plain_loop() -> None:
    learner = MLDG(MODELS["mlp"], 0.4, 2, normalisation="group", beta=0.7).build(SPEC, EPISODE)
    theta, support, query = begun(learner), batch(2), batch(2, seed=1)
    losses = []
    for t in range(len(support)):
        start = dict(theta.params)
        for name in ("head.weight", "head.bias"):
            start[name] = start[name].repeat(3, *[1] * (start[name].dim() - 1))
        fast, seen = start, []
        for _ in range(2):
            seen.append(F.cross_entropy(forward("mlp", fast, support.x[t], "group")[0], support.y[t]))
            grads = torch.autograd.grad(seen[-1], list(fast.values()), create_graph=True)
            fast = {n: p - 0.4 * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        losses.append(seen[0] + 0.7 * F.cross_entropy(forward("mlp", fast, query.x[t], "group")[0], query.y[t]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(theta.params.values()))
    _, found = BatchProblem(learner, theta, SPEC, [support], query, 2).loss_and_grad()
    torch.testing.assert_close(found, dict(zip(theta.params, expected, strict=True)))


def test_it_adapts_as_maml_does() -> None:
    learner, maml = (kind(MODELS["mlp"], 0.4, 2).build(SPEC, EPISODE) for kind in (MLDG, MAML))
    theta = begun(learner)
    torch.testing.assert_close(*(one.adapt(theta, batch(2)).params for one in (learner, maml)))


def test_contract() -> None:
    check_metalearner(MLDG(Conv4(4, down="stride"), inner_lr=0.1, steps=2))


def test_it_learns_to_learn() -> None:
    _, after, before = taught(MLDG(Perceptron(), inner_lr=0.5, steps=3), 100)
    assert after > 0.8
    assert before < 0.5
