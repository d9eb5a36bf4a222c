"""Tasks on an environment: each task is a reward, and its support and query are episodes under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from umeta import seeds
from umeta.errors import UserError
from umeta.parts import Environment, EnvironmentTraits, Simulation
from umeta.rl.advantage import advantages, normalise
from umeta.rl.discriminator import Discriminator, SkillRewards
from umeta.rl.explore import roll_out_skills
from umeta.rl.rollout import Paths, Told, find_bad_step, rollout
from umeta.runtime import artifacts
from umeta.types import Act, Batch, EpisodeSpec, RecurrentAct, TaskSpec


class Rewards(Protocol):
    """A family of rewards on one environment: of skills from a discriminator, of goals from a benchmark."""

    @property
    def count(self) -> int: ...  # how many there are

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        """Return what each step earns [T, E, H], which may depend on where the episode began but on no other step.

        which: each task's reward [T] int64.
        """
        ...

    def describe(self, states: Tensor) -> list[str]: ...  # in numbers, some of them on states [n, observation]


def policy_spec(env: Environment) -> TaskSpec:
    """Return what all tasks on an environment have in common."""
    return TaskSpec((env.observation,), "policy", env.action, env.action)


@dataclass(frozen=True)
class RewardTasks:
    """Task i has reward number z: of each `count` tasks in a row every reward has one, in an order of their own."""

    env: Environment
    rewards: Rewards
    skills: dict[str, Tensor] | None = None
    """the skills' policies, where the proposer learnt some: MAML's fast weights [K, ...]"""
    device: torch.device | str = "cpu"
    _simulations: dict[int, Simulation] = field(default_factory=dict, repr=False, compare=False)

    @property
    def spec(self) -> TaskSpec:
        return policy_spec(self.env)

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> RewardBatch:
        """Return the tasks of these numbers; task i, its resets and its noise depend on (seed, i) only."""
        indices = np.asarray(indices)
        count = self.rewards.count
        rows, row = np.unique(indices // count, return_inverse=True)
        orders = seeds.choose(seeds.key(seed, "rewards", rows), count, count)  # [rows, count]
        return RewardBatch(self, torch.from_numpy(orders[row, indices % count]), indices, episode, seed)

    def to(self, device: torch.device | str) -> RewardTasks:
        """Return the same tasks with their batches on a device; the environment stays where it is."""
        return replace(self, device=device)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        paths = roll_out_skills(self.env, self.skills)
        tasks = f"tasks: {self.rewards.count} rewards, episodes of {self.env.horizon} steps"
        own = [] if self.skills is None else [describe_diversity(self.rewards, paths)]
        return [tasks, *self.rewards.describe(paths.after[paths.mask]), *own]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write what was learnt: the discriminator and the skills' policies, or the rewards of a plug-in.

        Rewards that are a formula are proposed again where they are needed.
        """
        learnt: nn.Module
        description: dict[str, Any]
        if isinstance(self.rewards, SkillRewards):
            learnt, description = self.rewards.discriminator, {"kind": "skills", "file": "discriminator.safetensors"}
            description["shape"] = self.rewards.discriminator.shape
        elif isinstance(self.rewards, nn.Module):
            learnt, description = self.rewards, {"kind": "learnt", "file": "rewards.safetensors"}
        else:
            return {"kind": "formula"}
        artifacts.write_tensors(folder / description["file"], learnt.state_dict())
        if self.skills is not None:
            artifacts.write_tensors(folder / "skills.safetensors", self.skills)
            description["policies"] = "skills.safetensors"
        return description

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path, source: Environment, parts: list[Any]) -> RewardTasks:
        """Load skills' rewards and policies, on the environment they were learnt in."""
        return cls.load_learnt(SkillRewards(Discriminator(**description["shape"])), description, folder, source)

    @classmethod
    def load_learnt(cls, rewards: Any, description: dict[str, Any], folder: Path, source: Environment) -> RewardTasks:
        """Load what was learnt into rewards, and the skills' policies where there are some."""
        learnt = rewards.discriminator if isinstance(rewards, SkillRewards) else rewards
        learnt.load_state_dict(artifacts.read_tensors(folder / description["file"]))
        policies = description.get("policies")
        return cls(source, rewards, policies and artifacts.read_tensors(folder / policies))

    def simulation(self, copies: int) -> Simulation:
        """Return a simulation of `copies` copies, made once."""
        if copies not in self._simulations:
            self._simulations.clear()  # one at a time: those of an evaluation are of other sizes than training's
            self._simulations[copies] = self.env.simulate(copies)
        return self._simulations[copies]


