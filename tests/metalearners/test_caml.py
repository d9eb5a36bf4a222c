"""CAML against a plain loop of one concept after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_maml import EPISODE, MODELS, SPEC, Perceptron, batch, begun, forward, taught

from umeta.metalearners.caml import CAML
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.train import BatchProblem


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradient_equals_a_plain_loop(first_order: bool) -> None:
    learner = CAML(MODELS["mlp"], 0.4, 2, normalisation="group", first_order=first_order).build(SPEC, EPISODE)
    theta, support, query = begun(learner), batch(2), batch(2, seed=1)
    losses = []
    for t in range(len(support)):
        for c in range(3):
            fast = dict(theta.params)
            for _ in range(2):
                odds = forward("mlp", fast, support.x[t, support.y[t] == c], "group")[0][:, 0]
                grads = torch.autograd.grad(-odds.sigmoid().log().mean(), list(fast.values()), create_graph=True)
                grads = [g.detach() if first_order else g for g in grads]
                fast = {n: p - 0.4 * g for (n, p), g in zip(fast.items(), grads, strict=True)}
            yes = forward("mlp", fast, query.x[t], "group")[0][:, 0].sigmoid()
            losses.append(F.binary_cross_entropy(yes, (query.y[t] == c).double()))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(theta.params.values()))
    _, found = BatchProblem(learner, theta, SPEC, [support], query, 2).loss_and_grad()
    torch.testing.assert_close(found, dict(zip(theta.params, expected, strict=True)))


def test_a_class_is_learnt_from_its_items_alone_however_many_there_are() -> None:
    """In any order, beside padding, with classes of other sizes."""
    learner = CAML(MODELS["mlp"], 0.4, 2).build(SPEC, EPISODE)
    theta, support, x = begun(learner), batch(3), batch(2, seed=1).x
    whole = learner.predict(theta, learner.adapt(theta, support), x)
    mask = support.mask.clone()
    mask[:, 7:] = False  # one item of class 2 is left
    order = torch.tensor([4, 8, 0, 3, 1, 6, 2, 7, 5])
    other = replace(support, mask=mask).map_tensors(lambda value: value[:, order])
    found = learner.predict(theta, learner.adapt(theta, other), x)
    torch.testing.assert_close(found[..., :2], whole[..., :2])
    assert (found[..., 2] - whole[..., 2]).abs().max() > 1e-3


def test_further_steps_go_on_where_it_was() -> None:
    learner = CAML(MODELS["mlp"], 0.4, 2).build(SPEC, EPISODE)
    theta, support = begun(learner), batch(2)
    twice = learner.adapt(theta, support, start=learner.adapt(theta, support, steps=1), steps=1)
    torch.testing.assert_close(twice.params, learner.adapt(theta, support).params)


def test_from_prototypes_an_item_is_held_against_a_learnt_threshold() -> None:
    learner = CAML(MODELS["mlp"], head="prototypes", distance="cosine").build(SPEC, EPISODE)
    theta, support, x = begun(learner), batch(2), batch(1, seed=1).x
    theta.params["threshold"] = torch.tensor(-3.0).double()
    found = learner.predict(theta, learner.adapt(theta, support, steps=0), x)
    fast = {**theta.params, "head.weight": torch.eye(5).double(), "head.bias": torch.zeros(5).double()}
    for c in range(3):
        z, given = forward("mlp", fast, support.x[0, 2 * c : 2 * c + 2], "support")
        prototype = F.normalize(z, dim=-1).mean(0)
        other = forward("mlp", fast, x[0], "support", given)[0]
        expected = theta.params["scale"] * F.cosine_similarity(other, prototype, dim=-1) - 3
        torch.testing.assert_close(found[0, :, c], expected)


@pytest.mark.parametrize("head", ["shared", "prototypes"])
def test_contract(head: str) -> None:
    check_metalearner(CAML(Conv4(4, down="stride"), inner_lr=0.1, steps=2, head=head))


def test_it_learns_to_learn() -> None:
    _, after, before = taught(CAML(Perceptron(), inner_lr=0.5, steps=1), 150)
    assert after > 0.65
    assert before < 0.5
