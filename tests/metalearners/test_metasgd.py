"""Meta-SGD against a plain loop, and against MAML where all its rates are one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, forward, taught

from umeta.metalearners.maml import MAML
from umeta.metalearners.metasgd import MetaSGD
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.train import BatchProblem
from umeta.types import PolicyLearner, Theta


def test_meta_gradient_equals_a_plain_loop() -> None:
    """Of weights and rates alike, each of which is another number here."""
    learner = MetaSGD(MODELS["mlp"], 0.4, 2, normalisation="group").build(SPEC, EPISODE)
    theta, support, query = begun(learner), batch(2), batch(2, seed=1)
    weights = [name for name in theta.params if not name.startswith("rate.")]
    losses = []
    for t in range(len(support)):
        fast = {name: theta.params[name] for name in weights}
        for name in ("head.weight", "head.bias"):
            fast[name] = fast[name].repeat(3, *[1] * (fast[name].dim() - 1))
        for _ in range(2):
            loss = F.cross_entropy(forward("mlp", fast, support.x[t], "group")[0], support.y[t])
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {n: p - theta.params[f"rate.{n}"] * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        losses.append(F.cross_entropy(forward("mlp", fast, query.x[t], "group")[0], query.y[t]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(theta.params.values()))
    _, found = BatchProblem(learner, theta, SPEC, [support], query, 2).loss_and_grad()
    torch.testing.assert_close(found, dict(zip(theta.params, expected, strict=True)))
    assert all(found[f"rate.{name}"].norm() > 0 for name in weights if name != "head.bias")


@pytest.mark.parametrize("head", ["shared", "fixed", "prototypes"])
def test_with_one_rate_for_all_it_is_maml(head: str) -> None:
    learner, maml = (
        kind(MODELS["mlp"], 0.5, 3, head=head, normalisation="group").build(SPEC, EPISODE) for kind in (MetaSGD, MAML)
    )
    thetas = [one.init(0) for one in (learner, maml)]
    rates = {n: p for n, p in thetas[0].params.items() if n.startswith("rate.")}
    assert {n for n in thetas[0].params if n not in rates} == set(thetas[1].params)
    assert all(bool((rate == 0.5).all()) for rate in rates.values())
    assert {"rate.1.weight", "rate.head.weight", "rate.head.bias"} < set(rates)
    found = []
    for one, theta in zip((learner, maml), thetas, strict=True):
        exact = Theta({name: value.double().requires_grad_() for name, value in theta.params.items()})
        problem = BatchProblem(one, exact, SPEC, [batch(2)], batch(2, seed=1), 3)
        found.append(problem.loss_and_grad())
    assert found[0][0] == pytest.approx(found[1][0])
    for name, grad in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], grad)


def test_rates_are_not_adapted() -> None:
    learner = MetaSGD(MODELS["mlp"]).build(SPEC, EPISODE)
    with torch.no_grad():
        adapted = learner.adapt(begun(learner), batch(2))
    assert not any(name.startswith("rate.") for name in adapted.params)


def test_contract() -> None:
    check_metalearner(MetaSGD(Conv4(4, down="stride"), steps=2))


def test_it_can_act() -> None:
    assert isinstance(MetaSGD(MODELS["mlp"]), PolicyLearner)


def test_it_learns_to_learn_in_one_step() -> None:
    trained, after, before = taught(MetaSGD(Perceptron(), inner_lr=0.5, steps=1), 100)
    assert after > 0.9
    assert before < 0.4
    assert trained.params["rate.head.weight"].std() > 0.01
