"""Sine waves: tasks made by hand, of nothing but their ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from umeta.parts import Context, Embedder
from umeta.tasks.sinusoid import SinusoidTasks


@dataclass(frozen=True)
class Sinusoid:
    """Sine waves to regress, each task with its own amplitude and phase (Finn, Abbeel, Levine 2017, section 5.1).

    A family of tasks made by hand, beside those that are proposed without labels: a small test of the contract. Its
    config has neither `data` nor `env`, because there is no source, and the proposer says so by its domain: the
    ranges are options here, so that any of them can be changed at the test (`evaluate.ranges`) as at the training.
    """

    amplitude: tuple[float, float] = (0.1, 5.0)
    """smallest and largest"""
    phase: tuple[float, float] = (0.0, math.pi)
    """smallest and largest, radians: y = amplitude sin(x - phase)"""
    x: tuple[float, float] = (-5.0, 5.0)
    """where the waves are looked at"""

    domain: ClassVar[Literal["image", "env", "regression"]] = "regression"
    sees_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for option in fields(self):
            low, high = getattr(self, option.name)
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"{option.name} is [smallest, largest], got [{low:g}, {high:g}]")

    def propose(self, source: None, ctx: Context, embedder: Embedder | None = None) -> SinusoidTasks:
        """Return the tasks; nothing is learnt."""
        return SinusoidTasks(self.amplitude, self.phase, self.x)
