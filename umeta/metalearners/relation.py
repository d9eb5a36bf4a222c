"""Relation networks: how alike two embeddings are is learnt, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from umeta.metalearners._embedding import EmbeddingLearner, WeightedSum, prototypes
from umeta.models.functional import Normalisation
from umeta.parts import Model
from umeta.types import Adapted, Batch, EpisodeSpec, TaskSpec, Theta


@dataclass
class Relation(EmbeddingLearner):
    """Relation networks (Sung, Yang, Zhang, Xiang, Torr, Hospedales 2018, arXiv 1711.06025, equation 1).

    The logit of a class is `g(concat(f(class), f(x)))`: a network g on the class's embedding beside the query's. A
    class's embedding is the mean of its items' (the paper's sum, but as large for any number of items). What differs:
    g sees vectors, not maps, and is trained by cross-entropy, as all learners here, not by squared errors of a sigmoid.
    """

    model: Model
    """the embedding network"""
    hidden: Annotated[int, Gt(0)] = 64
    """width of the two hidden layers of g"""
    normalisation: Normalisation = "running"
    """what batch normalisation normalises by (umeta/models/pure.py); `batch` is transductive"""

    def init(self, spec: TaskSpec, episode: EpisodeSpec, seed: int) -> Theta:
        """Random weights, drawn from `seed`."""
        return self._drawn(spec, seed, self._comparison)

    def _comparison(self, features: int) -> nn.Module:
        first, second = nn.Linear(2 * features, self.hidden), nn.Linear(self.hidden, self.hidden)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), WeightedSum(self.hidden))

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """The classes' mean embeddings [T, way, features]."""
        z, stats = self._embed(theta, support.x)
        return Adapted({"prototypes": prototypes(z, support)[0]}, stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]."""
        queries, classes = self._embed_queries(theta, adapted, x)[:, :, None], adapted.params["prototypes"][:, None]
        return self._apply(theta, torch.cat(torch.broadcast_tensors(classes, queries), -1))
