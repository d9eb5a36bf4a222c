"""CAMeLU against a transformer written out, on one sequence for each query."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.toys import Itself, answers, batch, check_padding_and_order, learnt, rand
from torch import Tensor

from umeta.errors import UserError
from umeta.metalearners.camelu import CAMeLU
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import EpisodeSpec, TaskSpec

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


def test_contract() -> None:
    check_metalearner(CAMeLU(Conv4(filters=4), width=8, layers=1))


def attend(h: Tensor, own: dict[str, Tensor], prefix: str) -> Tensor:
    """A layer of the transformer, of four heads: items see the items before the last, which sees itself as well."""
    normed = F.layer_norm(h, h.shape[1:], own[f"{prefix}norm1.weight"], own[f"{prefix}norm1.bias"])
    all_heads = normed @ own[f"{prefix}self_attn.in_proj_weight"].T + own[f"{prefix}self_attn.in_proj_bias"]
    read = torch.zeros_like(h)
    for head in range(4):
        query, key, value = (part[:, 2 * head : 2 * head + 2] for part in all_heads.chunk(3, 1))
        for i in range(len(h)):
            seen = range(len(h) if i == len(h) - 1 else len(h) - 1)
            share = torch.stack([query[i] @ key[j] / 2**0.5 for j in seen]).softmax(0)
            read[i, 2 * head : 2 * head + 2] = sum(share[j] * value[j] for j in seen)
    h = h + read @ own[f"{prefix}self_attn.out_proj.weight"].T + own[f"{prefix}self_attn.out_proj.bias"]
    normed = F.layer_norm(h, h.shape[1:], own[f"{prefix}norm2.weight"], own[f"{prefix}norm2.bias"])
    hidden = F.gelu(normed @ own[f"{prefix}linear1.weight"].T + own[f"{prefix}linear1.bias"])
    return h + hidden @ own[f"{prefix}linear2.weight"].T + own[f"{prefix}linear2.bias"]


def test_logits_by_hand() -> None:
    learner = CAMeLU(Itself(), width=8, layers=2).build(SPEC, EPISODE)
    theta = learner.init(0)
    x, query, labels = rand(2, 5, 3), rand(2, 3, 3, seed=1), [[0, 0, 1, 1, 1], [1, 0, 0, 1, 1]]
    found = answers(learner, theta, batch(x, labels, 2), query)
    own = {name.removeprefix("camelu."): p for name, p in theta.params.items()}
    for t in range(2):
        for q in range(3):
            items = torch.cat([x[t], query[t, q : q + 1]]) @ own["item.weight"].T + own["item.bias"]
            unknown = own["label.bias"]
            h = torch.cat([items, torch.stack([*(own["label.weight"].T[labels[t]] + unknown), unknown])], 1)
            for i in range(2):
                h = attend(h, own, f"encoder.layers.{i}.")
            last = F.layer_norm(h[-1], (8,), own["encoder.norm.weight"], own["encoder.norm.bias"])
            torch.testing.assert_close(found[t, q], own["answer.weight"] @ last + own["answer.bias"])


def test_padding_counts_for_nothing_nor_does_the_order_of_items() -> None:
    check_padding_and_order(CAMeLU(Itself(), width=8, layers=2).build(SPEC, EPISODE), [3, 2, 1, 0])


def test_another_way_is_refused() -> None:
    learner = CAMeLU(Itself(), width=8).build(SPEC, EPISODE)
    with pytest.raises(UserError, match="camelu: it was meta-trained for 2 ways, not 3"):
        learner.adapt(learner.init(0), batch(rand(1, 3, 3), [[0, 1, 2]], 3))


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(CAMeLU(Itself(), width=64, layers=2), lr=0.001, steps=200, way=2, shot=5)
    assert after > 0.8
    assert before < 0.6
