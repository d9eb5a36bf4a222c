"""True rewards: what the two unsupervised stages never see, and evaluation and oracles alone compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from umeta import seeds
from umeta.config import registry
from umeta.errors import UserError, suggest
from umeta.parts import Embedder, Environment, EnvironmentTraits
from umeta.rl.rollout import Paths
from umeta.runtime.loop import RunContext
from umeta.tasks.reward import RewardTasks


def distance(env: Any, paths: Paths, goal: Tensor) -> Tensor:
    """Minus the distance to the goal, after the step."""
    return -(paths.positions[:, :, 1:] - goal).norm(dim=-1)


def velocity(env: Any, paths: Paths, goal: Tensor) -> Tensor:
    """-|v - v*| - 0.05 |a|^2: v the forward velocity, a the torques (Finn, Abbeel, Levine 2017)."""
    return -(speed(env, paths)[..., 0] - goal[..., 0]).abs() - effort(env, paths, 0.05)


def direction(env: Any, paths: Paths, goal: Tensor) -> Tensor:
    """v . d - 0.05 |a|^2: v the velocity in the plane, d the direction (Finn, Abbeel, Levine 2017)."""
    return (speed(env, paths) * goal).sum(-1) - effort(env, paths, 0.05)


def walking_velocity(env: Any, paths: Paths, goal: Tensor) -> Tensor:
    """-|v - v*| - 0.001 |a|^2: as ProMP's Walker2d (Rothfuss et al. 2019), but without their bonus for survival."""
    return -(speed(env, paths)[..., 0] - goal[..., 0]).abs() - effort(env, paths, 0.001)


def walking_direction(env: Any, paths: Paths, goal: Tensor) -> Tensor:
    """v . d - 0.001 |a|^2: as ProMP's Walker2d (Rothfuss et al. 2019), but without their bonus for survival."""
    return (speed(env, paths) * goal).sum(-1) - effort(env, paths, 0.001)


def ant_direction(env: Any, paths: Paths, goal: Tensor) -> Tensor:
    """v . d - 0.005 |a|^2 + 0.05: as Finn, Abbeel and Levine (2017), but without their cost of contact forces."""
    return (speed(env, paths) * goal).sum(-1) - effort(env, paths, 0.005) + 0.05


def ant_position(env: Any, paths: Paths, goal: Tensor) -> Tensor:
    """-|x - x*|_1 - 0.005 |a|^2: as ProMP (Rothfuss et al. 2019), but without their cost of contact forces."""
    return -(paths.positions[:, :, 1:] - goal).abs().sum(-1) - effort(env, paths, 0.005)


def own(env: Any, paths: Paths, goal: Tensor) -> Tensor:
    """Return the environment's own."""
    assert paths.own is not None
    return paths.own


