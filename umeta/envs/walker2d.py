"""Two legs that walk in a vertical plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from umeta.envs.batched import Model, Walking


@dataclass(frozen=True)
class Walker2d(Walking):
    """Two legs that walk in a vertical plane (Erez, Tassa, Todorov 2011), as gymnasium's Walker2d-v5.

    It has six motors and starts upright. It observes the coordinates of its joints and their velocities, up to 10 and
    17 numbers in all; with `positions` also how far it has come, which comes first. A step lasts 0.008 s.

    Rewards of the benchmarks (umeta/benchmarks/goals.py), with a the torques in [-1, 1] and v the mean forward velocity
    over the step; without gymnasium's bonus for survival:
    `walker2d_velocity`: -|v - v*| - 0.001 sum a^2;
    `walker2d_direction`: v - 0.001 sum a^2, or -v - 0.001 sum a^2.
    """

    model: ClassVar[Model] = Model(
        "walker2d_v5.xml", 9, 9, motors=6, plane=1, frames=4, dt=0.008, noise=0.005, normal=False, fastest=10
    )

    id: Literal["Walker2d-v5"] = "Walker2d-v5"
    """gymnasium's name of these physics"""

    def fallen(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Return whether its height is not between 0.8 and 2 m, or it leans by 1 or more."""
        return ~((qpos[:, 1] > 0.8) & (qpos[:, 1] < 2) & (abs(qpos[:, 2]) < 1))
