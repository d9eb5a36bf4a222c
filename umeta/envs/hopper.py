"""A leg that hops in a vertical plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from umeta.envs.batched import Model, Walking


@dataclass(frozen=True)
class Hopper(Walking):
    """A leg that hops in a vertical plane (Erez, Tassa, Todorov 2011), as gymnasium's Hopper-v5.

    It has three motors and starts upright. It observes the coordinates of its joints and their velocities, up to 10 and
    11 numbers in all; with `positions` also how far it has come, which comes first. A step lasts 0.008 s.

    Rewards of the benchmarks (umeta/benchmarks/goals.py), with a the torques in [-1, 1] and v the mean forward velocity
    over the step; without gymnasium's bonus for survival:
    `hopper_velocity`: -|v - v*| - 0.001 sum a^2;
    `hopper_direction`: v - 0.001 sum a^2, or -v - 0.001 sum a^2.
    """

    model: ClassVar[Model] = Model(
        "hopper.xml", 6, 6, motors=3, plane=1, frames=4, dt=0.008, noise=0.005, normal=False, fastest=10
    )

    id: Literal["Hopper-v5"] = "Hopper-v5"
    """gymnasium's name of these physics"""

    def fallen(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Return whether it is at most 0.7 m high or leans by 0.2 or more, or a number of its state is 100 or more."""
        tame = (abs(np.concatenate([qpos[:, 2:], qvel], 1)) < 100).all(1)
        return ~((qpos[:, 1] > 0.7) & (abs(qpos[:, 2]) < 0.2) & tame)
