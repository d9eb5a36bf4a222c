"""What all environments have in common: the options of their episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le


@dataclass(frozen=True, kw_only=True)
class Episodic:
    """How long an episode is, and what a step in it counts for."""

    horizon: Annotated[int, Gt(0)] = 100
    """steps of an episode"""
    discount: Annotated[float, Ge(0), Le(1)] = 0.99
    """of later rewards"""
    lam: Annotated[float, Ge(0), Le(1)] = 1.0
    """lambda of generalised advantage estimation: at 1 an advantage counts all that came after the step, below 1 the
    sooner the more, and leaves the rest to the baseline: less noise, some bias"""
