"""The supervised oracle: tasks from the true training labels, an upper reference for every proposer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from umeta.benchmarks.labelled import LabelledImages
from umeta.parts import Embedder
from umeta.runtime.loop import RunContext
from umeta.tasks.partition import PartitionTasks


@dataclass(frozen=True)
class Oracle:
    """Tasks from true training labels: supervised meta-learning, as CACTUs' oracle rows (Hsu et al. 2019, table 1)."""

    domain: ClassVar[Literal["image", "env"]] = "image"
    sees_labels: ClassVar[bool] = True

    def propose(self, source: LabelledImages, ctx: RunContext, embedder: Embedder | None = None) -> PartitionTasks:
        """One partition: the true classes."""
        return source.tasks()
