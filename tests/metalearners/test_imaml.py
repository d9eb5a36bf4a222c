"""Implicit MAML's meta-gradient against the exact linear solve, and against differentiating a long inner loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_maml import EPISODE, SPEC, Perceptron, batch, begun, taught
from torch import Tensor, nn
from torch.autograd.functional import hessian

from umeta.config import build
from umeta.errors import UserError
from umeta.metalearners.imaml import IMAML
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.train import BatchProblem
from umeta.types import OwnMetaGradient


@dataclass(frozen=True)
class Tiny:
    """2x2 mean pixels, 3 features: 33 weights with a head of three classes."""

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        layers = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh()]
        return nn.Sequential(*layers)


SHAPES = {
    "2.weight": (3, 4), "2.bias": (3,), "3.weight": (3,), "3.bias": (3,), "head.weight": (3, 3), "head.bias": (3,)
}  # fmt: skip


def plain(flat: Tensor, x: Tensor, support_x: Tensor) -> Tensor:
    """Logits, normalised by the support's statistics at these weights, one vector."""
    sizes = [int(np.prod(shape)) for shape in SHAPES.values()]
    p = {n: part.view(shape) for (n, shape), part in zip(SHAPES.items(), flat.split(sizes), strict=True)}
    z, of = (F.linear(F.adaptive_avg_pool2d(v, 2).flatten(1), p["2.weight"], p["2.bias"]) for v in (x, support_x))
    z = (z - of.mean(0)) / (of.var(0, correction=0) + 1e-5).sqrt() * p["3.weight"] + p["3.bias"]
    return F.linear(z.tanh(), p["head.weight"], p["head.bias"])


def test_meta_gradient_equals_the_exact_solve() -> None:
    """After a few steps only, so that phi is no minimum: the formula is taken where the inner loop ends."""
    learner = IMAML(Tiny(), 0.2, 4, proximal=2.0, iterations=60, head="fixed").build(SPEC, EPISODE)
    assert isinstance(learner, OwnMetaGradient)
    theta, support, query = begun(learner), batch(3), batch(2, seed=1)
    assert {name: tuple(value.shape) for name, value in theta.params.items()} == SHAPES
    start = torch.cat([value.detach().flatten() for value in theta.params.values()])
    expected, first_order = torch.zeros_like(start), torch.zeros_like(start)
    for t in range(3):

        def inner(flat: Tensor, t: int = t) -> Tensor:
            return F.cross_entropy(plain(flat, support.x[t], support.x[t]), support.y[t])

        phi = start
        for _ in range(4):
            at = phi.detach().requires_grad_()
            loss = inner(at) + (at - start).square().sum()  # lambda / 2 is 1
            phi = phi - 0.2 * torch.autograd.grad(loss, at)[0]
        at = phi.detach().requires_grad_()
        outer = F.cross_entropy(plain(at, query.x[t], support.x[t]), query.y[t])
        slope = torch.autograd.grad(outer, at)[0]
        first_order += slope / 3
        expected += torch.linalg.solve(torch.eye(len(start)).double() + hessian(inner, phi) / 2.0, slope) / 3
    _, found = BatchProblem(learner, theta, SPEC, [support], query, 2).loss_and_grad()
    flat = torch.cat([value.flatten() for value in found.values()])
    torch.testing.assert_close(flat, expected, rtol=1e-7, atol=1e-9)
    assert (expected - first_order).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("head", ["shared", "prototypes"])
def test_meta_gradient_equals_the_derivative_of_a_long_inner_loop(head: str) -> None:
    """`adapt` can be differentiated too; at the minimum both are the derivative of the solution."""
    learner = IMAML(Tiny(), 0.3, 150, proximal=1.0, iterations=60, head=head, normalisation="group").build(
        SPEC, EPISODE
    )
    theta, support, query = begun(learner), batch(3), batch(2, seed=1)
    _, found = BatchProblem(learner, theta, SPEC, [support], query, 3).loss_and_grad()
    losses = F.cross_entropy(learner.predict(theta, learner.adapt(theta, support), query.x).mT, query.y)
    expected = torch.autograd.grad(losses, list(theta.params.values()))
    torch.testing.assert_close(found, dict(zip(theta.params, expected, strict=True)), rtol=1e-5, atol=1e-7)


def test_contract() -> None:
    check_metalearner(IMAML(Conv4(2, down="stride"), steps=2, iterations=2))


def test_it_is_not_for_policies() -> None:
    with pytest.raises(UserError, match="an environment needs"):
        build.load("nav2d_oracle", ["metalearner={name: imaml, model: mlp}"])


def test_it_learns_to_learn() -> None:
    _, after, before = taught(IMAML(Perceptron(), inner_lr=0.3, steps=32, proximal=0.3, head="fixed"), 100)
    assert after > 0.8
    assert before < 0.4
