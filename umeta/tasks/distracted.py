"""Tasks whose support shows more than the classes that are asked about, without saying what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta.parts import Images
from umeta.tasks._wrapped import WrappedTasks
from umeta.types import Act, Batch, EpisodeSpec, TaskBatch


@dataclass(frozen=True)
class Unsorted:
    """T tasks of more than `way` classes, of which the others are distractors."""

    tasks: TaskBatch
    episode: EpisodeSpec

    def support(self, act: Act | None = None, round: int = 0) -> Batch:
        batch = self.tasks.support(act, round)
        return replace(batch, y=torch.where(batch.y < self.episode.way, batch.y, -1), way=self.episode.way)

    def query(self, act: Act | None = None) -> Batch:
        batch, way = self.tasks.query(act), self.episode.way
        kept = (batch.y >= way).to(torch.int8).sort(dim=1, stable=True).indices[:, : way * self.episode.query]
        rows = torch.arange(len(batch), device=kept.device)[:, None]
        return replace(batch.map_tensors(lambda value: value[rows, kept]), way=way)


@dataclass(frozen=True)
class Distracted(WrappedTasks):
    """Any task distribution on images, whose supports also show items of further classes, with the label -1.

    As Ren et al. 2018 (arXiv 1803.00676, section 2.2): nobody asks about them, and nobody says so.
    """

    classes: int

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> Unsorted:
        """Return the tasks of these numbers: the classes beyond the way of tasks of a larger one are distractors."""
        larger = replace(episode, way=episode.way + self.classes)
        return Unsorted(self.tasks.sample(indices, episode=larger, seed=seed), episode)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        larger = replace(episode, way=episode.way + self.classes)
        return [*self.tasks.describe(larger), f"distractors: {self.classes} classes in each support"]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the tasks that it is made of."""
        return {"kind": "distracted", "classes": self.classes, "of": self.tasks.save(folder, name)}

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path, source: Images, parts: list[Any]) -> Distracted:
        """Distract the tasks that were loaded already."""
        return cls(parts[0], description["classes"])
