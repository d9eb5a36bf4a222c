"""SNAIL: convolutions over time and attention as the learning algorithm."""

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
class SNAIL(SequenceLearner):
    """Simple neural attentive learner (SNAIL, Mishra, Rohaninejad, Chen, Abbeel 2018, arXiv 1707.03141, section 3).

    A sequence of (embedding, label) pairs, in the order of the labels, ends with a query without label. Layers of dense
    convolutions over time, `[x, tanh(W [x_t, x_t-r]) sigmoid(V [x_t, x_t-r])]` for r = 1, 2, 4, ..., alternate with
    causal attention, `[x, softmax(q k' / sqrt(keys)) v]` (figure 2); a linear layer of the last item is the answer.
    All queries stand at the end and none sees another. It has the way of its meta-training, and no other.
    """

    filters: Annotated[int, Gt(3)] = 128
    """channels that each convolution adds; the three attentions add a quarter, as many, and twice as many"""
    reach: Annotated[int, Gt(1)] = 32
    """how far back convolutions see (the paper: all of the sequence, way * shot + 1)"""

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module:
        return Stack(features, label_width(spec, episode), self.filters, self.reach)


class Stack(nn.Module):
    """Attention, convolutions, attention, convolutions, attention, answer."""

    def __init__(self, features: int, way: int, filters: int, reach: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        channels = features + way
        dilations = [2**i for i in range((reach - 1).bit_length())]
        for i, values in enumerate((filters // 4, filters, 2 * filters)):
            for dilation in dilations if i else []:
                self.layers.append(Convolution(channels, filters, dilation))
                channels += filters
            self.layers.append(Attention(channels, 2 * values, values))
            channels += values
        self.answer = nn.Linear(channels, way)

    def forward(self, queries: Tensor, pairs: Tensor, present: Tensor) -> Tensor:
        # One sequence of the support and all queries, each of which has the place after the last pair.
        n = pairs.shape[1]
        x = torch.cat([pairs, queries], 1)
        place = torch.arange(x.shape[1], device=x.device).clamp(max=n)
        there = F.pad(present, (0, queries.shape[1]), value=True)
        itself = torch.eye(len(place), dtype=torch.bool, device=x.device)
        seen = (place > place[:, None]).mT & there[:, None] | itself  # [T, items, items]: earlier pairs, and itself
        for layer in self.layers:
            x = layer(x * there[..., None], place, seen)  # padding, which is first, is the zeros before the sequence
        return self.answer(x[:, n:])


class Convolution(nn.Module):
    """Gated causal convolution of width two over time, beside its input."""

    def __init__(self, channels: int, filters: int, dilation: int) -> None:
        super().__init__()
        self.both, self.dilation = nn.Linear(2 * channels, 2 * filters), dilation

    def forward(self, x: Tensor, place: Tensor, seen: Tensor) -> Tensor:
        back = place - self.dilation
        before = x[:, back.clamp(min=0)] * (back >= 0)[:, None]
        new, gate = self.both(torch.cat([x, before], -1)).chunk(2, -1)
        return torch.cat([x, new.tanh() * gate.sigmoid()], -1)


class Attention(nn.Module):
    """What items see by attention, beside them."""

    def __init__(self, channels: int, keys: int, values: int) -> None:
        super().__init__()
        self.widths = [keys, keys, values]
        self.all = nn.Linear(channels, sum(self.widths))

    def forward(self, x: Tensor, place: Tensor, seen: Tensor) -> Tensor:
        query, key, value = self.all(x).split(self.widths, -1)
        return torch.cat([x, F.scaled_dot_product_attention(query, key, value, seen)], -1)
