"""Tasks whose support can be read in two ways, of which the query follows one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from umeta import seeds
from umeta.errors import UserError
from umeta.parts import Images
from umeta.runtime.devices import send
from umeta.tasks._wrapped import WrappedTasks
from umeta.types import Act, Batch, EpisodeSpec, TaskBatch

DIM = 0.4  # of how bright a picture was


@dataclass(frozen=True)
class TwoReadings:
    """T tasks of two classes, which of them is dimmed, and which tasks are read by that."""

    tasks: TaskBatch
    dimmed: Tensor  # [T] int64, the class
    by_shade: Tensor  # [T] bool

    def support(self, act: Act | None = None, round: int = 0) -> Batch:
        batch = self.tasks.support(act, round)
        return self._dim(batch, batch.y)

    def query(self, act: Act | None = None) -> Batch:
        batch = self.tasks.query(act)
        earlier = F.one_hot(batch.y, 2).cumsum(1).gather(2, batch.y[..., None])[..., 0]  # of its class, from 1
        shade = torch.where(earlier % 2 == 0, 1 - batch.y, batch.y)
        y = torch.where(send(self.by_shade, batch.y.device)[:, None], shade, batch.y)
        return replace(self._dim(batch, shade), y=y)

    def reread(self) -> TwoReadings:
        """Return the same tasks, each read in the other way."""
        return replace(self, by_shade=~self.by_shade)

    def _dim(self, batch: Batch, shade: Tensor) -> Batch:
        dim = (shade == send(self.dimmed, shade.device)[:, None]).view(*shade.shape, *[1] * (batch.x.dim() - 2))
        return replace(batch, x=torch.where(dim, DIM * batch.x, batch.x))


@dataclass(frozen=True)
class Ambiguous(WrappedTasks):
    """Any task distribution on images in tasks of two classes, the support's items of one of which are dimmed.

    So a class can be told by what is shown, or by its shade. A task's query follows one of these readings, drawn at
    random, and every second item of each class is of the one class by what it shows and of the other by its shade
    (after the ambiguous CelebA of Finn, Xu, Levine 2018, arXiv 1806.02817, section 6).
    """

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> TwoReadings:
        """Return the tasks of these numbers; task i and its readings depend on (seed, i) only.

        Raises:
            UserError: more than two classes, or queries that have no item on which the readings differ.
        """
        if episode.way != 2 or episode.query < 2:
            raise UserError(
                "ambiguous: tasks have two ways, and at least two queries a class; here they have "
                f"{episode.way} and {episode.query}"
            )
        keys = seeds.key(seed, "readings", np.asarray(indices))
        drawn = (torch.from_numpy(seeds.below(seeds.key(keys, name), 2)) for name in ("dimmed", "shade"))
        dimmed, by_shade = drawn
        return TwoReadings(self.tasks.sample(indices, episode=episode, seed=seed), dimmed, by_shade == 1)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        return [
            *self.tasks.describe(episode),
            "one of the two classes is dimmed, and about half of the tasks are read by that",
        ]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the tasks; their readings follow from seeds."""
        return {"kind": "ambiguous", "of": self.tasks.save(folder, name)}

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path, source: Images, parts: list[Any]) -> Ambiguous:
        """Make the tasks that were loaded already ambiguous."""
        return cls(parts[0])
