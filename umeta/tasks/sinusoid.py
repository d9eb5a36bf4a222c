"""Tasks that are sine waves, to be regressed from a few of their points."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.runtime.devices import send
from umeta.types import Act, Batch, EpisodeSpec, TaskSpec

Range = tuple[float, float]


@dataclass(frozen=True)
class Sinusoids:
    """T sine waves, and where each is to be looked at."""

    amplitude: Tensor  # [T]
    phase: Tensor  # [T]
    support_x: Tensor  # [T, shot]
    query_x: Tensor  # [T, query]
    told: bool

    def support(self, act: Act | None = None, round: int = 0) -> Batch:
        return self._batch(self.support_x)

    def query(self, act: Act | None = None) -> Batch:
        return self._batch(self.query_x)

    def at(self, x: Tensor) -> Sinusoids:
        """Return the same waves and supports, their queries at x [n] instead."""
        return replace(self, query_x=x.expand(len(self.amplitude), -1))

    def _batch(self, x: Tensor) -> Batch:
        amplitude, phase = (value[:, None].expand_as(x) for value in (self.amplitude, self.phase))
        items = torch.stack([x, amplitude, phase] if self.told else [x], -1)
        y = amplitude * torch.sin(x - phase)
        return Batch(items, y[..., None], torch.ones_like(x, dtype=torch.bool), 1)


@dataclass(frozen=True)
class SinusoidTasks:
    """Each task is a wave y = amplitude sin(x - phase); amplitude, phase and x are uniform in their ranges."""

    amplitude: Range
    phase: Range
    x: Range
    told: bool = False
    """items are (x, amplitude, phase), which leaves nothing to adapt to: the oracle of the paper"""
    device: torch.device | str = "cpu"

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec((3 if self.told else 1,), "regression", outputs=1)

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> Sinusoids:
        """Return the tasks of these numbers; task i depends on (seed, i) only.

        Its first points do not depend on how many follow.
        """
        keys = seeds.key(seed, "sinusoid", np.asarray(indices))

        def drawn(keys: np.ndarray, between: Range) -> Tensor:
            low, high = between
            return send(torch.from_numpy(low + (high - low) * seeds.uniform(keys)).float(), self.device)

        return Sinusoids(
            drawn(seeds.key(keys, "amplitude"), self.amplitude),
            drawn(seeds.key(keys, "phase"), self.phase),
            drawn(seeds.key(keys[:, None], "support", np.arange(episode.shot)), self.x),
            drawn(seeds.key(keys[:, None], "query", np.arange(episode.query)), self.x),
            self.told,
        )

    def to(self, device: torch.device | str) -> SinusoidTasks:
        """Return the same tasks on a device."""
        return replace(self, device=device)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        (a, b), (c, d), (e, f) = self.amplitude, self.phase, self.x
        return [
            f"waves y = amplitude sin(x - phase): amplitude {a:g} to {b:g}, phase {c / math.pi:.2g} to "
            f"{d / math.pi:.2g} pi, x from {e:g} to {f:g}",
            f"points of a task: {episode.shot} to adapt to, {episode.query} to be scored on",
        ]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write nothing: the waves are a formula, proposed again where they are needed."""
        return {"kind": "formula"}
