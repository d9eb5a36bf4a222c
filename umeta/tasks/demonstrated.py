"""Tasks on an environment in which a skill is shown: episodes of it, to be imitated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from umeta.errors import UserError
from umeta.objectives import log_likelihood
from umeta.parts import Environment
from umeta.rl.discriminator import SkillRewards
from umeta.rl.skills import act
from umeta.tasks.reward import RewardBatch, RewardTasks
from umeta.types import Act, Batch, EpisodeSpec, TaskSpec


def imitate(output: Tensor, batch: Batch) -> Tensor:
    """Return minus the mean log-probability of what was shown: the loss of behavioural cloning. Returns [T]."""
    return -log_likelihood(output, batch)


def imitation_spec(env: Environment) -> TaskSpec:
    """Return what all tasks of imitating on an environment have in common."""
    return TaskSpec((env.observation,), imitate, env.action, env.action)


@dataclass(frozen=True)
class Shown:
    """T tasks, in each of which a skill is shown: once in the support, and in the query a few times more."""

    tasks: RewardBatch
    skills: dict[str, Tensor]

    def support(self, act: Act | None = None, round: int = 0) -> Batch:
        return self.show(1, "shown")

    def query(self, act: Act | None = None) -> Batch:
        return self.show(self.tasks.episode.query, "shown again")

    def show(self, episodes: int, purpose: str) -> Batch:
        """Roll out episodes of each task's skill."""
        device = self.tasks.tasks.device
        policies = {name: value[self.tasks.which].to(device) for name, value in self.skills.items()}
        return replace(self.tasks.batch(self.tasks.paths(act(policies), episodes, purpose)), score=None)


@dataclass(frozen=True)
class Demonstrations(RewardTasks):
    """Task i shows the skill of reward number z, in place of the reward."""

    def __post_init__(self) -> None:
        if self.skills is None or not isinstance(self.rewards, SkillRewards):
            raise UserError("proposer demonstrations: there are no skills to show; take proposer: diayn within it")

    @property
    def spec(self) -> TaskSpec:
        return imitation_spec(self.env)

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> Shown:  # type: ignore[override]
        """Return the tasks of these numbers; task i, its resets and its noise depend on (seed, i) only."""
        assert self.skills is not None
        return Shown(super().sample(indices, episode=episode, seed=seed), self.skills)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        return [*super().describe(episode), "each shows its skill once, and again to be compared with"]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the skills, and the discriminator that tells them apart."""
        return {**super().save(folder, name), "kind": "demonstrations"}
