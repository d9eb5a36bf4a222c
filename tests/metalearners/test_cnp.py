"""Conditional neural processes against the formula, looped, and their likelihood against torch's distributions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers.toys import Itself, answers, batch, learnt, padded, rand
from torch.distributions import Normal

from umeta.metalearners.cnp import CNP
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.train import BatchProblem
from umeta.types import Batch, EpisodeSpec, TaskSpec, Theta

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


def test_contract() -> None:
    check_metalearner(CNP(Conv4(filters=4), hidden=8))


def test_logits_by_hand() -> None:
    learner = CNP(Itself(), hidden=5).build(SPEC, EPISODE)
    theta = learner.init(0)
    x, query, labels = rand(2, 4, 3), rand(2, 3, 3, seed=1), [[0, 0, 1, 1], [1, 0, 0, 1]]
    found = answers(learner, theta, batch(x, labels, 2), query)
    w = {name.removeprefix("cnp."): p for name, p in theta.params.items()}
    for t in range(2):
        pairs = [torch.cat([x[t, i], F.one_hot(torch.tensor(labels[t][i]), 2)]) for i in range(4)]
        h = [(w["encode.0.weight"] @ p + w["encode.0.bias"]).relu() for p in pairs]
        r = sum(w["encode.2.weight"] @ one + w["encode.2.bias"] for one in h) / 4
        for q in range(3):
            g = (w["decode.weight"] @ torch.cat([query[t, q], torch.zeros(2), r]) + w["decode.bias"]).relu()
            torch.testing.assert_close(found[t, q], w["answer.weight"] @ g + w["answer.bias"])


def test_its_loss_on_numbers_is_minus_their_log_probability() -> None:
    spec = TaskSpec((1,), "regression", 1)
    learner = CNP(Itself(), hidden=5).build(spec, EpisodeSpec(1, 4, 6))
    theta = Theta({name: p.requires_grad_() for name, p in learner.init(0).params.items()})
    support, query = (Batch(rand(2, n, 1), rand(2, n, 1, seed=1), torch.ones(2, n).bool(), 1) for n in (4, 6))
    mean, log_std = answers(learner, theta, support, query.x).chunk(2, -1)
    loss = learner.meta_loss(theta, support, query)[1]
    torch.testing.assert_close(loss, -Normal(mean, log_std.exp()).log_prob(query.y).mean((1, 2)))
    metrics, grads = BatchProblem(learner, theta, spec, [support], query, 1).loss_and_grad()
    torch.testing.assert_close(torch.tensor(metrics["loss"]), (mean - query.y).square().mean())
    expected = torch.autograd.grad(loss.mean(), list(theta.params.values()))
    torch.testing.assert_close(grads, dict(zip(theta.params, expected, strict=True)))


def test_padding_counts_for_nothing_nor_does_the_order_of_items() -> None:
    learner = CNP(Itself(), hidden=5).build(SPEC, EPISODE)
    theta = learner.init(0)
    support, query = batch(rand(2, 4, 3), [[0, 1, 0, 1]] * 2, 2), rand(2, 3, 3, seed=1)
    logits = answers(learner, theta, support, query)
    torch.testing.assert_close(answers(learner, theta, padded(support, 2), query), logits)
    turned = support.map_tensors(lambda value: value.flip(1))
    torch.testing.assert_close(answers(learner, theta, turned, query), logits)


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(CNP(Itself(), hidden=64), lr=0.01, steps=300, way=2, shot=5)
    assert after > 0.7
    assert before < 0.6
