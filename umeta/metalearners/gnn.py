"""A graph network: items and the query are nodes, how much they tell each other is learnt, and labels flow to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from umeta.metalearners._embedding import WeightedSum
from umeta.metalearners._sequence import SequenceLearner, label_width
from umeta.types import EpisodeSpec, TaskSpec


@dataclass
class GNN(SequenceLearner):
    """Few-shot learning with graph neural networks (GNN, Garcia, Bruna 2018, arXiv 1711.04043, section 4).

    Nodes are embeddings beside labels, the query's with equal parts of every class. A layer has an adjacency
    `A_ij = softmax_j g(|x_i - x_j|)` over the other nodes, with g a perceptron, and puts `rho(A x W_A + x W_1)` beside
    x; the last one answers at the query's node. Each query has a graph of its own, so none sees another, and the order
    of the support is of no matter. It has the way of its meta-training, and no other.
    """

    width: Annotated[int, Gt(0)] = 48
    """numbers that each layer adds to a node, and in each hidden layer of g"""
    layers: Annotated[int, Gt(0)] = 2
    """before the last"""

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module:
        return Graph(features, label_width(spec, episode), self.width, self.layers)


class Graph(nn.Module):
    """Layers of learnt adjacency and of a convolution by it; labels are the last `way` numbers of a node."""

    def __init__(self, features: int, way: int, width: int, layers: int) -> None:
        super().__init__()
        nodes = [features + way + i * width for i in range(layers + 1)]
        self.features, self.way = features, way
        rho = nn.LeakyReLU()
        self.edges = nn.ModuleList(
            nn.Sequential(nn.Linear(n, width), rho, nn.Linear(width, width), rho, WeightedSum(width)) for n in nodes
        )
        self.layers = nn.ModuleList(nn.Linear(2 * n, width) for n in nodes[:-1])
        self.answer = nn.Linear(2 * nodes[-1], way)

    def forward(self, queries: Tensor, pairs: Tensor, present: Tensor) -> Tensor:
        asked = queries + F.pad(queries.new_full((self.way,), 1 / self.way), (self.features, 0))
        x = torch.cat([pairs[:, None].expand(-1, queries.shape[1], -1, -1), asked[:, :, None]], 2)
        others = F.pad(present, (0, 1), value=True)[:, None, None]
        others = others & ~torch.eye(x.shape[2], dtype=torch.bool, device=x.device)
        for edge, layer in zip(self.edges, [*self.layers, self.answer], strict=True):
            scores = edge((x[:, :, :, None] - x[:, :, None]).abs()).masked_fill(~others, torch.finfo(x.dtype).min)
            new = layer(torch.cat([scores.softmax(-1) @ x, x], -1))
            x = torch.cat([x, F.leaky_relu(new)], -1)
        return new[:, :, -1]
