"""Improving the policies of skills on the episodes that they have just acted in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from umeta.objectives import gaussian, surrogate
from umeta.rl.advantage import gae, normalise
from umeta.rl.rollout import Paths
from umeta.rl.skills import SkillPolicy


@dataclass(frozen=True)
class PPO:
    """Proximal policy optimisation (Schulman et al. 2017): a few passes over an iteration's steps, then they are gone.

    A value network is told the skill, as the policy is. An episode cut short by the horizon counts on with its value.
    """

    clip: Annotated[float, Gt(0)] = 0.2
    """the bound on probability ratios"""
    epochs: Annotated[int, Gt(0)] = 4
    """passes over an iteration's steps, in four parts each"""
    lam: Annotated[float, Ge(0)] = 0.95
    """of generalised advantage estimation"""
    entropy: Annotated[float, Ge(0)] = 0.0
    """bonus per nat of the policy's entropy"""
    effort: Annotated[float, Ge(0)] = 0.0
    """what the mean square of an action's numbers costs the last of DIAYN's skills; the others pay less, the first
    least: some are gentle, and none acts so far out of range that noise makes no difference any more"""

    def charge(self, actions: Tensor, skill: Tensor, skills: int) -> Tensor:
        """Return the price [...] of the effort in actions [..., action]; skill: [...], which of `skills` acted."""
        return self.effort * ((skill + 1) / skills) * actions.square().mean(-1)

    def build(self, policy: SkillPolicy, discount: float, lr: float) -> Proximal:
        """Build what improves a policy, with random weights; lr: Adam's step size."""
        return Proximal(self, policy, discount, lr)


class Proximal(nn.Module):
    """A policy, its value network, and PPO's steps on both."""

    scale: Tensor

    def __init__(self, options: PPO, policy: SkillPolicy, discount: float, lr: float) -> None:
        super().__init__()
        self.options, self.discount = options, discount
        self.policy, hidden = policy, policy.first.out_features
        inputs = policy.first.in_features + policy.size
        self.value = nn.Sequential(
            nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1)
        )
        self.register_buffer("scale", torch.ones(()))  # of the rewards, a running mean: what the value is in units of
        self.optimiser = torch.optim.Adam(self.parameters(), lr=lr)

    def improve(
        self, paths: Paths, skill: Tensor, earned: Callable[[Tensor, Tensor], Tensor], random: torch.Generator
    ) -> None:
        """Learn from episodes of each skill.

        skill: [T, E, H], which one acted; earned: its rewards [...] for steps that led to states [..., observation].
        """
        cost = self.options.charge(paths.actions, skill, self.policy.size)
        self.learn(paths, skill, earned(paths.after, skill) - cost, random)

    def learn(self, paths: Paths, skill: Tensor, rewards: Tensor, random: torch.Generator) -> None:
        """Learn from episodes; skill: what the policy was told [T, E, H, ...], rewards: [T, E, H]."""
        self.scale.lerp_(rewards[paths.mask].square().mean().sqrt(), 0.1)
        rewards = rewards / self.scale
        with torch.no_grad():
            values = self.valued(paths.observations, torch.cat([skill, skill[:, :, -1:]], 2))
            now, last, lam = values[..., :-1], values[..., -1], self.options.lam
            advantage = gae(rewards, now, paths.mask, self.discount, lam, last=last)
        target = advantage + now
        w = normalise(advantage, paths.mask)
        every = [paths.observations[:, :, :-1], skill, paths.actions, paths.logp, w, target]
        flat = [value[paths.mask] for value in every]
        for part in parts(len(flat[0]), self.options.epochs, random):
            x, z, action, logp, gain, aim = (value[part] for value in flat)
            output = self.policy(x, z)
            clipped = surrogate(output, action, logp, gain, self.options.clip).mean()
            entropy = gaussian(output)[1].sum(-1).mean()
            self.optimiser.zero_grad()
            (-clipped - self.options.entropy * entropy + F.mse_loss(self.valued(x, z), aim)).backward()
            self.optimiser.step()

    def valued(self, observations: Tensor, skill: Tensor) -> Tensor:
        """Values [...] of observations [..., d] under skills [...]."""
        return self.value(torch.cat([observations, self.policy.tell(skill)], -1))[..., 0]


def parts(count: int, epochs: int, random: torch.Generator) -> Iterator[Tensor]:
    """Yield the items of each step: in every epoch all of them once, in four parts."""
    for _ in range(epochs):
        yield from torch.randperm(count, generator=random).chunk(4)
