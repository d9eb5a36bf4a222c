"""What learners share that embed items by one network and compare them there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umeta.metalearners._network import NetworkLearner, for_distance
from umeta.models.functional import Normalisation
from umeta.models.precision import autocast
from umeta.models.vectors import Vectors
from umeta.parts import Model
from umeta.types import Adapted, Batch, Stats, TaskSpec, Theta


@dataclass
class EmbeddingLearner(NetworkLearner):
    """A learner that sees items through one embedding, the same for all tasks.

    Cosines in [-1, 1] cannot fit 20 ways, so for that distance there is a learnt scale, which starts at `scale`.
    """

    model: Model
    """the embedding network"""
    normalisation: Normalisation = "running"
    """what batch normalisation normalises by (umeta/models/functional.py); `batch` is transductive"""

    family: ClassVar[str] = "by comparing embeddings"

    @property
    def task_by_task(self) -> bool:
        """Whether each task has weights or statistics of its own in the network."""
        return self.normalisation in ("batch", "support")

    def on_features(self) -> Self:
        """Return what answers alike where items are the features that `features` gave, once for all tasks.

        Theta stays the same. Not for learners whose features depend on a task.
        """
        learner = replace(self, model=Vectors())
        return learner.build(TaskSpec((self.built.features,)), self.built.episode)

    def embed(self, theta: Theta, x: Tensor, stats: Stats | None = None) -> tuple[Tensor, Stats]:
        """Return embeddings [T, N, features] of x [T, N, ...] and the statistics they were normalised by."""
        with autocast(x.device, self.precision):
            z, used = self._forward(theta, x, stats)
        return for_distance(z, self.distance), used

    def embed_queries(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Return embeddings [T, N, features] of the queries x [T, N, ...]."""
        return self.embed(theta, x, adapted.stats if self.normalisation == "support" else None)[0]

    def _make_parameters(self, weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        scale = {"scale": torch.tensor(self.scale)} if self.distance == "cosine" else {}
        return {**scale, **super()._make_parameters(weights, seed)}

    def _forward(self, theta: Theta, x: Tensor, stats: Stats | None) -> tuple[Tensor, Stats]:
        # Statistics are each task's own, so that what a task gives does not depend on the tasks beside it.
        network = self.built.network
        if self.task_by_task:
            params = {name: value.expand(x.shape[0], *value.shape) for name, value in theta.params.items()}
            return network.per_task(params, x, stats)
        if self.normalisation == "running" and theta.running is None:
            tasks = [network.shared(theta.params, task) for task in x]
            stacked = {name: torch.stack([used[name] for _, used in tasks]) for name in tasks[0][1]}
            return torch.stack([z for z, _ in tasks]), stacked
        z, used = network.shared(theta.params, x.flatten(0, 1), theta.running)
        return z.unflatten(0, x.shape[:2]), used


def embeds_alone(learner: object) -> TypeGuard[EmbeddingLearner]:
    """Whether a learner embeds each item by itself, whatever the task."""
    return isinstance(learner, EmbeddingLearner) and not learner.task_by_task


class WeightedSum(nn.Linear):
    """One number of x [..., n]. Spelt out, as the rounding of a product with a single row varies with its address."""

    def __init__(self, n: int) -> None:
        super().__init__(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight[0]).sum(-1) + self.bias


def members(support: Batch) -> Tensor:
    """Which items are of which class [T, N, way] bool; padding is of none, nor is an item of label -1."""
    return F.one_hot(support.y.clamp(min=0), support.way).bool() & (support.mask & (support.y >= 0))[..., None]


def prototypes(z: Tensor, support: Batch) -> tuple[Tensor, Tensor]:
    """Each class's mean of z [T, N, d], and how many items it is of: [T, way, d] and [T, way]. Equation 1."""
    member = members(support).to(z.dtype)
    counts = member.sum(1)
    return member.mT @ z / counts[..., None].clamp(min=1), counts


def prototype_layer(prototypes: Tensor, distance: str, theta: Theta) -> tuple[Tensor, Tensor]:
    """Return the linear layer that prototypes [T, way, d] are: weight [T, way, d], bias [T, way].

    It answers with minus the squared distances to them, but for |z|^2, which is the same for every class (equation 8);
    for the cosine distance with theta's scale times the cosines, of embeddings that have length 1.
    """
    if distance == "cosine":
        weight = theta.params["scale"] * F.normalize(prototypes, dim=-1)
        return weight, torch.zeros_like(weight[..., 0])
    return 2 * prototypes, -prototypes.square().sum(-1)


def linear(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[T, N, way] of z [T, N, d], weight [T, way, d] and bias [T, way]."""
    return z @ weight.mT + bias[:, None]


def by_class(scores: Tensor, member: Tensor) -> Tensor:
    """Log of the sum of exp(scores [T, N, items]) over each class's items, by `member` [T, items, way]: [T, N, way]."""
    least = torch.finfo(scores.dtype).min  # of a class without items, and not -inf, whose gradient is no number
    return scores[..., None].masked_fill(~member[:, None], least).logsumexp(2)
