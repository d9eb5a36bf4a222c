"""Reptile's meta-gradient against gradient descent by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, forward, taught

from umeta.config import build
from umeta.errors import UserError
from umeta.metalearners.reptile import Reptile
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.train import BatchProblem
from umeta.types import OwnMetaGradient, Theta


def test_meta_gradient_is_the_way_back_from_the_adapted_weights() -> None:
    learner = Reptile(MODELS["mlp"], 0.4, 3, head="fixed", normalisation="group").build(SPEC, EPISODE)
    assert isinstance(learner, OwnMetaGradient)
    theta, support, query = begun(learner), batch(2), batch(1, seed=1)
    query = replace(query, mask=query.mask.clone().index_fill_(1, torch.tensor([2]), False))
    expected = {name: torch.zeros_like(value) for name, value in theta.params.items()}
    losses = []
    for t in range(3):
        x, y = torch.cat([support.x[t], query.x[t, :2]]), torch.cat([support.y[t], query.y[t, :2]])
        fast = {name: value.detach().requires_grad_() for name, value in theta.params.items()}
        for _ in range(3):
            grads = torch.autograd.grad(F.cross_entropy(forward("mlp", fast, x, "group")[0], y), list(fast.values()))
            fast = {n: (p - 0.4 * g).detach().requires_grad_() for (n, p), g in zip(fast.items(), grads, strict=True)}
        for name, value in fast.items():
            expected[name] += (theta.params[name] - value).detach() / 3
        losses.append(F.cross_entropy(forward("mlp", fast, query.x[t, :2], "group")[0], query.y[t, :2]).item())
    metrics, found = BatchProblem(learner, theta, SPEC, [support], query, 2).loss_and_grad()
    torch.testing.assert_close(found, expected)
    assert metrics["loss"] == pytest.approx(np.mean(losses))
    assert found["1.weight"].norm() > 1e-3


def test_prototypes_are_moved_through_the_network() -> None:
    """Half the squared distance between the beginning and where it led, by central differences."""
    learner = Reptile(MODELS["mlp"], 0.05, 2, head="prototypes", normalisation="group").build(SPEC, EPISODE)
    theta, support, query = begun(learner), batch(2), batch(1, seed=1)
    _, found = learner.meta_gradient(theta, support, query)
    whole = replace(support, **{n: torch.cat([getattr(support, n), getattr(query, n)], 1) for n in ("x", "y", "mask")})
    torch.manual_seed(0)
    way = {name: torch.randn_like(value) for name, value in theta.params.items()}
    with torch.no_grad():
        ended = learner.adapt(theta, whole).params
        ends = []
        for step in (1e-5, -1e-5):
            moved = Theta({name: value + step * way[name] for name, value in theta.params.items()})
            begun_there = learner.adapt(moved, whole, steps=0).params
            ends.append(sum((begun_there[n] - ended[n]).square().sum() for n in ended).item() / 2 / len(support))
    slope = sum((found[name] * way[name]).sum() for name in found).item()
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_contract() -> None:
    check_metalearner(Reptile(Conv4(4, down="stride"), steps=2))


def test_it_is_not_for_policies() -> None:
    with pytest.raises(UserError, match="an environment needs"):
        build.load("nav2d_oracle", ["metalearner={name: reptile, model: mlp}"])


def test_it_learns_to_learn() -> None:
    _, after, before = taught(Reptile(Perceptron(), inner_lr=0.3, steps=10), 200)
    assert after > 0.9
    assert before < 0.4
