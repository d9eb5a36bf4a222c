"""Improving the policies of skills on all that they did before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Gt, Le
from torch import Tensor, nn

from umeta.objectives import gaussian, log_probability
from umeta.rl.rollout import Paths, one_thread
from umeta.rl.skills import SkillPolicy


class Steps(NamedTuple):
    """n steps, of any episodes and skills."""

    before: Tensor  # [n, observation]
    skill: Tensor  # [n] int64, which one acted
    action: Tensor  # [n, action]
    after: Tensor  # [n, observation]
    ended: Tensor  # [n] bool; an episode that the horizon cuts short does not end

    @classmethod
    def of(cls, paths: Paths, skill: Tensor) -> Steps:
        """Those of episodes [T, E, H] before their ends, the earliest first: a full replay loses all skills alike."""
        ended = torch.zeros_like(paths.mask)
        ended[..., :-1] = paths.mask[..., :-1] & ~paths.mask[..., 1:]
        every = (paths.observations[:, :, :-1], skill, paths.actions, paths.after, ended)
        return cls(*(value.movedim(2, 0)[paths.mask.movedim(2, 0)] for value in every))


class Replay(nn.Module):
    """The last `size` steps. A module, whose buffers go into checkpoints."""

    added: Tensor

    def __init__(self, size: int, observation: int, action: int) -> None:
        super().__init__()
        self.size = size
        kinds = (torch.zeros(observation), torch.tensor(0), torch.zeros(action), torch.zeros(observation))
        for name, one in zip(Steps._fields, (*kinds, torch.tensor(False)), strict=True):
            self.register_buffer(name, one.repeat(size, *[1] * one.dim()))
        self.register_buffer("added", torch.tensor(0))  # so many ever

    def add(self, steps: Steps) -> None:
        """Add steps, in place of the oldest where there is no room."""
        at = torch.arange(int(self.added), int(self.added) + len(steps.skill)) % self.size
        for name, new in steps._asdict().items():
            getattr(self, name)[at[-self.size :]] = new[-self.size :]
        self.added += len(at)

    def sample(self, count: int, random: torch.Generator) -> Steps:
        """Sample steps uniformly."""
        at = torch.randint(min(int(self.added), self.size), (count,), generator=random)
        return Steps(*(getattr(self, name)[at] for name in Steps._fields))


@dataclass(frozen=True)
class SAC:
    """Soft actor-critic (Haarnoja et al. 2018, 1812.05905, algorithm 1) with a fixed temperature a.

    Each update draws steps (s, z, u, s') of the replay, whose rewards r are what the discriminator says by now, and
    noise e, and takes a step on the squared error of each of two critics Q and a step on the policy's loss,

        Q(s, z, u) - r - g (min Q'(s', z, v) - a k(v|s', z)),  v = mean(s', z) + std(z) e
        a k(v|s, z) - min Q(s, z, v),                          v = mean(s, z) + std(z) e

    where g is the discount and Q' follow Q slowly. After an episode's end nothing follows r; the horizon is no end.

    In the paper k = log pi(v|s, z), of a policy squashed to the range of actions. Skills are exported as plain
    Gaussians and the environment clips what is out of range, so means and standard deviations would run away to where
    they make no difference any more. So k = log pi(v|s, z) - log n(v): the entropy counts relative to the standard
    normal n, as which the policy starts and in whose units its actions are.
    """

    updates: Annotated[int, Gt(0)] = 100
    """steps of critics and policy per iteration"""
    batch: Annotated[int, Gt(0)] = 256
    """steps of the replay in each update"""
    replay: Annotated[int, Gt(0)] = 200_000
    """how many steps are kept, in checkpoints too"""
    tau: Annotated[float, Gt(0), Le(1)] = 0.01
    """how far each update moves the critics' slow copies towards them"""
    temperature: Annotated[float, Gt(0)] = 0.1
    """reward per nat of the policy's entropy, relative to the standard normal"""

    def build(self, policy: SkillPolicy, discount: float, lr: float) -> SoftActorCritic:
        """Build what improves a policy, with random weights; lr: Adam's step size."""
        return SoftActorCritic(self, policy, discount, lr)


class SoftActorCritic(nn.Module):
    """A policy, its critics with their slow copies, the replay, and SAC's steps."""

    def __init__(self, options: SAC, policy: SkillPolicy, discount: float, lr: float) -> None:
        super().__init__()
        self.options, self.discount = options, discount
        self.skills, action = policy.log_std.shape
        observation, hidden = policy.first.in_features, policy.first.out_features
        self.policy = policy
        self.critics = nn.ModuleList(critic(observation + self.skills + action, hidden) for _ in range(2))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.replay = Replay(options.replay, observation, action)
        self.optimiser = torch.optim.Adam([*policy.parameters(), *self.critics.parameters()], lr=lr, fused=True)

    @one_thread()
    def improve(
        self, paths: Paths, skill: Tensor, earned: Callable[[Tensor, Tensor], Tensor], random: torch.Generator
    ) -> None:
        """Improve the policies on all skills' steps so far, these episodes included.

        skill: [T, E, H], which one acted; earned: its rewards [...] for steps that led to states [..., observation].
        """
        self.replay.add(Steps.of(paths, skill))
        for _ in range(self.options.updates):
            steps = self.replay.sample(self.options.batch, random)
            noise, later = torch.randn(2, *steps.action.shape, generator=random)
            target = self.target(steps, earned(steps.after, steps.skill), later)
            values = self.values(self.critics, steps.before, steps.skill, steps.action)
            self.descend((values - target).square().mean(), self.critics)
            self.descend(self.loss(steps, noise), self.policy)
            with torch.no_grad():
                for slow, fast in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                    slow.lerp_(fast, self.options.tau)

    @torch.no_grad()
    def target(self, steps: Steps, rewards: Tensor, noise: Tensor) -> Tensor:
        """Return the critics' targets for the steps [n]; noise: standard normal [n, action]."""
        action, k = self.acted(steps.after, steps.skill, noise)
        following = self.values(self.targets, steps.after, steps.skill, action).amin(0) - self.options.temperature * k
        return rewards + self.discount * ~steps.ended * following

    def loss(self, steps: Steps, noise: Tensor) -> Tensor:
        """Return the policy's loss in the states before the steps."""
        action, k = self.acted(steps.before, steps.skill, noise)
        values = self.values(self.critics, steps.before, steps.skill, action).amin(0)
        return (self.options.temperature * k - values).mean()

    def acted(self, observations: Tensor, skill: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [n, action], and how much likelier they are than under the standard normal [n], as logarithms."""
        output = self.policy(observations, skill)
        mean, log_std = gaussian(output)
        action = mean + log_std.exp() * noise
        return action, log_probability(output, action) - log_probability(torch.zeros_like(output), action)

    def values(self, critics: nn.ModuleList, observations: Tensor, skill: Tensor, action: Tensor) -> Tensor:
        """Return each critic's values [2, n]."""
        x = torch.cat([observations, F.one_hot(skill, self.skills).to(action.dtype), action], -1)
        return torch.cat([critic(x) for critic in critics], -1).mT

    def descend(self, loss: Tensor, module: nn.Module) -> None:
        """One step of this module's parameters alone."""
        self.optimiser.zero_grad()
        loss.backward(inputs=list(module.parameters()))
        self.optimiser.step()


def critic(inputs: int, hidden: int) -> nn.Sequential:
    """Return a network of two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
    )
