"""Siamese networks: is this pair of items of one class? The class of an item is that of its likeliest pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from umeta.metalearners._embedding import EmbeddingLearner, WeightedSum, by_class, members
from umeta.types import Adapted, Batch, EpisodeSpec, TaskSpec, Theta


@dataclass
class Siamese(EmbeddingLearner):
    """Siamese networks (Koch, Zemel, Salakhutdinov 2015, "Siamese neural networks for one-shot image recognition").

    Two items are of one class with probability `p = sigmoid(sum_j alpha_j |f_j(x) - f_j(x_i)| + bias)` (section 3.1),
    and the probability of a class is in proportion to the mean p of the query with its items. So it is trained by the
    cross-entropy over a task's classes, as all learners here, where the paper draws pairs and has two classes.
    """

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module:
        return WeightedSum(features)

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Return the support's embeddings [T, N, features] and which of them are of which class [T, N, way]."""
        z, stats = self.embed(theta, support.x)
        return Adapted({"items": z, "members": members(support)}, stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]."""
        items, member = adapted.params["items"], adapted.params["members"]
        apart = (self.embed_queries(theta, adapted, x)[:, :, None] - items[:, None]).abs()
        alike = F.logsigmoid(self._run_module(theta, apart))  # [T, N, items]
        return by_class(alike, member) - member.sum(1).clamp(min=1).log()[:, None]
