"""The graph network against its equations, node by node."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers.toys import Itself, answers, batch, check_padding_and_order, learnt, rand
from torch import Tensor

from umeta.metalearners.gnn import GNN
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import EpisodeSpec, TaskSpec

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


def test_contract() -> None:
    check_metalearner(GNN(Conv4(filters=4), width=4, layers=1))


def closeness(w: dict[str, Tensor], layer: int, apart: Tensor) -> Tensor:
    for i in (0, 2):
        apart = F.leaky_relu(w[f"edges.{layer}.{i}.weight"] @ apart + w[f"edges.{layer}.{i}.bias"])
    return w[f"edges.{layer}.4.weight"][0] @ apart + w[f"edges.{layer}.4.bias"][0]


def test_logits_by_hand() -> None:
    learner = GNN(Itself(), width=4, layers=2).build(SPEC, EPISODE)
    theta = learner.init(0)
    x, query, labels = rand(2, 4, 3), rand(2, 3, 3, seed=1), [[0, 0, 1, 1], [1, 0, 0, 1]]
    found = answers(learner, theta, batch(x, labels, 2), query)
    w = {name.removeprefix("gnn."): p for name, p in theta.params.items()}
    for t in range(2):
        for q in range(3):
            nodes = [torch.cat([x[t, i], F.one_hot(torch.tensor(labels[t][i]), 2)]) for i in range(4)]
            nodes.append(torch.cat([query[t, q], torch.tensor([0.5, 0.5])]))
            for layer, name in enumerate(("layers.0", "layers.1", "answer")):
                new = []
                for i, node in enumerate(nodes):
                    others = [other for j, other in enumerate(nodes) if j != i]
                    share = torch.stack([closeness(w, layer, (node - other).abs()) for other in others]).softmax(0)
                    told = sum(s * other for s, other in zip(share, others, strict=True))
                    new.append(w[f"{name}.weight"] @ torch.cat([told, node]) + w[f"{name}.bias"])
                nodes = [torch.cat([node, F.leaky_relu(one)]) for node, one in zip(nodes, new, strict=True)]
            torch.testing.assert_close(found[t, q], new[-1])


def test_padding_counts_for_nothing_nor_does_the_order_of_items() -> None:
    check_padding_and_order(GNN(Itself(), width=4).build(SPEC, EPISODE), [3, 2, 1, 0])


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(GNN(Itself(), width=16, layers=1), lr=0.01, steps=150, way=2)
    assert after > 0.8
    assert before < 0.6
