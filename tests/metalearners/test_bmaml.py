"""Bayesian MAML: its steps against Stein's formula, looped, its loss against the formula, and its mixture."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, forward, taught

from umeta.metalearners.bmaml import BMAML
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import Batch, Theta

Weights = dict[str, torch.Tensor]


def made() -> tuple[BMAML, Theta, Batch, Batch]:
    learner = BMAML(MODELS["mlp"], 0.4, 2, particles=3, normalisation="group", first_order=False).build(SPEC, EPISODE)
    return learner, begun(learner), batch(2), batch(2, seed=1)


def initialisations(theta: Theta) -> list[Weights]:
    weights = {n: p for n, p in theta.params.items() if not n.startswith("particle.")}
    found = []
    for m in range(3):
        one = {n: p + theta.params[f"particle.{n}"][m] for n, p in weights.items()}
        heads = {n: one[n].repeat(3, *[1] * (one[n].dim() - 1)) for n in ("head.weight", "head.bias")}
        found.append(one | heads)
    return found


def stepped(particles: list[Weights], x: torch.Tensor, y: torch.Tensor) -> list[Weights]:
    """A step of Stein variational gradient descent; the kernel's gradient by autograd."""

    def flat(one: Weights) -> torch.Tensor:
        return torch.cat([p.flatten() for p in one.values()])

    distances = torch.stack([(flat(a) - flat(b)).square().sum() for a in particles for b in particles])
    h = (distances.median() / math.log(3)).detach()
    slopes = []
    for one in particles:
        loss = F.cross_entropy(forward("mlp", one, x, "group")[0], y)
        grads = torch.autograd.grad(loss, list(one.values()), create_graph=True)
        slopes.append(torch.cat([g.flatten() for g in grads]))
    found = []
    for one in particles:
        total = torch.zeros_like(slopes[0])
        for other, slope in zip(particles, slopes, strict=True):
            here = flat(other).detach().requires_grad_()
            (away,) = torch.autograd.grad((-(here - flat(one).detach()).square().sum() / h).exp(), here)
            kernel = (-(flat(other) - flat(one)).square().sum() / h).exp()
            total = total - kernel * slope + away / len(x)
        parts = (total / 3).split([p.numel() for p in one.values()])
        found.append({n: p + 0.4 * d.view_as(p) for (n, p), d in zip(one.items(), parts, strict=True)})
    return found


def test_steps_and_answers_by_hand() -> None:
    learner, theta, support, query = made()
    adapted = learner.adapt(theta, support)
    found = learner.predict(theta, adapted, query.x)
    for t in range(3):
        particles = initialisations(theta)
        for _ in range(2):
            particles = stepped(particles, support.x[t], support.y[t])
        for m, one in enumerate(particles):
            for name, value in one.items():
                torch.testing.assert_close(adapted.params[name][t, m], value)
        each = [forward("mlp", one, query.x[t], "group")[0].softmax(-1) for one in particles]
        torch.testing.assert_close(found[t].exp(), sum(each) / 3)


def test_the_loss_is_the_way_to_the_leaders() -> None:
    learner, theta, support, query = made()
    loss = learner.meta_loss(theta, support, query)[1]
    for t in range(3):
        particles = initialisations(theta)
        for _ in range(2):
            particles = stepped(particles, support.x[t], support.y[t])
        leaders = stepped(particles, *(torch.cat([getattr(b, n)[t] for b in (support, query)]) for n in ("x", "y")))
        apart = [(a[n] - b[n]).square().sum() for a, b in zip(particles, leaders, strict=True) for n in a]
        torch.testing.assert_close(loss[t], sum(apart) / 3)
    grads = learner.meta_gradient(theta, support, query)[1]
    assert all(grads[f"particle.{name}"].norm() > 0 for name in ("1.weight", "head.weight"))


@pytest.mark.parametrize("first_order", [True, False])
def test_contract(first_order: bool) -> None:
    check_metalearner(BMAML(Conv4(4, down="stride"), steps=2, particles=2, first_order=first_order))


def test_it_learns_to_learn() -> None:
    _, after, before = taught(BMAML(Perceptron(), inner_lr=0.5, steps=3, particles=3), 100)
    assert after > 0.8
    assert before < 0.5
