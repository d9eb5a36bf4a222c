"""CAMeLU: a transformer completes a sequence of labelled items with the label of the query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from umeta.metalearners._sequence import SequenceLearner, label_width
from umeta.types import EpisodeSpec, TaskSpec


@dataclass
class CAMeLU(SequenceLearner):
    """In-context meta-learning without labels (CAMeLU, Vettoruzzo et al. 2024, arXiv 2405.16124, section 3).

    A token for each item of the support, its embedding beside a learnt vector of its label, and one for the query,
    whose label is a learnt unknown, go through a transformer encoder without positions: the support's order is of no
    matter.
    A linear layer of the query's last token is the answer. It has the way of its meta-training, and no other.

    Unlike the paper, the embedding is learnt with the rest and not a frozen one of ImageNet, and the support's tokens
    do not look at the query, so that one pass answers all queries, of which none sees another.
    """

    width: Annotated[int, Gt(0)] = 128
    """numbers in a token; a multiple of 4, the heads"""
    layers: Annotated[int, Gt(0)] = 4
    """of the transformer (8 in the paper)"""

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module:
        return InContext(features, label_width(spec, episode), self.width, self.layers)


class InContext(nn.Module):
    """A transformer encoder, in which queries see the pairs and themselves, and pairs see pairs."""

    def __init__(self, features: int, way: int, width: int, layers: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.features = heads, features
        self.item, self.label = nn.Linear(features, width // 2), nn.Linear(way, width // 2)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.answer = nn.Linear(width, way)

    def forward(self, queries: Tensor, pairs: Tensor, present: Tensor) -> Tensor:
        items, labels = torch.cat([pairs, queries], 1).split([self.features, self.label.in_features], -1)
        x = torch.cat([self.item(items), self.label(labels)], -1)  # the label's bias alone is the unknown one
        seen = F.pad(present, (0, queries.shape[1]))[:, None] | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        return self.answer(self.encoder(x, ~seen.repeat_interleave(self.heads, 0))[:, pairs.shape[1] :])
