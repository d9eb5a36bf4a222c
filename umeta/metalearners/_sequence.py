"""What learners share that read the support as a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umeta.errors import UserError
from umeta.metalearners._embedding import EmbeddingLearner, members
from umeta.types import Adapted, Batch, EpisodeSpec, TaskSpec, Theta


@dataclass
class SequenceLearner(EmbeddingLearner):
    """A learner whose own module answers queries after a sequence of (embedding, one-hot label) pairs.

    The pairs are sorted by label, so that of the support's order only that within a class matters, and padding is
    first. Labels have places in the sequence and in the answer, so there is one way only. Of a regression the numbers y
    take the place of the labels, and the pairs stand as they come.

    The module takes queries [T, Q, d + way] (labels zero), pairs [T, N, d + way] and which are there [T, N]; its last
    layer is `answer`.
    """

    family: ClassVar[str] = "by reading the support"
    regresses: ClassVar[bool] = True

    @property
    def one_way(self) -> bool:
        """Whether it can do the way of its meta-training alone."""
        return True

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Read the sequence: pairs [T, N, features + way] and which of them are there [T, N].

        Raises:
            UserError: a way other than that of meta-training.
        """
        outputs, width = self.built.spec.outputs, self._width(theta)
        if width != support.way and not outputs:
            name = type(self).__name__.lower()
            raise UserError(f"{name}: it was meta-trained for {width} ways, not {support.way}; meta-train at this way")
        z, stats = self.embed(theta, support.x)
        if outputs:
            labels, place = support.y * support.mask[..., None], support.mask.long()
        else:
            labels, place = members(support), torch.where(support.mask, support.y, -1)
        pairs = torch.cat([z, labels.to(z.dtype)], -1)
        order = place.argsort(dim=1, stable=True)
        pairs = pairs.take_along_dim(order[..., None], 1)
        return Adapted({"pairs": pairs, "present": support.mask.gather(1, order)}, stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Return logits [T, N, way] of x [T, N, ...], or what the tasks ask to predict."""
        queries = F.pad(self.embed_queries(theta, adapted, x), (0, self._width(theta)))
        return self._run_module(theta, queries, adapted.params["pairs"], adapted.params["present"])

    def _width(self, theta: Theta) -> int:
        return self.built.spec.outputs or len(theta.params[self._own("answer.bias")])


def label_width(spec: TaskSpec, episode: EpisodeSpec) -> int:
    """Count the numbers in a label, and so in an answer."""
    return spec.outputs or episode.way


def scan(cell: nn.LSTMCell, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run an LSTM over x [T, N, d]; return its outputs [T, N, hidden] and its last state, h and c [T, hidden].

    An item that is not `present` [T, N] leaves the state as it was.
    """
    h = c = x.new_zeros(len(x), cell.hidden_size)
    out = []
    for item, there in zip(x.unbind(1), present[..., None].unbind(1), strict=True):
        h, c = (torch.where(there, new, old) for new, old in zip(cell(item, (h, c)), (h, c), strict=True))
        out.append(h)
    return torch.stack(out, 1), h, c
