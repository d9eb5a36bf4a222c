"""The memory-augmented network against its equations, slot by slot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers.toys import Itself, answers, batch, check_padding_and_order, learnt, rand
from torch import Tensor, nn

from umeta.metalearners.mann import MANN
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import EpisodeSpec, TaskSpec

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


def test_contract() -> None:
    check_metalearner(MANN(Conv4(filters=4), hidden=8, slots=4, key=4))


def run(w: dict[str, Tensor], sequence: list[Tensor], slots: int) -> Tensor:
    """The answer to the last item."""
    cell = nn.LSTMCell(8, 5)
    cell.load_state_dict({name.removeprefix("cell."): p for name, p in w.items() if name.startswith("cell.")})
    state, read, last = None, torch.zeros(3), torch.zeros(slots)
    usage, memory = torch.zeros(slots), [torch.full((3,), 1e-6) for _ in range(slots)]
    for item in sequence:
        h, c = cell(torch.cat([item, read])[None], state)
        state, h = (h, c), h[0]
        key = (w["key.weight"] @ h + w["key.bias"]).tanh()
        strength, gate = w["gates.weight"] @ h + w["gates.bias"]
        cosines = torch.stack([F.cosine_similarity(key, slot, dim=0, eps=1e-12) for slot in memory])
        weights = ((1 + strength.exp().log1p()) * cosines).softmax(0)
        read = sum(share * slot for share, slot in zip(weights, memory, strict=True))
        least = int(usage.argmin())
        write = gate.sigmoid() * last + (1 - gate.sigmoid()) * torch.eye(slots)[least]
        memory = [(0 if i == least else 1) * slot + write[i] * key for i, slot in enumerate(memory)]
        usage, last = 0.99 * usage + weights + write, weights
    return w["answer.weight"] @ torch.cat([h, read]) + w["answer.bias"]


def test_logits_by_hand() -> None:
    learner = MANN(Itself(), hidden=5, slots=3, key=3).build(SPEC, EPISODE)
    theta = learner.init(0)
    x, query, labels = rand(2, 4, 3), rand(2, 3, 3, seed=1), F.one_hot(torch.tensor([0, 0, 1, 1]))
    found = answers(learner, theta, batch(x, [[0, 0, 1, 1], [1, 0, 0, 1]], 2), query)
    w = {name.removeprefix("mann."): p.detach() for name, p in theta.params.items()}
    for t, order in enumerate(([0, 1, 2, 3], [1, 2, 0, 3])):
        for q in range(3):
            sequence = [*torch.cat([x[t, order], labels], 1), F.pad(query[t, q], (0, 2))]
            torch.testing.assert_close(found[t, q], run(w, sequence, 3))


def test_padding_counts_for_nothing_nor_does_the_order_of_classes() -> None:
    check_padding_and_order(MANN(Itself(), hidden=5, slots=3, key=3).build(SPEC, EPISODE), [1, 0, 3, 2])


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(MANN(Itself(), hidden=64, slots=8), lr=0.005, steps=300, way=2)
    assert after > 0.8
    assert before < 0.6
