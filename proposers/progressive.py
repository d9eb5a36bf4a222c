"""Clusters of what the learner already tells apart, and single images beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le

from umeta import seeds
from umeta.augment.suited import suited
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.parts import Augment, Context, Embedder
from umeta.runtime.checkpoints import State
from umeta.tasks.clustering import keep_core, kmeans, reciprocal, whiten
from umeta.tasks.instances import Augmented, InstanceTasks
from umeta.tasks.mixture import Mixture
from umeta.tasks.partition import PartitionTasks
from umeta.tasks.rotated import Rotated
from umeta.types import TaskDistribution


@dataclass(frozen=True)
class Progressive:
    """Augmented clusters of an embedding, mixed with instance tasks (after UFLST, Ji et al. 2020; C3LR, Shirekar 2022).

    With `embedding: learner`, or in a later one of a config's `rounds`, the embedding is the learner's own, so that
    better tasks and a better learner take turns. Items that clearly belong to no cluster are left to the instance
    tasks.
    """

    domain: ClassVar[Literal["image", "env"]] = "image"
    sees_labels: ClassVar[bool] = False

    neighbours: list[Annotated[int, Gt(0)]] = field(default_factory=lambda: [10, 20])
    """a partition for each number, by items that share that many mutual nearest neighbours; outliers are dropped"""
    similarity: Annotated[float, Gt(0), Le(1)] = 0.45
    """least Jaccard similarity of two items' mutual neighbours that joins them"""
    k: list[Annotated[int, Gt(1)]] = field(default_factory=list)
    """numbers of clusters of further partitions, by k-means"""
    core: Annotated[float, Gt(0), Le(1)] = 0.8
    """share of each k-means cluster that is kept, the members nearest to its mean"""
    components: Annotated[int, Gt(0)] = 256
    """principal components of the embedding, whitened and scaled to length 1, that are clustered"""
    instances: Annotated[float, Ge(0), Le(1)] = 0.4
    """share of the tasks whose classes are single images"""
    augment: Augment | None = None
    """what makes a view, `drawing` or `photo`; by default drawing for grey images and photo for colour"""
    rotations: bool = False
    """turn each class by 0, 90, 180 or 270 degrees (for drawings, whose meaning turns with them)"""

    def __post_init__(self) -> None:
        if not self.neighbours and not self.k:
            raise ValueError("expected at least one number in neighbours or k")

    def propose(self, source: UnlabelledImages, ctx: Context, embedder: Embedder | None = None) -> Augmented:
        """Cluster the embedded images.

        Raises:
            UserError: no embedding, or more clusters than images.
        """
        if embedder is None:
            raise UserError(
                "proposer progressive: needs an embedding to cluster; use it in rounds, or set embedding=learner"
            )
        z = embedder.embed(source).cpu().numpy().astype(np.float32, copy=False)
        if len(z) < max(self.k, default=0):
            raise UserError(f"proposer.k: {max(self.k)} clusters need at least as many images, there are {len(z)}")
        if not np.isfinite(z).all():
            raise UserError("proposer progressive: the embedding holds values that are not numbers")
        z = whiten(z, self.components)
        count = len(self.neighbours) + len(self.k)
        found = np.full((count, len(z)), -1, dtype=np.int32)

        def step(p: int) -> dict[str, float]:
            if p < len(self.neighbours):
                found[p] = reciprocal(z, self.neighbours[p], self.similarity)
            else:
                k = self.k[p - len(self.neighbours)]
                seed = seeds.integer(ctx.seed, "progressive", p)
                found[p] = keep_core(*kmeans(z, k, 20, seed, ctx.device), self.core)
            return {"kept": float((found[p] >= 0).mean()), "clusters": float(found[p].max() + 1)}

        def save() -> State:
            return {"partitions": torch.from_numpy(found)}

        def load(state: State) -> None:
            found[:] = state["partitions"].numpy()

        ctx.loop("progressive", count, step, save, load)
        if (found < 0).all():
            raise UserError("proposer progressive: no clusters found; lower similarity, or set k")
        weights = (1 - self.instances, self.instances)
        mixed: TaskDistribution = Mixture(weights, (PartitionTasks(source.pixels, found), InstanceTasks(source.pixels)))
        return Augmented(Rotated(mixed) if self.rotations else mixed, self.augment or suited(source.item_shape))
