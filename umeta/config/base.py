"""What the configuration of every run has, whatever its domain."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from umeta.parts import Outer
from umeta.types import EpisodeSpec

Count = Annotated[int, Gt(0)]
Seed = Annotated[int, Ge(0), Lt(2**63)]
SKILLS = "skills"  # a `start` that is no run: the mean of the skills' policies


@dataclass(frozen=True)
class TrainConfig:
    """The outer loop: how many meta-steps, on how many tasks."""

    outer: Outer
    """who takes the outer step"""
    steps: Count = 10_000
    """meta-steps"""
    minutes: Annotated[float, Gt(0)] | None = None
    """stop after this many, with step sizes at the end of their schedule by then; no limit by default"""
    meta_batch: Count = 8
    """tasks per meta-step"""
    task_chunk: Count = 8
    """tasks per backward pass: bounds memory, changes no result beyond rounding"""
    snapshots: Annotated[int, Ge(0)] = 0
    """states kept at even steps; on images `evaluate` draws accuracy against minutes from them"""
    not_a_number: Literal["stop", "skip"] = "stop"
    """what to do when the loss or gradient of a meta-step is not finite: `skip` leaves the weights unchanged, and stops
    after ten such steps in a row"""

    @property
    def episode(self) -> EpisodeSpec:
        raise NotImplementedError

    @property
    def rounds(self) -> int:
        """How often the learner adapts before it is scored."""
        return 1


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that a run needs. The parts are built, so that a wrong option is found at once."""

    domain: ClassVar[str]
    """the kind of source that tasks are proposed on, as its proposers name it"""
    source: ClassVar[str]
    """the source in words"""
    key: ClassVar[str] = ""
    """the option that describes the source, where there is one"""

    name: str
    proposer: Any
    metalearner: Any
    train: TrainConfig
    evaluate: Any
    seed: Seed = 0
    tasks: str | None = None
    """the proposed tasks to meta-train on, `tasks/NAME`, there or in `out`; by default those of this run's own name"""
    start: str | None = None
    """a run whose weights meta-training starts from, `runs/NAME`, there or in `out`; in an environment also `skills`,
    the mean of the proposer's skills' policies"""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """further rounds of `umeta run`: changes to this config's embedding, proposer, metalearner and train"""
    out: str = "."
    """where `tasks/` and `runs/` are written"""
    title: str = ""
    """the learner's row in tables; by default the name"""
    plain: dict[str, Any] = field(default_factory=dict)  # what the config said, without defaults: what stages record

    @property
    def evaluated(self) -> bool:
        """Whether the run is to be evaluated."""
        return True

    @property
    def parent(self) -> str | None:
        """The run that meta-training starts from."""
        return None if self.start in (None, SKILLS) else str(self.find(self.start))

    @property
    def tasks_folder(self) -> Path:
        return self.find(self.tasks) if self.tasks else Path(self.out) / "tasks" / self.name

    def find(self, place: str) -> Path:
        """Find what a command wrote: in `out` where it is there, and else as it is named."""
        return inner if (inner := Path(self.out) / place).exists() else Path(place)

    @property
    def run_folder(self) -> Path:
        return Path(self.out) / "runs" / self.name
