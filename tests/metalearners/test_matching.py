"""Matching networks against the formulas, looped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.toys import Itself, answers, batch, learnt, padded, rand
from torch import nn

from umeta.metalearners.matching import FullContext, Matching
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import EpisodeSpec, TaskSpec

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


@pytest.mark.parametrize("full_context", [False, True])
def test_contract(full_context: bool) -> None:
    check_metalearner(Matching(Conv4(filters=4), full_context=full_context))


def test_the_probability_of_a_class_is_the_attention_its_items_get() -> None:
    learner = Matching(Itself()).build(SPEC, EPISODE)
    theta = learner.init(0)
    x, query, y = rand(2, 5, 3), rand(2, 4, 3, seed=1), [[0, 0, 1, 1, 1], [1, 0, 0, 0, 1]]
    found = answers(learner, theta, batch(x, y, 2), query).softmax(-1)
    for t in range(2):
        for q in range(4):
            weight = [torch.exp(10 * F.cosine_similarity(query[t, q], x[t, i], dim=0)) for i in range(5)]
            expected = [sum(w for w, label in zip(weight, y[t], strict=True) if label == c) for c in range(2)]
            torch.testing.assert_close(found[t, q], torch.stack(expected) / sum(weight))


def test_full_context_by_hand() -> None:
    """The bidirectional LSTM of torch, and equations 2 to 6 of the paper's appendix with W [h, r] split in two."""
    module = FullContext(3, reads=3)
    items, queries = rand(1, 4, 3), rand(1, 2, 3, seed=1)
    both = nn.LSTM(3, 3, bidirectional=True)
    for suffix, cell in (("", module.forwards), ("_reverse", module.backwards)):
        for name, value in cell.state_dict().items():
            getattr(both, f"{name}_l0{suffix}").data.copy_(value)
    found, seen = module(queries, items, torch.ones(1, 4, dtype=torch.bool))
    hidden = both(items[0])[0]
    g = hidden[:, :3] + hidden[:, 3:] + items[0]
    torch.testing.assert_close(seen[0], g)
    cell = module.attention
    for q in range(2):
        f = queries[0, q]
        h, c = f, torch.zeros(3)
        for _ in range(3):
            a = torch.stack([h @ g[i] for i in range(4)]).softmax(0)
            r = sum(a[i] * g[i] for i in range(4))
            state = torch.cat([cell.weight_hh, cell.weight_ih[:, 3:]], 1) @ torch.cat([h, r])
            gates = cell.weight_ih[:, :3] @ f + state
            i, forget, new, out = (gates + cell.bias_ih + cell.bias_hh).chunk(4)
            c = forget.sigmoid() * c + i.sigmoid() * new.tanh()
            h = out.sigmoid() * c.tanh() + f
        torch.testing.assert_close(found[0, q], h)


@pytest.mark.parametrize("full_context", [False, True])
def test_padding_anywhere_counts_for_nothing(full_context: bool) -> None:
    learner = Matching(Itself(), full_context=full_context).build(SPEC, EPISODE)
    theta = learner.init(0)
    support, query = batch(rand(2, 4, 3), [[0, 1, 1, 0]] * 2, 2), rand(2, 3, 3, seed=1)
    for at in (0, 2, 4):
        found = answers(learner, theta, padded(support, at), query)
        torch.testing.assert_close(found, answers(learner, theta, support, query))


@pytest.mark.parametrize("full_context", [False, True])
def test_permuted_labels_permute_the_answers_and_the_order_matters_in_full_context_only(full_context: bool) -> None:
    learner = Matching(Itself(), full_context=full_context).build(SPEC, EPISODE)
    theta = learner.init(0)
    support, query = batch(rand(1, 6, 3), [[0, 0, 1, 1, 2, 2]], 3), rand(1, 4, 3, seed=1)
    logits = answers(learner, theta, support, query)
    order = torch.tensor([2, 0, 1])
    permuted = answers(learner, theta, replace(support, y=order[support.y]), query)
    torch.testing.assert_close(permuted[..., order], logits)
    turned = answers(learner, theta, support.map_tensors(lambda value: value.flip(1)), query)
    assert torch.allclose(turned, logits, atol=1e-5) != full_context


def test_a_class_without_support_is_no_reason_to_fail() -> None:
    learner = Matching(Itself()).build(SPEC, EPISODE)
    theta = learner.init(0)
    theta.params["weight"].requires_grad_()
    logits = learner.predict(theta, learner.adapt(theta, batch(rand(1, 2, 3), [[0, 2]], 3)), rand(1, 4, 3))
    logits[..., [0, 2]].log_softmax(-1).sum().backward()
    assert logits.isfinite().all()
    assert (logits.argmax(-1) != 1).all()
    assert theta.params["weight"].grad.isfinite().all()


@pytest.mark.parametrize("full_context", [False, True])
def test_it_learns_which_coordinates_matter(full_context: bool) -> None:
    before, after = learnt(Matching(Itself(), full_context=full_context), steps=60)
    assert after > 0.95
    assert before < 0.6
