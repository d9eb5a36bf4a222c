"""Tasks that come one after the other, each once, and are gone over again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from umeta import seeds
from umeta.parts import Images
from umeta.tasks._wrapped import WrappedTasks
from umeta.types import EpisodeSpec, TaskBatch


@dataclass(frozen=True)
class InSequence(WrappedTasks):
    """Any task distribution, of whose tasks one more is met after every `updates` tasks of meta-training.

    These are the newest one, and then some of those met so far, drawn at random.
    """

    updates: int
    met: int | None = None  # as many are passed over, and each comes once

    def coming(self, met: int) -> InSequence:
        """Return the tasks that are still to come when so many have been met, in their order."""
        return replace(self, met=met)

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> TaskBatch:
        """Return the tasks of these numbers; task i depends on (seed, i) only."""
        indices = np.asarray(indices)
        if self.met is None:
            newest = indices // self.updates
            again = seeds.below(seeds.key(seed, "met", indices), newest + 1)
            indices = np.where(indices % self.updates == 0, newest, again)
        else:
            indices = indices + self.met
        return self.tasks.sample(indices, episode=episode, seed=seed)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        return [*self.tasks.describe(episode), f"in sequence: a new task after every {self.updates}"]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the tasks; their order follows from seeds."""
        return {"kind": "sequence", "updates": self.updates, "of": self.tasks.save(folder, name)}

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path, source: Images, parts: list[Any]) -> InSequence:
        """Put the tasks that were loaded already in sequence."""
        return cls(parts[0], description["updates"])
