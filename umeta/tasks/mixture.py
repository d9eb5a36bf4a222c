"""Tasks from several distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.parts import Images
from umeta.runtime.devices import send
from umeta.types import Act, Batch, EpisodeSpec, TaskBatch, TaskDistribution, TaskSpec


@dataclass(frozen=True)
class Mixed:
    """T tasks of a mixture: each distribution's own, and the order that puts them back in theirs."""

    batches: Sequence[TaskBatch]
    order: Tensor  # [T] int64

    def support(self, act: Act | None = None, round: int = 0) -> Batch:
        return self._joined([batch.support(act, round) for batch in self.batches])

    def query(self, act: Act | None = None) -> Batch:
        return self._joined([batch.query(act) for batch in self.batches])

    def _joined(self, parts: list[Batch]) -> Batch:
        x, y, mask = (torch.cat([getattr(part, name) for part in parts]) for name in ("x", "y", "mask"))
        order = send(self.order, x.device)
        return Batch(x[order], y[order], mask[order], parts[0].way)


@dataclass(frozen=True)
class Mixture:
    """Each task comes from one of several distributions, drawn with the given weights."""

    weights: tuple[float, ...]
    parts: tuple[TaskDistribution, ...]

    @property
    def spec(self) -> TaskSpec:
        return self.parts[0].spec

    @property
    def depth(self) -> int:
        """How many mixtures are within one another below this one."""
        return max((1 + part.depth for part in self.parts if isinstance(part, Mixture)), default=0)

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> Mixed:
        """Return the tasks of these numbers; task i depends on (seed, i) only."""
        indices = np.asarray(indices)
        bounds = np.cumsum(self.weights)[:-1] / sum(self.weights)
        own = ["mixture", self.depth] if self.depth else ["mixture"]  # drawn apart from a mixture that is a part
        drawn = np.searchsorted(bounds, seeds.uniform(seeds.key(seed, *own, indices)), side="right")
        order = np.argsort(np.argsort(drawn, kind="stable"), kind="stable")
        batches = [
            part.sample(indices[drawn == i], episode=episode, seed=seed)
            for i, part in enumerate(self.parts)
            if (drawn == i).any()
        ]
        return Mixed(batches, torch.from_numpy(order))

    def to(self, device: torch.device | str) -> Mixture:
        """Return the same tasks with their images on a device."""
        return Mixture(self.weights, tuple(part.to(device) for part in self.parts))

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        shares = [weight / sum(self.weights) for weight in self.weights]
        return [
            f"{share:.0%} of the tasks: {line}"
            for share, part in zip(shares, self.parts, strict=True)
            for line in part.describe(episode)
        ]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write each part, its files numbered."""
        parts = [part.save(folder, f"{name}{i}") for i, part in enumerate(self.parts)]
        return {"kind": "mixture", "weights": list(self.weights), "of": parts}

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path, source: Images, parts: list[Any]) -> Mixture:
        """Mix the parts that were loaded already."""
        return cls(tuple(description["weights"]), tuple(parts))
