"""A running robot in a vertical plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from umeta.envs.batched import Driven, Model


@dataclass(frozen=True)
class HalfCheetah(Driven):
    """A two-legged robot that runs in a vertical plane (Wawrzynski 2009), as gymnasium's HalfCheetah-v5.

    It has six motors and starts near rest. It observes the coordinates of its joints and their velocities, 17 numbers;
    with `positions` also where it is, which comes first. A step lasts 0.05 s. No episode ends early.

    Rewards of the benchmarks (umeta/benchmarks/goals.py), with a the torques in [-1, 1] and v the mean forward velocity
    over the step:
    `cheetah_velocity`: -|v - v*| - 0.05 sum a^2, where gymnasium's own control cost is 0.1 sum a^2;
    `cheetah_direction`: v - 0.05 sum a^2, or -v - 0.05 sum a^2.
    """

    model: ClassVar[Model] = Model("half_cheetah.xml", coordinates=9, velocities=9, motors=6, plane=1)

    id: Literal["HalfCheetah-v5"] = "HalfCheetah-v5"
    """gymnasium's name of these physics"""
