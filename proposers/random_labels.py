"""Classes at random: the floor for every proposer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Gt

from umeta import seeds
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.parts import Context, Embedder
from umeta.tasks.partition import PartitionTasks


@dataclass(frozen=True)
class RandomLabels:
    """Each image in one of k classes at random (a baseline of CACTUs, Hsu, Levine, Finn 2019, arXiv 1810.02334).

    What a learner gains from such tasks, it gains from meta-training as such and not from what was proposed.
    """

    domain: ClassVar[Literal["image", "env"]] = "image"
    sees_labels: ClassVar[bool] = False

    k: Annotated[int, Gt(1)] = 500
    """classes per partition"""
    partitions: Annotated[int, Gt(0)] = 100
    """how many partitions"""

    def propose(self, source: UnlabelledImages, ctx: Context, embedder: Embedder | None = None) -> PartitionTasks:
        """Needs no embedding, and takes no time; raise UserError for more classes than images."""
        if len(source) < self.k:
            raise UserError(f"proposer.k: {self.k} classes need at least as many images, there are {len(source)}")
        keys = seeds.key(ctx.seed, "random labels", np.arange(self.partitions)[:, None], np.arange(len(source)))
        return PartitionTasks(source.pixels, seeds.below(keys, self.k).astype(np.int32))
