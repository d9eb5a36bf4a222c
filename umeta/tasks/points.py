"""Tasks that are functions of which points are known: one's own data to regress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.errors import UserError
from umeta.types import Act, Batch, EpisodeSpec, Loss, TaskSpec


@dataclass(frozen=True)
class Points:
    """Points of T functions."""

    support_x: Tensor  # [T, shot, d]
    support_y: Tensor  # [T, shot, outputs]
    query_x: Tensor
    query_y: Tensor

    def support(self, act: Act | None = None, round: int = 0) -> Batch:
        return self._batch(self.support_x, self.support_y)

    def query(self, act: Act | None = None) -> Batch:
        return self._batch(self.query_x, self.query_y)

    def _batch(self, x: Tensor, y: Tensor) -> Batch:
        return Batch(x, y, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), 1)


class PointTasks:
    """A task is one of the functions; its support and query are different points of it, drawn anew each time."""

    def __init__(
        self,
        functions: Sequence[tuple[np.ndarray, np.ndarray]],
        loss: Loss | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """functions: x [n, d] and y [n, outputs] of each, of any n; loss: of its own, in place of the squared error.

        Raises:
            UserError: none, or points that are not of this form.
        """
        pairs = [(np.asarray(x, np.float32), np.asarray(y, np.float32)) for x, y in functions]
        if not pairs:
            raise UserError("functions: there are none")
        widths = pairs[0][0].shape[-1], pairs[0][1].shape[-1]
        for i, (x, y) in enumerate(pairs):
            if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or (x.shape[1], y.shape[1]) != widths:
                raise UserError(
                    f"functions[{i}]: x {x.shape} and y {y.shape}, expected [n, {widths[0]}] and [n, {widths[1]}]"
                )
            if not (np.isfinite(x).all() and np.isfinite(y).all()):
                raise UserError(f"functions[{i}]: a value is not finite; leave that point out")
        self.functions, self.device = functions, device
        self.loss = loss
        self.sizes = np.array([len(x) for x, _ in pairs])
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.all_x, self.all_y = (
            torch.from_numpy(np.concatenate(values)).to(device) for values in zip(*pairs, strict=True)
        )
        self.spec = TaskSpec((widths[0],), loss or "regression", widths[1])

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> Points:
        """Return the tasks of these numbers; task i depends on (seed, i) only.

        Raises:
            UserError: no function has enough points.
        """
        need = episode.shot + episode.query
        large = np.flatnonzero(self.sizes >= need)
        if not len(large):
            raise UserError(
                f"functions: tasks of {need} points (shot + query), and none has more than {self.sizes.max()}; lower "
                "shot or query"
            )
        keys = seeds.key(seed, "points", np.asarray(indices))
        function = large[seeds.below(seeds.key(keys, "function"), len(large))]
        drawn = self.starts[function][:, None] + seeds.choose(keys, self.sizes[function], need)
        index = torch.from_numpy(drawn).to(self.device)
        x, y = self.all_x[index], self.all_y[index]
        shot = episode.shot
        return Points(x[:, :shot], y[:, :shot], x[:, shot:], y[:, shot:])

    def to(self, device: torch.device | str) -> PointTasks:
        """Return the same tasks on a device."""
        return PointTasks(self.functions, self.loss, device)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        return [
            f"functions: {len(self.sizes)}, of {self.sizes.min()} to {self.sizes.max()} points",
            f"points of a task: {episode.shot} to adapt to, {episode.query} to be scored on",
        ]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write nothing: the proposer gives them again where they are needed."""
        return {"kind": "formula"}
