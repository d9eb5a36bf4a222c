"""A walking robot with four legs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from umeta.envs.batched import Model, Walking


@dataclass(frozen=True)
class Ant(Walking):
    """A robot with four legs (Schulman et al. 2016), as gymnasium's Ant-v5 without its contact forces.

    It has eight motors and starts near rest. It observes its height, its orientation, the angles of its joints and all
    velocities, 27 numbers; with `positions` also where it is, which comes first. A step lasts 0.05 s.

    Rewards of the benchmarks (umeta/benchmarks/goals.py), with a the torques in [-1, 1], v the mean velocity over the
    step and x the place after it; contact forces cost nothing, since the stepper does not compute them:
    `ant_direction`: v . d - 0.005 sum a^2 + 0.05, with d a unit vector;
    `ant_position`: -|x - x*|_1 - 0.005 sum a^2, without a bonus for survival.
    """

    model: ClassVar[Model] = Model("ant.xml", coordinates=15, velocities=14, motors=8, plane=2)

    id: Literal["Ant-v5"] = "Ant-v5"
    """gymnasium's name of these physics"""

    @property
    def options(self) -> dict[str, Any]:
        return {"include_cfrc_ext_in_observation": False, **super().options}

    def fallen(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Return whether the torso is below 0.2 m or above 1 m."""
        return ~((qpos[:, 2] >= 0.2) & (qpos[:, 2] <= 1))
