"""Partitions of an embedding by random hyperplanes: CACTUs' other way to divide it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt

from umeta import seeds
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.parts import Context, Embedder
from umeta.runtime.checkpoints import State
from umeta.tasks.partition import PartitionTasks


@dataclass(frozen=True)
class Hyperplanes:
    """Zones between random hyperplanes, with a margin (CACTUs, Hsu, Levine, Finn 2019, arXiv 1810.02334).

    `ceil(log2 zones)` planes make a partition: a normal `U(-1, 1)^d` scaled to length 1 and a point `U(-0.8, 0.8)^d`,
    which suits embeddings in about [-1, 1], or the origin, for whitened ones. A zone is what lies on the same sides of
    all of them. Items nearer to a plane than `margin`, and zones with fewer than `smallest` members, are left out. A
    partition that keeps fewer than `zones` of them is drawn again, at most `retries` times.
    """

    domain: ClassVar[Literal["image", "env"]] = "image"
    sees_labels: ClassVar[bool] = False

    zones: Annotated[int, Gt(1)] = 20
    """zones that a partition should have: at least the way of meta-training"""
    partitions: Annotated[int, Gt(0)] = 100
    """how many partitions"""
    margin: Annotated[float, Ge(0)] = 0.1
    """distance to the nearest plane, in the embedding's own unit, below which an item is left out"""
    origin: bool = False
    """planes through the origin"""
    smallest: Annotated[int, Gt(0)] = 6
    """members a zone needs to be kept: at least shot + query of meta-training"""
    retries: Annotated[int, Ge(0)] = 20
    """draws after a partition with too few zones; then the best draw is taken"""

    def propose(self, source: UnlabelledImages, ctx: Context, embedder: Embedder | None = None) -> PartitionTasks:
        """Partition the embedded images.

        Raises:
            UserError: no embedding, one that is not numbers, too few images, or no partition with enough zones.
        """
        if embedder is None:
            raise UserError(
                "proposer hyperplanes: needs an embedding to divide; set embedding, such as {name: pixels, whiten: 16}"
            )
        z = embedder.embed(source).cpu().numpy().astype(np.float32, copy=False)
        if len(z) < self.zones * self.smallest:
            raise UserError(
                f"proposer.zones: {self.zones} zones of {self.smallest} images or more need "
                f"{self.zones * self.smallest} images, there are {len(z)}"
            )
        if not np.isfinite(z).all():
            raise UserError("proposer hyperplanes: the embedding holds values that are not numbers")
        found = np.full((self.partitions, len(z)), -1, dtype=np.int32)

        def step(p: int) -> dict[str, float]:
            best = -1
            for draw in range(self.retries + 1):
                labels, kept = self._partition(z, np.random.default_rng(seeds.integer(ctx.seed, "planes", p, draw)))
                if kept > best:
                    found[p], best = labels, kept
                if best >= self.zones:
                    break
            return {"kept": float(best)}

        def save() -> State:
            return {"partitions": torch.from_numpy(found)}

        def load(state: State) -> None:
            found[:] = state["partitions"].numpy()

        ctx.loop("hyperplanes", self.partitions, step, save, load)
        tasks = PartitionTasks(source.pixels, found)
        kept = tasks.usable(self.zones, self.smallest)
        if kept.max() < self.zones:
            raise UserError(
                f"proposer hyperplanes: the best of {self.partitions} partitions has {kept.max()} zones of "
                f"{self.smallest} images or more, not {self.zones}; lower margin (now {self.margin:g}, where the "
                f"embedding's standard deviation is {z.std():.2g}), zones or smallest, or set origin=true if it is "
                "whitened"
            )
        if few := int((kept < self.zones).sum()):
            ctx.note(f"hyperplanes: {few} of {self.partitions} partitions have fewer than {self.zones} zones")
        return tasks

    def _partition(self, z: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, int]:
        """Return the zone of each item [n], -1 where it is left out, and how many zones were kept."""
        planes, d = math.ceil(math.log2(self.zones)), z.shape[1]
        normals = draw.uniform(-1, 1, (planes, d)).astype(np.float32)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        points = 0 if self.origin else draw.uniform(-0.8, 0.8, (planes, d)).astype(np.float32)
        distances = z @ normals.T - (points * normals).sum(1)  # [n, planes], signed
        labels = (distances > 0) @ (1 << np.arange(planes))
        apart = np.abs(distances).min(1) >= self.margin
        large = np.bincount(labels[apart], minlength=1 << planes) >= self.smallest
        return np.where(apart & large[labels], labels, -1).astype(np.int32), int(large.sum())
