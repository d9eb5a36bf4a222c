"""k-means partitions of an embedding: CACTUs' proposer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt

from umeta import seeds
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.parts import Augment, Context, Embedder
from umeta.runtime.checkpoints import State
from umeta.tasks.clustering import kmeans
from umeta.tasks.instances import Augmented
from umeta.tasks.partition import PartitionTasks
from umeta.types import TaskDistribution


@dataclass(frozen=True)
class KMeans:
    """k-means over a randomly scaled embedding (CACTUs, Hsu, Levine, Finn 2019, arXiv 1810.02334, section 2.2).

    Partition 0 clusters the embedding Z as it is; each other one clusters `Z * w` with `w ~ U(0, 1)^d` of its own,
    which makes other dimensions matter. Clusters with fewer than `smallest` members are dropped and their items unused
    in that partition. A partition that keeps less than the share `keep` of its clusters is drawn again, at most
    `retries` times.
    """

    domain: ClassVar[Literal["image", "env"]] = "image"
    sees_labels: ClassVar[bool] = False

    k: Annotated[int, Gt(1)] = 500
    """clusters per partition"""
    partitions: Annotated[int, Gt(0)] = 100
    """how many partitions"""
    iterations: Annotated[int, Gt(0)] = 20
    """of Lloyd's algorithm"""
    smallest: Annotated[int, Gt(0)] = 6
    """members a cluster needs to be kept: at least shot + query of meta-training"""
    keep: Annotated[float, Ge(0)] = 0.75
    """share of the clusters that must be large enough"""
    retries: Annotated[int, Ge(0)] = 3
    """draws after a partition that kept too few; then the best draw is taken"""
    augment: Augment | None = None
    """views of the images that tasks are made of; none, as CACTUs has it for Omniglot"""

    def propose(self, source: UnlabelledImages, ctx: Context, embedder: Embedder | None = None) -> TaskDistribution:
        """Partition the embedded images.

        Raises:
            UserError: no embedding, more clusters than images, or an embedding that is not numbers.
        """
        if embedder is None:
            raise UserError("proposer kmeans: needs an embedding to cluster; set embedding, such as embedding=pixels")
        z = embedder.embed(source).cpu().numpy().astype(np.float32, copy=False)
        if len(z) < self.k:
            raise UserError(f"proposer.k: {self.k} clusters need at least as many images, there are {len(z)}")
        if not np.isfinite(z).all():
            raise UserError("proposer kmeans: the embedding holds values that are not numbers")
        found = np.full((self.partitions, len(z)), -1, dtype=np.int32)

        def step(p: int) -> dict[str, float]:
            best = -1
            for draw in range(self.retries + 1):
                labels, kept = self._partition(z, p, seeds.integer(ctx.seed, "kmeans", p, draw), ctx.device)
                if kept > best:
                    found[p], best = labels, kept
                if best >= self.keep * self.k:
                    break
            return {"kept": float(best)}

        def save() -> State:
            return {"partitions": torch.from_numpy(found)}

        def load(state: State) -> None:
            found[:] = state["partitions"].numpy()

        ctx.loop("kmeans", self.partitions, step, save, load)
        tasks = PartitionTasks(source.pixels, found)
        return Augmented(tasks, self.augment) if self.augment else tasks

    def _partition(self, z: np.ndarray, p: int, seed: int, device: torch.device | str) -> tuple[np.ndarray, int]:
        """One clustering: labels [n], -1 for members of dropped clusters, and how many clusters were kept."""
        scale = 1 if p == 0 else np.random.default_rng(seed).random(z.shape[1], dtype=np.float32)
        labels, _ = kmeans(z * scale, self.k, self.iterations, seed, device)
        large = np.bincount(labels, minlength=self.k) >= self.smallest
        labels[~large[labels]] = -1
        return labels, int(large.sum())
