"""A walking robot with four legs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from umeta.envs.batched import Bodies, Driven


@dataclass(frozen=True)
class Ant(Driven):
    """A robot with four legs (Schulman et al. 2016), as gymnasium's Ant-v5 without its contact forces.

    It has eight motors and starts near rest. It observes its height, its orientation, the angles of its joints and all
    velocities, 27 numbers; with `positions` also where it is, which comes first. A step lasts 0.05 s.

    Rewards of the benchmarks (umeta/benchmarks/goals.py), with a the torques in [-1, 1], v the mean velocity over the
    step and x the place after it; contact forces cost nothing, since the stepper does not compute them:
    `ant_direction`: v . d - 0.005 sum a^2 + 0.05, with d a unit vector;
    `ant_position`: -|x - x*|_1 - 0.005 sum a^2, without a bonus for survival.
    """

    id: Literal["Ant-v5"] = "Ant-v5"
    """gymnasium's name of these physics"""
    ends: bool = False
    """end an episode when the ant is unhealthy (torso below 0.2 m or above 1 m, as in gymnasium): then rewards
    `log p(z|s)`, mostly below 0, reward dying"""

    @property
    def observation(self) -> int:
        return 27 + 2 * self.positions

    @property
    def action(self) -> int:
        return 8

    @property
    def randoms(self) -> int:
        return 29

    def simulate(self, n: int) -> Bodies:
        hidden = 0 if self.positions else 2
        return Bodies("ant.xml", n, self.torque, plane=2, hidden=hidden, ended=unhealthy if self.ends else None)


def unhealthy(qpos: np.ndarray) -> np.ndarray:
    return ~((qpos[:, 2] >= 0.2) & (qpos[:, 2] <= 1))
