"""Meta networks by their equations, item by item."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.toys import Itself, answers, batch, check_padding_and_order, learnt, rand

from umeta.metalearners.metanet import MetaNet
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import Batch, EpisodeSpec, TaskSpec

EPISODE = EpisodeSpec(2, 2, 1)


@pytest.mark.parametrize("numbers", [False, True])
def test_answers_by_hand(numbers: bool) -> None:
    """With the gradient by autograd."""
    spec = TaskSpec((3,), "regression", 2) if numbers else TaskSpec((3,))
    learner = MetaNet(Itself(), hidden=5, key=4).build(spec, EPISODE)
    theta = learner.init(0)
    x, query = rand(2, 4, 3), rand(2, 3, 3, seed=1)
    support = batch(x, [[0, 0, 1, 1], [1, 0, 0, 1]], 2)
    if numbers:
        support = Batch(x, rand(2, 4, 2, seed=2), support.mask, 1)
    found = answers(learner, theta, support, query)
    w = {name.removeprefix("metanet."): p.detach() for name, p in theta.params.items()}
    for t in range(2):
        fast = []
        for i in range(4):
            slow = [w["answer.weight"].clone().requires_grad_(), w["answer.bias"].clone().requires_grad_()]
            said, label = slow[0] @ x[t, i] + slow[1], support.y[t, i]
            loss = (said - label).square().sum() / 2 if numbers else F.cross_entropy(said, label)
            fast.append([m(w, g) for g in torch.autograd.grad(loss, slow)])
        for q, z in enumerate(query[t]):
            near = torch.stack([F.cosine_similarity(key(w, z), key(w, other), dim=0) for other in x[t]])
            share = (w["strength"] * near).softmax(0)
            weight, bias = (sum(s * one[k] for s, one in zip(share, fast, strict=True)) for k in (0, 1))
            expected = (w["answer.weight"] + weight) @ z + w["answer.bias"] + bias
            torch.testing.assert_close(found[t, q], expected)


def m(w: dict[str, torch.Tensor], gradient: torch.Tensor) -> torch.Tensor:
    hidden = (gradient[..., None] @ w["fast.0.weight"].T + w["fast.0.bias"]).tanh()
    return (hidden @ w["fast.2.weight"].T + w["fast.2.bias"])[..., 0]


def key(w: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    return w["key.weight"] @ z + w["key.bias"]


def test_padding_counts_for_nothing_nor_does_any_order() -> None:
    check_padding_and_order(MetaNet(Itself(), key=4).build(TaskSpec((3,)), EPISODE), [3, 0, 1, 2])


def test_contract() -> None:
    check_metalearner(MetaNet(Conv4(filters=4), hidden=4, key=4))


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(MetaNet(Itself()), lr=0.01, steps=200, way=2)
    assert after > 0.8
    assert before < 0.7