def describe_diversity(rewards: Rewards, paths: Paths) -> str:
    """Say how often an episode of skill z [K, E, ...] earns most by reward z, and how often it would by chance.

    Each reward counts in standard deviations from its mean over all episodes, as they may be of several units.
    """
    each = [(rewards(paths, torch.full((len(paths.mask),), z)) * paths.mask).sum(2) for z in range(rewards.count)]
    earned, own = torch.stack(each).double(), torch.arange(len(paths.mask))[:, None]  # a constant one stays at zero
    best = normalise(earned, torch.ones_like(earned, dtype=torch.bool)).argmax(0)
    share, chance = (best == own).float().mean().item(), 1 / rewards.count
    failed = ". That is hardly more: the skills are alike, and little can be expected of what is learnt from them"
    said = f"{share:.0%} of the skills' episodes earn most by their own reward, {chance:.0%} by chance"
    return said + failed * (share < 2 * chance)


@dataclass(frozen=True)
class RewardBatch:
    """T tasks, whose episodes are rolled out when they are asked for."""

    tasks: RewardTasks
    which: Tensor  # [T] int64, each task's reward
    indices: Sequence[int] | np.ndarray
    episode: EpisodeSpec
    seed: int

    def support(self, act: Act | None = None, round: int = 0) -> Batch:
        return self.batch(self.paths(act, self.episode.shot, f"support {round}"))

    def query(self, act: Act | None = None) -> Batch:
        return self.batch(self.paths(act, self.episode.query, "query"))

    def paths(self, act: Act | None, episodes: int, purpose: str) -> Paths:
        """Fresh episodes of each task under its policy."""
        assert act is not None
        env = self.tasks.env
        noise, u = [], []
        for index in self.indices:
            random = seeds.generator(self.seed, "episodes", purpose, int(index))
            noise.append(torch.randn(episodes, env.horizon, env.action, generator=random))
            u.append(torch.rand(episodes, env.randoms, generator=random))
        simulation = self.tasks.simulation(len(noise) * episodes)
        device = self.tasks.device
        return rollout(
            simulation, lambda x: act(x.to(device)), torch.stack(noise), torch.stack(u), told=self.telling(act)
        )

    def telling(self, act: Act) -> Told:
        """Return what tells a policy that remembers what each step earned; None for others."""
        if not isinstance(act, RecurrentAct):
            return None

        def told(step: Paths) -> None:
            reward = self.tasks.rewards(step, self.which)
            act.observe(step.actions[:, :, -1].to(self.tasks.device), reward[:, :, -1].to(self.tasks.device))

        return told

    def batch(self, paths: Paths) -> Batch:
        """Return the steps of each task as items, scored by its reward."""
        env, rewards = self.tasks.env, self.tasks.rewards(paths, self.which)
        if step := find_bad_step(rewards.isfinite() | ~paths.mask):
            raise UserError(
                f"a reward is not a number, first at step {step} of an episode; mend the function that gives it"
            )
        w = advantages(paths, rewards, env.discount, EnvironmentTraits.of(env).lam)
        first = torch.zeros_like(paths.mask)
        first[:, :, 0] = True
        items = Batch(
            paths.observations[:, :, :-1].flatten(1, 2),
            paths.actions.flatten(1, 2),
            paths.mask.flatten(1),
            1,
            w=w.flatten(1),
            logp=paths.logp.flatten(1),
            score=paths.total(rewards),
            reward=rewards.flatten(1),
            after=paths.after.flatten(1, 2),
            first=first.flatten(1),
            sequences=first.shape[1],
        )
        return items.map_tensors(lambda value: value.to(self.tasks.device))
