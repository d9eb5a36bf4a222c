"""Meta networks: fast weights made of the gradients that each labelled item gives, remembered by what it looks like."""

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
class MetaNet(SequenceLearner):
    """Meta networks (MetaNet, Munkhdalai, Yu 2017, arXiv 1703.00837, section 3 and algorithm 1).

    A slow layer W answers each item of the support, and a perceptron m makes of every number of the loss's gradient one
    of fast weights, `W*_i = m(grad_W L(W z_i, y_i))`. They are remembered under a key r_i, a linear layer of z_i. A
    query reads them by attention over cosines, `W* = sum_i softmax_i(c cos(r, r_i)) W*_i`, and is answered by both,
    `W z + W* z` (layer augmentation, section 3.3). It has the way of its meta-training, and no other.

    Unlike the paper only the last layer has fast weights, the embedding has none of its own, and c is learnt. Of
    numbers to predict the loss is half the squared error.
    """

    hidden: Annotated[int, Gt(0)] = 20
    """numbers in the hidden layer of m"""
    key: Annotated[int, Gt(0)] = 64
    """numbers in a key"""

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module:
        return FastWeights(features, label_width(spec, episode), self.hidden, self.key, bool(spec.outputs))


class FastWeights(nn.Module):
    """A linear layer with slow weights, and fast ones from a memory."""

    def __init__(self, features: int, way: int, hidden: int, key: int, numbers: bool) -> None:
        super().__init__()
        self.numbers, self.way = numbers, way
        self.answer, self.key = nn.Linear(features, way), nn.Linear(features, key)
        self.fast = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), WeightedSum(hidden))
        self.strength = nn.Parameter(torch.tensor(10.0))

    def forward(self, queries: Tensor, pairs: Tensor, present: Tensor) -> Tensor:
        z, labels = pairs[..., : -self.way], pairs[..., -self.way :]
        x = queries[..., : -self.way]
        said = self.answer(z)
        off = (said if self.numbers else said.softmax(-1)) - labels  # the gradient by what was said
        gradients = torch.cat([off[..., None] * z[:, :, None], off[..., None]], -1)  # [T, N, way, features + 1]
        fast = self.fast(gradients[..., None])
        near = F.normalize(self.key(x), dim=-1) @ F.normalize(self.key(z), dim=-1).mT  # [T, Q, N]
        share = (self.strength * near).masked_fill(~present[:, None], -torch.inf).softmax(-1)
        both = (share @ fast.flatten(2)).unflatten(-1, (self.way, -1))  # [T, Q, way, features + 1]
        return self.answer(x) + (both * F.pad(x, (0, 1), value=1.0)[:, :, None]).sum(-1)
