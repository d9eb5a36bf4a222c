"""A run on functions to regress: its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Gt

from umeta.config import base
from umeta.config.base import Count, RunConfig, Seed
from umeta.types import EpisodeSpec


@dataclass(frozen=True)
class TrainConfig(base.TrainConfig):
    """The outer loop on functions to regress: how many meta-steps, on how many points."""

    meta_batch: Count = 25
    """tasks per meta-step"""
    task_chunk: Count = 25
    """tasks per backward pass: bounds memory, changes no result beyond rounding"""
    shot: Count = 10
    """points of a task to adapt to"""
    query: Count = 10
    """points of a task to be scored on"""

    @property
    def episode(self) -> EpisodeSpec:
        return EpisodeSpec(1, self.shot, self.query)


@dataclass(frozen=True)
class EvaluateConfig:
    """The test on functions: mean squared error against gradient steps, on tasks that nothing has seen before."""

    shots: list[Count] = field(default_factory=lambda: [5, 10])
    """points of a task to adapt to, a column for each"""
    query: Count = 100
    """points of a task that the error is the mean over"""
    tasks: Annotated[int, Gt(1)] = 600
    """tasks to test on"""
    steps: Count = 10
    """gradient steps: the error is measured after each, and before the first; learners without steps pass them over"""
    seed: Seed = 0
    """of the test tasks: fixed, so that every learner sees the same ones"""
    baselines: list[str] = field(default_factory=lambda: ["pretrained", "oracle"])
    """rows beside the result; [] for none"""
    ranges: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """options of the proposer and ranges for each, such as {amplitude: [[0.1, 5], [5, 10]]}: also the error on tasks of
    these, with the most points of `shots`"""


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """A run on functions to regress, which the proposer makes of nothing but its options."""

    domain = "regression"
    source = "functions"

    train: TrainConfig
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
