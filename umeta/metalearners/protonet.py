"""Prototypical networks: a class is the mean of its support embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from umeta.models.pure import Normalisation, Pure
from umeta.types import Adapted, Batch, EpisodeSpec, Model, Stats, TaskSpec, Theta


@dataclass
class ProtoNet:
    """Prototypical networks (ProtoNet, Snell, Swersky, Zemel 2017, arXiv 1703.05175, equations 1 and 2).

    A prototype is the mean embedding of a class's support; the logits of a query are minus its squared Euclidean
    distances to the prototypes, or its cosines with them times a learnt scale (without which cosines in [-1, 1] cannot
    fit 20 ways).
    """

    model: Model
    """the embedding network"""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """squared Euclidean distance, or cosine with a learnt scale that starts at 10"""
    normalisation: Normalisation = "running"
    """what batch normalisation normalises by (umeta/models/pure.py); `batch` is transductive"""
    _net: Pure = field(init=False, repr=False, compare=False)

    def init(self, spec: TaskSpec, episode: EpisodeSpec, seed: int) -> Theta:
        """Random weights, drawn from `seed`."""
        self._net = Pure.build(self.model, spec.item_shape, self.normalisation, seed)
        scale = {"scale": torch.tensor(10.0)} if self.distance == "cosine" else {}
        return Theta(self._net.params(scale))

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Prototypes [T, way, features]; there is nothing to iterate, so `start` and `steps` change nothing."""
        z, stats = self._embed(theta, support.x, None)
        member = F.one_hot(support.y, support.way).to(z.dtype) * support.mask[..., None]  # [T, N, way]
        prototypes = member.mT @ z / member.sum(1)[..., None].clamp(min=1)
        return Adapted({"prototypes": prototypes}, stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]."""
        z, _ = self._embed(theta, x, adapted.stats if self.normalisation == "support" else None)
        prototypes = adapted.params["prototypes"]
        if self.distance == "cosine":
            return theta.params["scale"] * F.normalize(z, dim=-1) @ F.normalize(prototypes, dim=-1).mT
        # |z - c|^2 without |z|^2, which is the same for every class
        return 2 * z @ prototypes.mT - prototypes.square().sum(-1)[:, None]

    def _embed(self, theta: Theta, x: Tensor, stats: Stats | None) -> tuple[Tensor, Stats]:
        """Embeddings [T, N, features] of x [T, N, ...] and the statistics they were normalised by."""
        # Statistics are each task's own, so that what a task gives does not depend on the tasks beside it.
        if self.normalisation in ("batch", "support"):
            params = {name: value.expand(x.shape[0], *value.shape) for name, value in theta.params.items()}
            return self._net.per_task(params, x, stats)
        if self.normalisation == "running" and theta.running is None:
            tasks = [self._net.shared(theta.params, task) for task in x]
            stacked = {name: torch.stack([used[name] for _, used in tasks]) for name in tasks[0][1]}
            return torch.stack([z for z, _ in tasks]), stacked
        z, used = self._net.shared(theta.params, x.flatten(0, 1), theta.running)
        return z.unflatten(0, x.shape[:2]), used
