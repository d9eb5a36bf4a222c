"""A run on an environment: its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Gt

from umeta.config import base
from umeta.config.base import Count, RunConfig, Seed
from umeta.types import EpisodeSpec


@dataclass(frozen=True)
class TrainConfig(base.TrainConfig):
    """The outer loop on an environment: how many meta-steps, on how many episodes."""

    steps: Count = 100
    """meta-steps"""
    meta_batch: Count = 20
    """tasks per meta-step"""
    task_chunk: Count = 20
    """tasks per backward pass: bounds memory, changes no result beyond rounding"""
    episodes: Annotated[int, Gt(1)] = 20
    """per task and round; the baseline of one half of them is fitted on the other"""
    rounds: Count = 1
    """how often the learner adapts, to fresh episodes each time, before the episodes that it is scored on"""

    @property
    def episode(self) -> EpisodeSpec:
        return EpisodeSpec(1, self.episodes, self.episodes)


@dataclass(frozen=True)
class EvaluateConfig:
    """The test on true rewards: return against policy-gradient steps, on goals that nothing has seen before."""

    benchmark: str
    """which true rewards (umeta/benchmarks/goals.py)"""
    goals: Annotated[int, Gt(1)] = 20
    """tasks to test on"""
    validation: Count = 10
    """other tasks, on which each row's steps are chosen; the best three are tried on twice as many more"""
    episodes: Annotated[int, Gt(1)] = 20
    """per goal and step"""
    steps: Count = 10
    """policy-gradient steps"""
    practice: Annotated[int, Ge(0)] = 0
    """rounds of practice after each step, in rows of their own: fresh episodes without a reward, for which a regression
    of the rewards seen so far stands in"""
    seed: Seed = 0
    """of the goals and episodes: fixed, so that every learner sees the same ones"""
    baselines: list[str] = field(default_factory=lambda: ["scratch", "finetune"])
    """curves beside the result; [] for none"""


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """A run on an environment."""

    domain = "env"
    source = "an environment"
    key = "env"

    env: Any
    train: TrainConfig
    evaluate: EvaluateConfig
