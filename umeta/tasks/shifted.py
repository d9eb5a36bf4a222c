"""Tasks from shifted domains: what is shown looks other than what is asked about."""

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

DOMAINS = 8  # the four turns of a picture, and those of its negative


@dataclass(frozen=True)
class Apart:
    """T tasks, and the domains of their supports and queries."""

    tasks: TaskBatch
    domains: Tensor  # [T, 2] int64 below 8

    def support(self, act: Act | None = None, round: int = 0) -> Batch:
        return self._seen(self.tasks.support(act, round), 0)

    def query(self, act: Act | None = None) -> Batch:
        return self._seen(self.tasks.query(act), 1)

    def _seen(self, batch: Batch, role: int) -> Batch:
        domain = send(self.domains[:, role], batch.x.device).view(-1, 1, 1, 1, 1)
        x = turn(batch.x, domain % 4)
        return replace(batch, x=torch.where(domain < 4, x, 1 - x))


@dataclass(frozen=True)
class Shifted(WrappedTasks):
    """Any task distribution of square images, a task's support of one domain and its query of another.

    A domain is how all of them are turned, by 0, 90, 180 or 270 degrees, and whether they are negatives.
    """

    domains: int = DOMAINS  # the first so many, at least two

    def __post_init__(self) -> None:
        if not is_square(self.spec):
            raise UserError(f"proposer shifted: it turns square images, these are {self.spec.item_shape}")

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> Apart:
        """Return the tasks of these numbers; task i and its domains depend on (seed, i) only."""
        keys = seeds.key(seed, "domains", np.asarray(indices))
        domains = torch.from_numpy(seeds.choose(keys, self.domains, 2))
        return Apart(self.tasks.sample(indices, episode=episode, seed=seed), domains)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        return [*self.tasks.describe(episode), f"support and query are of two of {self.domains} domains"]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the tasks; the domains follow from seeds."""
        return {"kind": "shifted", "domains": self.domains, "of": self.tasks.save(folder, name)}

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path, source: Images, parts: list[Any]) -> Shifted:
        """Shift the tasks that were loaded already."""
        return cls(parts[0], description["domains"])