class Rewarded:
    """An environment whose simulations keep its own reward."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def simulate(self, n: int) -> Any:
        return self.env.simulate(n, rewarded=True)


def speed(env: Any, paths: Paths) -> Tensor:
    """Mean velocity over each step [T, E, H, 2], metres a second."""
    return paths.positions.diff(dim=2) / env.dt


def effort(env: Any, paths: Paths, weight: float) -> Tensor:
    return weight * env.torque(paths.actions).square().sum(-1)


def box(u: Tensor) -> Tensor:
    return u - 0.5


def forward(u: Tensor) -> Tensor:
    return 2 * u[:, :1]


def both_ways(u: Tensor) -> Tensor:
    """Return forwards and backwards in turn, whatever is drawn."""
    ways = torch.zeros_like(u)
    ways[:, 0] = 1 - 2 * (torch.arange(len(u)) % 2)
    return ways


def around(u: Tensor) -> Tensor:
    angle = 2 * math.pi * u[:, 0]
    return torch.stack([angle.cos(), angle.sin()], -1)


def disc(u: Tensor) -> Tensor:
    """Uniform in a disc of 3 metres."""
    return 3 * u[:, 1:].sqrt() * around(u)


@dataclass(frozen=True)
class Benchmark:
    """A family of true rewards: a function and a distribution of goals."""

    env: str  # the part whose environments it is for, such as HalfCheetah or Gym
    reward: Callable[[Any, Paths, Tensor], Tensor]  # (environment, paths, goals [T, 1, 1, g]) -> [T, E, H]
    goals: Callable[[Tensor], Tensor]  # uniform numbers [n, 2] -> goals [n, g]
    in_plane: bool = False  # whether a goal is a place


BENCHMARKS = {
    "nav2d": Benchmark("Nav2D", distance, box, in_plane=True),
    "cheetah_velocity": Benchmark("HalfCheetah", velocity, forward),
    "cheetah_direction": Benchmark("HalfCheetah", direction, both_ways),
    "walker2d_velocity": Benchmark("Walker2d", walking_velocity, forward),
    "walker2d_direction": Benchmark("Walker2d", walking_direction, both_ways),
    "hopper_velocity": Benchmark("Hopper", walking_velocity, forward),
    "hopper_direction": Benchmark("Hopper", walking_direction, both_ways),
    "ant_direction": Benchmark("Ant", ant_direction, around),
    "own": Benchmark("Gym", own, box),
    "ant_position": Benchmark("Ant", ant_position, disc, in_plane=True),
}
Split = Literal["train", "val", "test"]


def find_benchmark(name: str) -> Benchmark:
    """Find a family of rewards: one of these, or `my_rewards.py:name`, a `Benchmark` of a person's own.

    Raises:
        UserError: nothing has that name, or it is something else.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if ":" not in name:
        raise UserError(f"no benchmark of rewards is named '{name}'{suggest(name, BENCHMARKS)}")
    found = registry.load_named(name, "benchmark")
    if not isinstance(found, Benchmark):
        raise UserError(f"benchmark: '{name}' is no umeta.benchmarks.goals.Benchmark")
    return found


@dataclass(frozen=True)
class Goals:
    """True rewards of one benchmark, one for each goal."""

    env: Environment
    benchmark: Benchmark
    goals: Tensor  # [count, g]

    @property
    def count(self) -> int:
        return len(self.goals)

    @property
    def places(self) -> Tensor | None:
        """The goals [count, 2] where they are places."""
        return self.goals if self.benchmark.in_plane else None

    @property
    def of_places(self) -> bool:
        """Whether a place alone tells its reward; an environment's own is told by its simulation."""
        return self.benchmark.reward is not own

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        observed = EnvironmentTraits.of(self.env).restore(paths.observations)
        return self.benchmark.reward(self.env, replace(paths, observations=observed), self.goals[which][:, None, None])

    def describe(self, states: Tensor) -> list[str]:
        reward = " ".join((self.benchmark.reward.__doc__ or "").split())
        return [f"true rewards: {reward}"]


def goals(benchmark: str, env: Environment, split: Split, count: int, seed: int) -> RewardTasks:
    """Tasks on true rewards; the goals of the three splits are drawn apart from each other.

    Raises:
        UserError: no benchmark has that name, or it is of another environment.
    """
    found = find_benchmark(benchmark)
    if type(env).__name__ != found.env:
        raise UserError(f"benchmark: '{benchmark}' is of {found.env}, the environment is {type(env).__name__}")
    keys = seeds.key(seed, "goals", split, np.arange(count)[:, None], np.arange(2)[None])
    simulated: Any = Rewarded(env) if found.reward is own else env
    return RewardTasks(simulated, Goals(env, found, found.goals(torch.from_numpy(seeds.uniform(keys)))))


@dataclass(frozen=True)
class GoalOracle:
    """Tasks from true rewards: a hand-crafted task distribution, as the oracle of UML-RL (Gupta et al. 2018)."""

    benchmark: str
    """which true rewards"""
    goals: Annotated[int, Gt(0)] = 1000
    """how many"""

    domain: ClassVar[Literal["image", "env"]] = "env"
    sees_labels: ClassVar[bool] = True

    def propose(self, source: Environment, ctx: RunContext, embedder: Embedder | None = None) -> RewardTasks:
        """Tasks on training goals."""
        return goals(self.benchmark, source, "train", self.goals, ctx.seed)
