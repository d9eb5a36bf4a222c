"""WarpGrad against a plain loop that takes each step apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, forward, taught

from umeta.metalearners.warpgrad import WarpGrad
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.train import BatchProblem

WARPS = ["4.weight", "4.bias"]  # the second of two linear layers


def test_meta_gradient_equals_a_plain_loop() -> None:
    learner = WarpGrad(MODELS["mlp"], 0.4, 3, normalisation="group").build(SPEC, EPISODE)
    theta, support, query = begun(learner), batch(2), batch(2, seed=1)
    losses = []
    for t in range(len(support)):
        start = dict(theta.params)
        for name in ("head.weight", "head.bias"):
            start[name] = start[name].repeat(3, *[1] * (start[name].dim() - 1))
        way = {name: torch.zeros_like(p) for name, p in start.items()}  # from the initialisation to where the loop is
        for _ in range(3):
            fast = {name: p + way[name] for name, p in start.items()}
            loss = F.cross_entropy(forward("mlp", fast, support.x[t], "group")[0], support.y[t])
            grads = dict(zip(fast, torch.autograd.grad(loss, list(fast.values()), create_graph=True), strict=True))
            steps = {n: torch.zeros_like(g) if n in WARPS else -0.4 * g for n, g in grads.items()}
            after = {n: p + steps[n] for n, p in fast.items()}
            losses.append(F.cross_entropy(forward("mlp", after, query.x[t], "group")[0], query.y[t]) / 3)
            way = {n: w + steps[n].detach() for n, w in way.items()}
    expected = torch.autograd.grad(sum(losses) / len(support), list(theta.params.values()))
    _, found = BatchProblem(learner, theta, SPEC, [support], query, 2).loss_and_grad()
    torch.testing.assert_close(found, dict(zip(theta.params, expected, strict=True)))


def test_the_inner_loop_leaves_the_warps_as_they_are() -> None:
    learner = WarpGrad(MODELS["mlp"], 0.4, 3).build(SPEC, EPISODE)
    theta = begun(learner)
    for name, value in learner.adapt(theta, batch(2)).params.items():
        assert torch.equal(value, theta.params[name].expand(value.shape)) == (name in WARPS)


def test_contract() -> None:
    check_metalearner(WarpGrad(Conv4(4, down="stride"), inner_lr=0.1, steps=2))


def test_it_learns_to_learn() -> None:
    _, after, before = taught(WarpGrad(Perceptron(), inner_lr=0.5, steps=3), 100)
    assert after > 0.8
    assert before < 0.5
