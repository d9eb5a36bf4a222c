"""An LSTM as the learning algorithm: it reads the support with its labels, then a query, and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor, nn

from umeta.metalearners._sequence import SequenceLearner, label_width, scan
from umeta.types import EpisodeSpec, TaskSpec


@dataclass
class LSTMLearner(SequenceLearner):
    """Learning to learn with an LSTM (Hochreiter, Younger, Conwell 2001; for images Santoro et al. 2016's baseline).

    `(h, c) = LSTM(z_i, y_i; h, c)` for each item of the support, in the order of the labels, and then for the query
    with zeros for its label; the logits are a linear layer of h. Each query starts from the state after the support.
    It has the way of its meta-training, and no other.
    """

    hidden: Annotated[int, Gt(0)] = 200
    """numbers in the LSTM's state (200 in Santoro et al.)"""

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module:
        width = label_width(spec, episode)
        return Reader(features + width, self.hidden, width)


class Reader(nn.Module):
    """An LSTM over pairs, and then over one query."""

    def __init__(self, inputs: int, hidden: int, way: int) -> None:
        super().__init__()
        self.cell, self.answer = nn.LSTMCell(inputs, hidden), nn.Linear(hidden, way)

    def forward(self, queries: Tensor, pairs: Tensor, present: Tensor) -> Tensor:
        _, *state = scan(self.cell, pairs, present)
        each = [value.repeat_interleave(queries.shape[1], 0) for value in state]
        return self.answer(self.cell(queries.flatten(0, 1), each)[0]).unflatten(0, queries.shape[:2])
