"""A run on images: its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from umeta.config import base
from umeta.config.base import Count, RunConfig, Seed
from umeta.types import EpisodeSpec


@dataclass(frozen=True)
class TrainConfig(base.TrainConfig):
    """The outer loop on images: how many meta-steps, on episodes of which size."""

    way: Annotated[int, Gt(1)] = 20
    """classes per task"""
    shot: Count = 1
    """support items per class"""
    query: Count = 5
    """query items per class"""

    @property
    def episode(self) -> EpisodeSpec:
        return EpisodeSpec(self.way, self.shot, self.query)


@dataclass(frozen=True)
class EvaluateConfig:
    """The labelled test: which episodes, how many, and which baselines stand beside the learner."""

    protocol: str = "cactus"
    """named settings of the episodes, queries and tasks below (umeta/benchmarks/protocols.py)"""
    episodes: list[tuple[Annotated[int, Gt(1)], Count]] | None = None
    """(way, shot) pairs; by default the protocol's; [] for no evaluation"""
    query: Count | None = None
    """queries per class; by default the protocol's"""
    tasks: Annotated[int, Gt(1)] | None = None
    """test tasks per episode; by default the protocol's"""
    seed: Seed = 0
    """of the test tasks: fixed, so that every learner sees the same ones"""
    split: Literal["val", "test"] = "test"
    """tune on val; look at test once"""
    baselines: list[str] = field(default_factory=lambda: ["pixels_knn", "hog", "histogram", "knn", "linear", "scratch"])
    """rows beside the result; [] for none"""
    steps: Count | None = None
    """inner steps, for a learner that takes any; by default its own `test_steps`"""
    step_curve: list[Annotated[int, Ge(0)]] = field(default_factory=list)
    """also accuracy after each of these numbers of inner steps, such as [0, 1, 5, 10, 50], on the first 200 tasks"""
    shear: list[float] = field(default_factory=list)
    """also accuracy in the first of the episodes on test images that are all sheared so much, such as [0, 0.5, 1]"""
    scale: list[Annotated[float, Gt(0)]] = field(default_factory=list)
    """likewise on images that are all scaled by each of these, such as [1, 0.7, 0.5]"""
    distractors: list[Annotated[int, Ge(0)]] = field(default_factory=list)
    """likewise with so many further classes in each support, unlabelled, for a learner of `distractors`"""
    domains: list[Annotated[int, Gt(0), Le(8)]] = field(default_factory=list)
    """likewise with support and query of two of so many domains (`proposer: shifted`), of 1 as they are"""
    dirichlet: Annotated[float, Ge(0.1)] | None = None
    """also accuracy of the learner and its variants where the classes' shares in a task's queries are of a Dirichlet
    distribution with this concentration for each, such as 2: equally many queries flatter transductive answers"""
    ambiguous: bool = False
    """also what it makes of tasks of the first of the episodes, of two ways, that are `ambiguous`"""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """further rows: the same learner with some of its options changed, such as {ProtoTune: {test_steps: 20}}"""
    scratch_tasks: Count = 100
    """tasks for training from scratch, which is slow"""
    scratch_lr: Annotated[float, Gt(0)] | None = None
    """step size of training from scratch; by default the best of a few on tasks of the val split, where there is one"""
    scratch_steps: Count = 200
    """gradient steps of training from scratch"""


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """A run on images."""

    domain = "image"
    source = "images"
    key = "data"

    data: Any
    train: TrainConfig
    embedding: Any = None
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def evaluated(self) -> bool:
        return self.evaluate.episodes != []
