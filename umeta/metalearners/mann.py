"""A memory-augmented network: a controller writes labelled items to a memory, and finds them again by likeness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from umeta.metalearners._sequence import SequenceLearner, label_width
from umeta.types import EpisodeSpec, TaskSpec, along

DECAY = 0.99  # of how much a slot counts as used (gamma)


@dataclass
class MANN(SequenceLearner):
    """Memory-augmented neural networks (MANN, Santoro et al. 2016, arXiv 1605.06065, section 3.1).

    An LSTM reads (item, label, what it read last) and gives a key k. It reads the memory by a softmax w_r over cosines
    with k, and then writes k by `w_w = sigmoid(a) w_r' + (1 - sigmoid(a)) w_lu`, of what it read at the step before
    and of the slot least used, which is wiped. A linear layer of state and read is the answer. The support is read in
    the order of its labels, and each query starts from the state after it. It has the way of its meta-training.

    Unlike the paper, an item comes with its own label and not with that of the item before; there is one head that
    reads, not four; and cosines have a learnt strength, without which many slots are read alike.
    """

    hidden: Annotated[int, Gt(0)] = 200
    """numbers in the controller's state"""
    slots: Annotated[int, Gt(0)] = 32
    """of the memory (128 in the paper)"""
    key: Annotated[int, Gt(0)] = 40
    """numbers in a slot"""

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module:
        width = label_width(spec, episode)
        return Controller(features + width, self.hidden, self.slots, self.key, width)


class Controller(nn.Module):
    """An LSTM with a memory whose least used slot is written to."""

    def __init__(self, inputs: int, hidden: int, slots: int, key: int, outputs: int) -> None:
        super().__init__()
        self.slots = slots
        self.cell, self.key = nn.LSTMCell(inputs + key, hidden), nn.Linear(hidden, key)
        self.gates, self.answer = nn.Linear(hidden, 2), nn.Linear(hidden + key, outputs)

    def forward(self, queries: Tensor, pairs: Tensor, present: Tensor) -> Tensor:
        key, hidden = self.key.out_features, self.cell.hidden_size
        state = [queries.new_zeros(len(queries), *shape) for shape in ((hidden,), (hidden,), (key,), (self.slots,))]
        state += [state[3], queries.new_full((len(queries), self.slots, key), 1e-6)]
        for item, there in zip(pairs.unbind(1), present.unbind(1), strict=True):
            after = zip(self.step(item, *state), state, strict=True)
            state = [torch.where(along(there, old), new, old) for new, old in after]
        each = [value.repeat_interleave(queries.shape[1], 0) for value in state]
        h, _, read, *_ = self.step(queries.flatten(0, 1), *each)
        return self.answer(torch.cat([h, read], -1)).unflatten(0, queries.shape[:2])

    def step(
        self, x: Tensor, h: Tensor, c: Tensor, read: Tensor, weights: Tensor, usage: Tensor, memory: Tensor
    ) -> list[Tensor]:
        """Return the state after an item x [n, d]: h and c, what was read and by which weights, usage, and memory."""
        h, c = self.cell(torch.cat([x, read], -1), (h, c))
        key, (strength, gate) = self.key(h).tanh(), self.gates(h).split(1, -1)
        cosines = (F.normalize(memory, dim=-1) @ F.normalize(key, dim=-1)[..., None])[..., 0]
        before, weights = weights, ((1 + F.softplus(strength)) * cosines).softmax(-1)
        read = (weights[:, None] @ memory)[:, 0]
        least = F.one_hot(usage.argmin(-1), self.slots).to(x.dtype)
        write = gate.sigmoid() * before + (1 - gate.sigmoid()) * least
        memory = memory * (1 - least)[..., None] + write[..., None] * key[:, None]
        return [h, c, read, weights, DECAY * usage + weights + write, memory]
