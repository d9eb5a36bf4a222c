"""What every run's configuration has, whatever its domain."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Lt

Count = Annotated[int, Gt(0)]
Seed = Annotated[int, Ge(0), Lt(2**63)]
SKILLS = "skills"  # what `start` calls the middle of them


@dataclass(frozen=True, kw_only=True)
class AnyConfig:
    """Everything a run needs. The parts are built, so a wrong option is found at once."""

    name: str
    proposer: Any
    metalearner: Any
    seed: Seed = 0
    tasks: str | None = None
    """the proposed tasks to meta-train on, `tasks/NAME`; by default those of this run's own name"""
    start: str | None = None
    """a run whose weights meta-training starts from, `runs/NAME`; in an environment also `skills`, the mean of the
    proposer's skills' policies"""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """further rounds of `umeta run`: changes to this config's embedding, proposer, metalearner and train"""
    out: str = "."
    """where `tasks/` and `runs/` are written"""
    title: str = ""
    """the learner's row in tables; by default the name"""
    plain: dict[str, Any] = field(default_factory=dict)  # what was read, as plain values; for manifests and re-loading

    @property
    def parent(self) -> str | None:
        """The run that meta-training starts from."""
        return None if self.start == SKILLS else self.start

    @property
    def tasks_folder(self) -> Path:
        return Path(self.tasks) if self.tasks else Path(self.out) / "tasks" / self.name

    @property
    def run_folder(self) -> Path:
        return Path(self.out) / "runs" / self.name
