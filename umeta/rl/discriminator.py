"""A discriminator of skills, and the rewards it gives: R(s, z) = log p(z | s)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from umeta.errors import UserError
from umeta.parts import Environment
from umeta.rl.rollout import Paths

CONSTANT = 1e-6  # standard deviation up to which a number says nothing


class Discriminator(nn.Module):
    """p(z | s) over K skills: a network of two hidden layers on some of the numbers of an observation."""

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: int, skills: int, hidden: int, sees: list[int] | None = None) -> None:
        """Build the network; inputs: numbers in an observation, sees: those of them that count, by default all."""
        super().__init__()
        self.sees = list(range(inputs)) if sees is None else sees
        self.skills = skills
        self.shape = {"inputs": inputs, "skills": skills, "hidden": hidden, "sees": self.sees}
        d = len(self.sees)
        self.register_buffer("mean", torch.zeros(d))  # of what it sees, see `standardise`
        self.register_buffer("scale", torch.ones(d))
        self.layers = nn.Sequential(
            nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, skills)
        )

    @classmethod
    def checked(cls, env: Environment, skills: int, hidden: int, sees: list[int] | None) -> Discriminator:
        """Raise UserError when `sees` names numbers that the environment does not observe."""
        if sees is not None and (not sees or any(not 0 <= i < env.observation for i in sees)):
            raise UserError(f"proposer.sees: expected some of 0 to {env.observation - 1}, got {sees}")
        return cls(env.observation, skills, hidden, sees)

    def standardise(self, mean: Tensor, std: Tensor, times: float) -> None:
        """From now on its input is shifted by `mean` and scaled to a standard deviation of `times`; constants are 0."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > CONSTANT, times / std, 0.0))

    def seen(self, observations: Tensor) -> Tensor:
        """Return the network's input [..., d] of observations [..., observation]."""
        return (observations[..., self.sees] - self.mean) * self.scale

    def forward(self, observations: Tensor) -> Tensor:
        """log p(z | s) [..., K] of observations [..., observation]."""
        return self.layers(self.seen(observations)).log_softmax(-1)


@dataclass(frozen=True)
class SkillRewards:
    """Skill z rewards each state with log p(z | s) + log K, how much likelier the skill is there than by chance.

    The discriminator is asked about the state that a step leads to, the one it was trained on.
    """

    discriminator: Discriminator

    @property
    def count(self) -> int:
        return self.discriminator.skills

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        return self.at(paths.after, which.view(-1, 1, 1).expand_as(paths.mask))

    @torch.no_grad()
    def at(self, states: Tensor, skill: Tensor) -> Tensor:
        """Return what skills [...] earn for steps that led to states [..., observation]."""
        return self.discriminator(states).gather(-1, skill[..., None])[..., 0] + math.log(self.count)

    @torch.no_grad()
    def describe(self, states: Tensor) -> list[str]:
        """In numbers; states: [n, observation], on which skills are counted."""
        ever = len(self.discriminator(states).argmax(-1).unique())
        return [
            f"reward: log p(z | s) + log {self.count}, the discriminator sees {len(self.discriminator.sees)} numbers",
            f"{ever} of {self.count} skills are ever the most likely one",
        ]
