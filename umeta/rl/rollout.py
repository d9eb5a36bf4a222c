"""Episodes: a policy per task acts in copies of an environment, all side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from umeta.errors import UserError
from umeta.objectives import gaussian
from umeta.parts import Simulation, SimulationTraits
from umeta.runtime import distributed
from umeta.types import Act


@dataclass(frozen=True)
class Paths:
    """What happened in E episodes of T tasks, H steps long."""

    observations: Tensor  # [T, E, H + 1, observation]
    actions: Tensor  # [T, E, H, action], before the environment scales and clips them
    logp: Tensor  # [T, E, H] their log-probabilities
    positions: Tensor  # [T, E, H + 1, 2] metres
    mask: Tensor  # [T, E, H] bool; False after an episode's end
    own: Tensor | None = None  # [T, E, H] the environment's own reward, which benchmarks alone can ask a simulation for

    @property
    def after(self) -> Tensor:
        """What was observed after each step [T, E, H, observation]."""
        return self.observations[:, :, 1:]

    def of(self, tasks: slice) -> Paths:
        """Return what happened in some of the tasks."""
        every: dict[str, Tensor | None] = {field.name: getattr(self, field.name) for field in fields(self)}
        known: dict[str, Any] = {name: value[tasks] for name, value in every.items() if value is not None}
        return Paths(**known)

    def total(self, rewards: Tensor) -> Tensor:
        """Mean over each task's episodes of their summed rewards [T, E, H]: [T]."""
        return (rewards * self.mask).sum(2).mean(1)


def share_copies(count: int, option: str) -> Tensor:
    """Return the numbers of those of `count` that this process acts for, see `share_rollout`.

    Raises:
        UserError: there are more processes; the message names the option.
    """
    if count < distributed.size():
        raise UserError(
            f"{option}: {count} are too few for {distributed.size()} processes; start {count} at most, or set "
            f"{option}={distributed.size()} or more"
        )
    return distributed.shard(torch.arange(count))


def share_rollout(policy: nn.Module, roll_out: Callable[[], Paths], dim: int) -> Paths:
    """Roll out in each process, and join what all of them saw: tasks (dim 0), or episodes of tasks (dim 1).

    The policy becomes the first process's before: other processors may round otherwise.

    Raises:
        UserError: what one of them raises, in all.
    """
    if distributed.size() == 1:
        return roll_out()
    policy.load_state_dict(distributed.run_once(policy.state_dict))
    every = distributed.run_each(roll_out)
    named = {field.name: [getattr(paths, field.name) for paths in every] for field in fields(Paths)}
    joined: dict[str, Any] = {n: None if some[0] is None else torch.cat(some, dim) for n, some in named.items()}
    return Paths(**joined)


Told = Callable[[Paths], None] | None  # gets the first step and the one just done, as one may count from the first


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread within the block.

    A policy is small, and a second thread would wait for its next part of the work by spinning, on the core that the
    physics need.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
@one_thread()
def rollout(simulation: Simulation, act: Act, noise: Tensor, u: Tensor, told: Told = None) -> Paths:
    """Let each task's policy act for an episode in each of its copies.

    simulation: of T * E copies; act: the T policies, mean and log standard deviation of an action; noise: standard
    normal [T, E, H, action], which the standard deviations scale; u: uniform [T, E, randoms], for the resets.

    Raises:
        UserError: the simulation gives something that is not a number.
    """
    tasks, episodes, horizon, _ = noise.shape
    where, places = [simulation.reset(u.flatten(0, 1))], [simulation.positions()]
    done: list[Tensor] = []
    spread: list[Tensor] = []
    alive: list[Tensor] = []
    earned: list[Tensor] = []
    living = torch.ones(tasks * episodes, dtype=torch.bool)

    def take(steps: list[int]) -> Paths:
        log_std = torch.stack([spread[t] for t in steps], 2)
        seen = [*steps, steps[-1] + 1]
        return Paths(
            observations=torch.stack([where[t] for t in seen], 1).view(tasks, episodes, len(seen), -1),
            actions=torch.stack([done[t] for t in steps], 2),
            logp=(-0.5 * noise[:, :, steps].square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1),
            positions=torch.stack([places[t] for t in seen], 1).view(tasks, episodes, len(seen), 2),
            mask=torch.stack([alive[t] for t in steps], 1).view(tasks, episodes, len(steps)),
            own=torch.stack([earned[t] for t in steps], 1).view(tasks, episodes, len(steps)) if earned else None,
        )

    for t in range(horizon):
        mean, log_std = gaussian(act(where[-1].view(tasks, episodes, -1)))
        action = (mean + log_std.exp() * noise[:, :, t].to(mean.device)).cpu()
        alive.append(living)
        observation, ended = simulation.step(action.flatten(0, 1))
        living = living & ~ended
        where.append(observation)
        done.append(action)
        spread.append(log_std.cpu())
        places.append(simulation.positions())
        if (reward := SimulationTraits.of(simulation).last_reward) is not None:
            earned.append(reward)
        if told is not None:
            told(take([0, t] if t else [0]))
    paths = take(list(range(horizon)))
    good = paths.observations[:, :, 1:].isfinite().all(-1) & paths.actions.isfinite().all(-1)
    if step := find_bad_step(good):
        raise UserError(
            f"env: an observation or an action is not a number, first at step {step} of an episode; the simulation has "
            "become unstable: try a smaller learning rate, or actions in smaller units"
        )
    return paths


def find_bad_step(good: Tensor) -> int | None:
    """Return the first step, counted from 1, that is not good [T, E, H] in some episode; None where all are."""
    return None if good.all() else 1 + int(good.flatten(0, 1).all(0).int().argmin())
