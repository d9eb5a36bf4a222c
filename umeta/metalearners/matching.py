"""Matching networks: attention over the support says how much each item's label counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from umeta.metalearners._embedding import EmbeddingLearner, by_class, members
from umeta.metalearners._sequence import scan
from umeta.types import Adapted, Batch, EpisodeSpec, TaskSpec, Theta


@dataclass
class Matching(EmbeddingLearner):
    """Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, arXiv 1606.04080, equation 1).

    The probability of a class is the attention its support items get, `sum_i a(x, x_i) y_i`: the softmax over all of
    the support of the cosine between the embeddings of x and x_i, times a learnt scale (the paper has none, without
    which cosines in [-1, 1] cannot fit 20 ways). A class of more items than another is so the likelier one.

    With `full_context` the embeddings depend on the support (appendix A). Then, as in the paper, answers depend on the
    order of the support's items, but never on the other queries.
    """

    full_context: bool = False
    """read the support with a bidirectional LSTM, and it once more with an LSTM with attention for each query"""
    reads: Annotated[int, Gt(0)] = 3
    """steps of the LSTM with attention (K of the paper)"""
    distance = "cosine"

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module | None:
        return FullContext(features, self.reads) if self.full_context else None

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Return the support's embeddings [T, N, features] and which of them are of which class [T, N, way]."""
        z, stats = self.embed(theta, support.x)
        return Adapted({"items": z, "members": members(support)}, stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]."""
        items, member = adapted.params["items"], adapted.params["members"]
        queries = self.embed_queries(theta, adapted, x)
        if self.full_context:
            queries, items = (F.normalize(z, dim=-1) for z in self._run_module(theta, queries, items, member.any(-1)))
        return by_class(theta.params["scale"] * queries @ items.mT, member)


class FullContext(nn.Module):
    """Fully conditional embeddings of queries [T, Q, d] and items [T, N, d], of which `present` [T, N] are there."""

    def __init__(self, features: int, reads: int) -> None:
        super().__init__()
        self.forwards, self.backwards = nn.LSTMCell(features, features), nn.LSTMCell(features, features)
        self.attention = nn.LSTMCell(2 * features, features)
        self.reads = reads

    def forward(self, queries: Tensor, items: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        after = scan(self.forwards, items, present)[0]
        before = scan(self.backwards, items.flip(1), present.flip(1))[0].flip(1)
        items = items + after + before
        hidden = out = torch.zeros_like(queries).flatten(0, 1)
        for _ in range(self.reads):
            h = out.view_as(queries) + queries
            attention = (h @ items.mT).masked_fill(~present[:, None], -torch.inf).softmax(-1)
            # the paper puts the read items beside h in the state, which for a linear layer is the same
            seen = torch.cat([queries, attention @ items], -1).flatten(0, 1)
            out, hidden = self.attention(seen, (h.flatten(0, 1), hidden))
        return out.view_as(queries) + queries, items
