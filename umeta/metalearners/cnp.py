"""Conditional neural processes: a mean over the support is all that a decoder is told about a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn

from umeta.metalearners._distribution import likelihood
from umeta.metalearners._sequence import SequenceLearner, label_width
from umeta.types import Adapted, Batch, EpisodeSpec, OwnMetaLoss, TaskSpec, Theta


@dataclass
class CNP(SequenceLearner, OwnMetaLoss):
    """Conditional neural processes (CNP, Garnelo et al. 2018, arXiv 1807.01613, section 2).

    `r = mean_i h(x_i, y_i)` over the support, and `g(x, r)` gives the distribution of a query's answer: logits, or of
    numbers mean and log standard deviation. h and g are perceptrons with one hidden layer. The outer loop ascends the
    log-probability of the query. Of classes it has the way of its meta-training, and no other.
    """

    hidden: Annotated[int, Gt(0)] = 128
    """numbers in r and in each hidden layer"""

    family: ClassVar[str] = "by a distribution, not a point"

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module:
        width = label_width(spec, episode)
        return Process(features + width, self.hidden, 2 * width if spec.outputs else width)

    def meta_loss(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, Tensor]:
        """Adapt; return minus the log-probability of the query."""
        adapted = self.adapt(theta, support)
        return adapted, -likelihood(self.predict(theta, adapted, query.x), query)


class Process(nn.Module):
    """The encoder h, the mean, and the decoder g."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.decode, self.answer = nn.Linear(inputs + hidden, hidden), nn.Linear(hidden, outputs)

    def forward(self, queries: Tensor, pairs: Tensor, present: Tensor) -> Tensor:
        each = self.encode(pairs) * present[..., None]
        r = each.sum(1, keepdim=True) / present.sum(1)[:, None, None].clamp(min=1)
        return self.answer(self.decode(torch.cat([queries, r.expand(-1, queries.shape[1], -1)], -1)).relu())
