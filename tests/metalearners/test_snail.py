"""SNAIL against its layers as the paper writes them, on one sequence for each query."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.toys import Itself, answers, batch, check_padding_and_order, learnt, rand
from torch import Tensor

from umeta.errors import UserError
from umeta.metalearners.snail import SNAIL, Attention, Convolution
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import EpisodeSpec, TaskSpec, Theta

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


def made(reach: int = 4) -> tuple[SNAIL, Theta]:
    learner = SNAIL(Itself(), filters=4, reach=reach).build(SPEC, EPISODE)
    return learner, learner.init(0)


def test_contract() -> None:
    check_metalearner(SNAIL(Conv4(filters=4), filters=4, reach=8))


def convolved(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """torch's convolution over time of x [length, channels], padded with zeros on the left."""
    kernel = torch.stack(weight.chunk(2, 1)[::-1], -1)  # the earlier item first
    out = F.conv1d(F.pad(x.T, (dilation, 0))[None], kernel, bias, dilation=dilation)[0].T
    return torch.cat([x, out.chunk(2, 1)[0].tanh() * out.chunk(2, 1)[1].sigmoid()], 1)


def attended(x: Tensor, weight: Tensor, bias: Tensor, keys: int) -> Tensor:
    """Each item looks at those before it and at itself."""
    query, key, value = (x @ weight.T + bias).split([keys, keys, len(weight) - 2 * keys], 1)
    rows = [(query[i] @ key[: i + 1].T / keys**0.5).softmax(0) @ value[: i + 1] for i in range(len(x))]
    return torch.cat([x, torch.stack(rows)], 1)


@pytest.mark.parametrize("reach", [4, 16])  # shorter and longer than the sequence
def test_logits_by_hand(reach: int) -> None:
    learner, theta = made(reach)
    x, query, labels = rand(2, 5, 3), rand(2, 3, 3, seed=1), torch.tensor([0, 0, 1, 1, 1])
    found = answers(learner, theta, batch(x, [labels.tolist(), [1, 0, 0, 1, 1]], 2), query)
    own = {name.removeprefix("snail."): p for name, p in theta.params.items()}
    layers = list(learner.built.module.layers)
    assert [type(layer) for layer in layers].count(Convolution) == 2 * {4: 2, 16: 4}[reach]
    for t, order in enumerate(([0, 1, 2, 3, 4], [1, 2, 0, 3, 4])):
        for q in range(3):
            pairs = torch.cat([x[t, order], F.one_hot(labels)], 1)
            h = torch.cat([pairs, F.pad(query[t, q : q + 1], (0, 2))])
            for i, layer in enumerate(layers):
                if isinstance(layer, Attention):
                    h = attended(h, own[f"layers.{i}.all.weight"], own[f"layers.{i}.all.bias"], layer.widths[0])
                else:
                    h = convolved(h, own[f"layers.{i}.both.weight"], own[f"layers.{i}.both.bias"], layer.dilation)
            torch.testing.assert_close(found[t, q], own["answer.weight"] @ h[-1] + own["answer.bias"])


def test_padding_counts_for_nothing_nor_does_the_order_of_classes() -> None:
    check_padding_and_order(made()[0], [1, 0, 3, 2])


def test_another_way_is_refused_and_another_shot_is_not() -> None:
    learner, theta = made()
    assert answers(learner, theta, batch(rand(1, 6, 3), [[0, 0, 0, 1, 1, 1]], 2), rand(1, 4, 3)).shape == (1, 4, 2)
    with pytest.raises(UserError, match="snail: it was meta-trained for 2 ways, not 3"):
        learner.adapt(theta, batch(rand(1, 3, 3), [[0, 1, 2]], 3))


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(SNAIL(Itself(), filters=16, reach=8), lr=0.01, steps=200, way=3)
    assert after > 0.8
    assert before < 0.5
