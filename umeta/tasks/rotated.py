"""Tasks whose classes are turned, which makes new classes out of drawings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.errors import UserError
from umeta.parts import Images
from umeta.runtime.devices import send
from umeta.tasks._wrapped import WrappedTasks, is_square, turn
from umeta.types import Act, Batch, EpisodeSpec, TaskBatch


@dataclass(frozen=True)
class Turned:
    """T tasks, and by how many quarter turns each of their classes is turned."""

    tasks: TaskBatch
    turns: Tensor  # [T, way] int64 below 4

    def support(self, act: Act | None = None, round: int = 0) -> Batch:
        return self._turned(self.tasks.support(act, round))

    def query(self, act: Act | None = None) -> Batch:
        return self._turned(self.tasks.query(act))

    def _turned(self, batch: Batch) -> Batch:
        turns = send(self.turns, batch.y.device).gather(1, batch.y)[..., None, None, None]
        return replace(batch, x=turn(batch.x, turns))


@dataclass(frozen=True)
class Rotated(WrappedTasks):
    """Any task distribution of square images, each class of a task turned by 0, 90, 180 or 270 degrees.

    A character turned is another character (Santoro et al. 2016; Vinyals et al. 2016).
    """

    def __post_init__(self) -> None:
        if not is_square(self.spec):
            raise UserError(f"rotations need square images, these are {self.spec.item_shape}")

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> Turned:
        """Return the tasks of these numbers; task i and its turns depend on (seed, i) only."""
        keys = seeds.key(seeds.key(seed, "turns", np.asarray(indices))[:, None], np.arange(episode.way))
        turns = torch.from_numpy(seeds.below(keys, 4))
        return Turned(self.tasks.sample(indices, episode=episode, seed=seed), turns)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        return [*self.tasks.describe(episode), "each class of a task is turned by 0, 90, 180 or 270 degrees"]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the tasks; the turns follow from seeds."""
        return {"kind": "rotated", "of": self.tasks.save(folder, name)}

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path, source: Images, parts: list[Any]) -> Rotated:
        """Turn the tasks that were loaded already."""
        return cls(parts[0])
