"""Relation networks: how alike two embeddings are is learnt, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from umeta.metalearners._embedding import EmbeddingLearner, WeightedSum, prototypes
from umeta.types import Adapted, Batch, EpisodeSpec, TaskSpec, Theta


@dataclass
class Relation(EmbeddingLearner):
    """Relation networks (Sung, Yang, Zhang, Xiang, Torr, Hospedales 2018, arXiv 1711.06025, equation 1).

    The logit of a class is `g(concat(f(class), f(x)))`: a network g on the class's embedding beside the query's. A
    class's embedding is the mean of its items' (the paper's sum, but as large for any number of items). What differs:
    g sees vectors, not maps, and is trained by cross-entropy, as all learners here, not by squared errors of a sigmoid.
    """

    hidden: Annotated[int, Gt(0)] = 64
    """width of the two hidden layers of g"""

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module:
        first, second = nn.Linear(2 * features, self.hidden), nn.Linear(self.hidden, self.hidden)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), WeightedSum(self.hidden))

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Return the classes' mean embeddings [T, way, features]."""
        z, stats = self.embed(theta, support.x)
        return Adapted({"prototypes": prototypes(z, support)[0]}, stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]."""
        queries, classes = self.embed_queries(theta, adapted, x)[:, :, None], adapted.params["prototypes"][:, None]
        return self._run_module(theta, torch.cat(torch.broadcast_tensors(classes, queries), -1))
