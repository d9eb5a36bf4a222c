"""A run on functions to regress: its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from umeta.config.base import AnyConfig, Count, Seed
from umeta.parts import Outer
from umeta.types import EpisodeSpec


@dataclass(frozen=True)
class RegressionTrainConfig:
    """The outer loop on functions to regress: how many meta-steps, on how many points."""

    outer: Outer
    """who takes the outer step"""
    steps: Count = 10_000
    """meta-steps"""
    shot: Count = 10
    """points of a task to adapt to"""
    query: Count = 10
    """points of a task to be scored on"""
    meta_batch: Count = 25
    """tasks per meta-step"""
    task_chunk: Count = 25
    """tasks per backward pass: bounds memory, changes no result beyond rounding"""
    snapshots: Annotated[int, Ge(0)] = 0
    """states kept at even steps"""
    not_a_number: Literal["stop", "skip"] = "stop"
    """what becomes of a meta-step whose loss or gradient is none: `skip` leaves the weights as they were before it, and
    stops when ten in a row are none"""

    @property
    def episode(self) -> EpisodeSpec:
        return EpisodeSpec(1, self.shot, self.query)


@dataclass(frozen=True)
class RegressionEvaluateConfig:
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
class RegressionConfig(AnyConfig):
    """A run on functions to regress, which the proposer makes of nothing but its options."""

    train: RegressionTrainConfig
    evaluate: RegressionEvaluateConfig = field(default_factory=RegressionEvaluateConfig)
