"""ABML against a plain loop over tasks, which leaves the derivatives of its objective to autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, forward, taught
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from umeta.metalearners._distribution import draw_noise
from umeta.metalearners.abml import ABML
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import Batch, Theta

Distribution = dict[str, tuple[Tensor, Tensor]]  # of each weight, mean and log standard deviation


def make_learner() -> tuple[ABML, Theta, Batch, Batch]:
    learner = ABML(MODELS["mlp"], 0.1, 2, particles=3, normalisation="group", first_order=False, spread=0.3, prior=0.7)
    learner = learner.build(SPEC, EPISODE)
    return learner, begun(learner), batch(2), batch(2, seed=1)


def prior_of(theta: Theta) -> Distribution:
    found = {n: (p, theta.params[f"std.{n}"]) for n, p in theta.params.items() if not n.startswith("std.")}
    for n in ("head.weight", "head.bias"):  # of one class, for each of three
        found[n] = tuple(value.repeat(3, *[1] * (value.dim() - 1)) for value in found[n])
    return found


def draw(q: Distribution, noise: Tensor) -> dict[str, Tensor]:
    parts = noise.split([q[n][0].numel() for n in sorted(q)])
    return {n: q[n][0] + q[n][1].exp() * e.view_as(q[n][0]) for n, e in zip(sorted(q), parts, strict=True)}


def objective(q: Distribution, p: Distribution, noise: Tensor, x: Tensor, y: Tensor) -> Tensor:
    fits = [F.cross_entropy(forward("mlp", draw(q, e), x, "group")[0], y) for e in noise]
    apart = sum(kl_divergence(Normal(q[n][0], q[n][1].exp()), Normal(p[n][0], p[n][1].exp())).sum() for n in q)
    return sum(fits) / len(fits) + 0.7 * apart / len(y)


def fit_by_hand(p: Distribution, noise: Tensor, x: Tensor, y: Tensor) -> Distribution:
    q = p
    for _ in range(2):
        flat = [value for pair in q.values() for value in pair]
        slopes = torch.autograd.grad(objective(q, p, noise, x, y), flat, create_graph=True)
        moved = [value - 0.1 * slope for value, slope in zip(flat, slopes, strict=True)]
        q = dict(zip(q, zip(moved[::2], moved[1::2], strict=True), strict=True))
    return q


def noise_of(learner: ABML, theta: Theta, support: Batch) -> Tensor:
    return draw_noise(support, 3, sum(p[0].numel() for p in learner.begin(theta, support).values()))


def test_distributions_and_answers_by_hand() -> None:
    learner, theta, support, query = make_learner()
    adapted = learner.adapt(theta, support)
    found, noise = learner.predict(theta, adapted, query.x), noise_of(learner, theta, support)
    for t in range(3):
        q = fit_by_hand(prior_of(theta), noise[t], support.x[t], support.y[t])
        for name, (mean, log) in q.items():
            torch.testing.assert_close(adapted.params[name][t], mean)
            torch.testing.assert_close(adapted.params[f"std.{name}"][t], log)
        each = [forward("mlp", draw(q, e), query.x[t], "group")[0].softmax(-1) for e in noise[t]]
        torch.testing.assert_close(found[t].exp(), sum(each) / 3)


def test_the_loss_and_its_gradient_by_hand() -> None:
    learner, theta, support, query = make_learner()
    loss, noise = learner.meta_loss(theta, support, query)[1], noise_of(learner, theta, support)
    total = torch.zeros(())
    for t in range(3):
        p = prior_of(theta)
        q = fit_by_hand(p, noise[t], support.x[t], support.y[t])
        both = torch.cat([support.x[t], query.x[t]]), torch.cat([support.y[t], query.y[t]])
        expected = objective(q, p, noise[t], *both)
        torch.testing.assert_close(loss[t], expected)
        total = total + expected / 3
    names = list(theta.params)
    by_hand = dict(zip(names, torch.autograd.grad(total, [theta.params[n] for n in names]), strict=True))
    for name, slope in learner.meta_gradient(theta, support, query)[1].items():
        torch.testing.assert_close(slope, by_hand[name], rtol=1e-4, atol=1e-6)


def test_steps_that_go_on_are_those_taken_at_once() -> None:
    learner, theta, support, _ = make_learner()
    on = learner.adapt(theta, support, start=learner.adapt(theta, support, steps=1), steps=1)
    for name, value in learner.adapt(theta, support, steps=2).params.items():
        torch.testing.assert_close(on.params[name], value)


@pytest.mark.parametrize("first_order", [True, False])
def test_contract(first_order: bool) -> None:
    check_metalearner(ABML(Conv4(4, down="stride"), 0.1, steps=2, particles=2, first_order=first_order))


def test_it_learns_to_learn() -> None:
    _, after, before = taught(ABML(Perceptron(), inner_lr=0.5, steps=3, particles=3), 100)
    assert after > 0.8
    assert before < 0.5
