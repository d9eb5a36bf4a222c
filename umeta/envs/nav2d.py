"""A point in the plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from umeta.envs._episodes import Episodic

BOX = 0.5
FARTHEST = 0.1  # that a step moves along an axis


@dataclass(frozen=True)
class Nav2D(Episodic):
    """A point that moves in the plane (2-D navigation of MAML, Finn, Abbeel, Levine 2017).

    It starts at the origin; an action moves it by at most 0.1 along each axis. It observes its position.

    `Nav2D-v0`: positions are clipped to the box of +-0.5, where the goals of the benchmark lie.
    `Nav2DOpen-v0`: the original, without bounds.

    The benchmark's reward (umeta/benchmarks/goals.py) is minus the distance to the goal, after the move.
    """

    id: Literal["Nav2D-v0", "Nav2DOpen-v0"] = "Nav2D-v0"
    """with or without walls"""
    unit: Annotated[float, Gt(0)] = 0.05
    """how far an action of 1 moves; a policy's standard deviation starts there"""

    @property
    def observation(self) -> int:
        return 2

    @property
    def action(self) -> int:
        return 2

    @property
    def randoms(self) -> int:
        return 0

    def simulate(self, n: int) -> Points:
        return Points(self, n)


class Points:
    """n points, side by side."""

    def __init__(self, env: Nav2D, n: int) -> None:
        self.env, self.place = env, torch.zeros(n, 2)

    def reset(self, u: Tensor) -> Tensor:
        self.place = torch.zeros_like(self.place)
        return self.place

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        self.place = self.place + (actions * self.env.unit).clamp(-FARTHEST, FARTHEST)
        if self.env.id == "Nav2D-v0":
            self.place = self.place.clamp(-BOX, BOX)
        return self.place, torch.zeros(len(self.place), dtype=torch.bool)

    def positions(self) -> Tensor:
        return self.place

    def picture(self, copy: int = 0) -> np.ndarray:
        """Return the point as a disc in a square of 128 pixels, which shows the box and half as much around it."""
        reach = BOX * 1.5
        axis = np.linspace(-reach, reach, 128)
        x, y = self.place[copy].tolist()
        picture = np.full((128, 128, 3), 255, dtype=np.uint8)
        inside = (abs(axis[None]) <= BOX) & (abs(axis[::-1, None]) <= BOX)
        picture[~inside] = 225
        picture[(axis[None] - x) ** 2 + (axis[::-1, None] - y) ** 2 < 0.03**2] = (0, 90, 170)
        return picture
