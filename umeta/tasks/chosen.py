"""Some of the tasks of a distribution, as they were chosen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from umeta import seeds
from umeta.errors import UserError
from umeta.parts import Images
from umeta.runtime import artifacts
from umeta.tasks._wrapped import WrappedTasks
from umeta.types import EpisodeSpec, TaskBatch


@dataclass(frozen=True)
class Chosen(WrappedTasks):
    """Tasks of these numbers and this seed, again and again, with the way that they were chosen at."""

    numbers: np.ndarray  # [k] int64
    seed: int
    way: int

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> TaskBatch:
        """Return the tasks of these numbers; task i depends on (seed, i) only.

        Raises:
            UserError: another way, at which these would be other tasks.
        """
        if episode.way != self.way:
            raise UserError(f"tasks: they were chosen at {self.way} ways; set proposer.way to train.way, {episode.way}")
        which = seeds.below(seeds.key(seed, "chosen", np.asarray(indices)), len(self.numbers))
        return self.tasks.sample(self.numbers[which], episode=episode, seed=self.seed)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        return [*self.tasks.describe(episode), f"chosen: {len(self.numbers)} of these tasks"]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the numbers, and the tasks."""
        file = f"{name}-chosen.npy"
        artifacts.write_array(folder / file, self.numbers)
        return {"kind": "chosen", "file": file, "seed": self.seed, "way": self.way, "of": self.tasks.save(folder, name)}

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path, source: Images, parts: list[Any]) -> Chosen:
        """Choose from the tasks that were loaded already."""
        numbers = np.array(artifacts.read_array(folder / description["file"]))
        return cls(parts[0], numbers, description["seed"], description["way"])
