"""PLATIPUS against a plain loop over draws: its answers, and its loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, forward, taught
from torch.distributions import Normal, kl_divergence

from umeta.metalearners._distribution import draw_noise
from umeta.metalearners.platipus import PLATIPUS
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import Batch, Theta

Weights = dict[str, torch.Tensor]


def made() -> tuple[PLATIPUS, Theta, Batch, Batch]:
    learner = PLATIPUS(MODELS["mlp"], 0.4, 2, particles=3, normalisation="group", first_order=False)
    learner = learner.build(SPEC, EPISODE)
    return learner, begun(learner), batch(2), batch(2, seed=1)


def slope(one: Weights, x: torch.Tensor, y: torch.Tensor) -> Weights:
    loss = F.cross_entropy(forward("mlp", one, x, "group")[0], y)
    return dict(zip(one, torch.autograd.grad(loss, list(one.values()), create_graph=True), strict=True))


def seen(theta: Theta, x: torch.Tensor, y: torch.Tensor, which: str) -> dict[str, Normal]:
    """N(mu - gamma grad L(mu), std^2) of the weights of one task."""
    mu = {n: p for n, p in theta.params.items() if not n.startswith(("p.", "q.", "gamma."))}
    std = {n: theta.params[f"{which}.{n}"].abs() for n in mu}
    for n in ("head.weight", "head.bias"):
        mu[n], std[n] = (value.repeat(3, *[1] * (value.dim() - 1)) for value in (mu[n], std[n]))
    step = slope(mu, x, y)
    return {n: Normal(p - theta.params[f"gamma.{which}"] * step[n], std[n]) for n, p in mu.items()}


def adapt_by_hand(found: dict[str, Normal], noise: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> Weights:
    parts = noise.split([found[n].mean.numel() for n in sorted(found)])
    draws = {
        n: found[n].mean + found[n].stddev * e.view_as(found[n].mean) for n, e in zip(sorted(found), parts, strict=True)
    }
    phi = {n: draws[n] for n in found}
    for _ in range(2):
        step = slope(phi, x, y)
        phi = {n: p - 0.4 * step[n] for n, p in phi.items()}
    return phi


def test_answers_by_hand() -> None:
    learner, theta, support, query = made()
    found = learner.predict(theta, learner.adapt(theta, support), query.x)
    noise = draw_noise(support, 3, sum(p[0].numel() for p in learner.begin(theta, support).values()))
    for t in range(3):
        prior = seen(theta, support.x[t], support.y[t], "p")
        each = [adapt_by_hand(prior, e, support.x[t], support.y[t]) for e in noise[t]]
        expected = sum(forward("mlp", one, query.x[t], "group")[0].softmax(-1) for one in each) / 3
        torch.testing.assert_close(found[t].exp(), expected)


def test_the_loss_by_hand() -> None:
    """Of draws that have seen the query, and of how far seeing it moves them."""
    learner, theta, support, query = made()
    loss = learner.meta_loss(theta, support, query)[1]
    noise = draw_noise(support, 3, sum(p[0].numel() for p in learner.begin(theta, support).values()))
    for t in range(3):
        p, q = (seen(theta, b.x[t], b.y[t], which) for b, which in ((support, "p"), (query, "q")))
        each = [adapt_by_hand(q, e, support.x[t], support.y[t]) for e in noise[t]]
        fits = [F.cross_entropy(forward("mlp", one, query.x[t], "group")[0], query.y[t]) for one in each]
        apart = sum(kl_divergence(q[n], p[n]).sum() for n in p)
        torch.testing.assert_close(loss[t], sum(fits) / 3 + apart / 6)
    grads = learner.meta_gradient(theta, support, query)[1]
    assert all(grads[name].norm() > 0 for name in ("p.1.weight", "q.head.weight", "gamma.p", "gamma.q"))


@pytest.mark.parametrize("first_order", [True, False])
def test_contract(first_order: bool) -> None:
    check_metalearner(PLATIPUS(Conv4(4, down="stride"), 0.1, steps=2, particles=2, first_order=first_order))


def test_it_learns_to_learn() -> None:
    _, after, before = taught(PLATIPUS(Perceptron(), inner_lr=0.5, steps=3, particles=3), 100)
    assert after > 0.8
    assert before < 0.5
