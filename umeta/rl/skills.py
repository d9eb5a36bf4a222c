"""A policy for every skill: one network that is told the skill, seen as a policy per skill."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umeta.types import Act


class SkillPolicy(nn.Module):
    """Two tanh layers on the observation and the skill (one-hot), and standard deviations of each skill's own."""

    told: nn.Module

    def __init__(self, observation: int, action: int, skills: int, hidden: int) -> None:
        super().__init__()
        self.size = skills  # numbers that tell a skill
        self.first = nn.Linear(observation, hidden)
        self.told = self.make_told(skills, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, action)
        self.log_std = nn.Parameter(torch.zeros(skills, action))
        with torch.no_grad():
            self.head.weight.mul_(0.1)  # acts like pure noise at first

    def make_told(self, skills: int, hidden: int) -> nn.Module:
        """Make what turns a skill into a change of the first layer's bias: the one-hot's columns of that layer."""
        told = nn.Embedding(skills, hidden)
        with torch.no_grad():
            told.weight.mul_(hidden**-0.5)
        return told

    def tell(self, skill: Tensor) -> Tensor:
        """Give the numbers that tell skills [...]: [..., size]."""
        return F.one_hot(skill, self.size).to(self.log_std.dtype)

    def spread(self, skill: Tensor) -> Tensor:
        """Give the log standard deviations [..., action] of skills [...]."""
        return self.log_std[skill]

    def forward(self, observations: Tensor, skill: Tensor) -> Tensor:
        """Mean and log standard deviation [n, 2 * action] of observations [n, d] and skills [n]."""
        h = torch.tanh(self.first(observations) + self.told(skill))
        h = torch.tanh(self.second(h))
        return torch.cat([self.head(h), self.spread(skill)], -1)

    def policies(self, skill: Tensor | None = None) -> dict[str, Tensor]:
        """Return a network for each skill, by default of all: MAML's fast weights [K, ...] of `mlp` of that width."""
        skill = torch.arange(self.size) if skill is None else skill
        shared = {
            "1.weight": self.first.weight,
            "3.weight": self.second.weight,
            "3.bias": self.second.bias,
            "head.weight": self.head.weight,
            "head.bias": self.head.bias,
        }
        own = {"1.bias": self.first.bias + self.told(skill), "head.free": self.spread(skill)}
        every = {name: value.expand(len(skill), *value.shape) for name, value in shared.items()}
        whole = torch.contiguous_format
        return {name: value.detach().clone(memory_format=whole) for name, value in {**every, **own}.items()}


class SpacePolicy(SkillPolicy):
    """The same for skills that are points of a space, vectors [..., size], and standard deviations for all of them."""

    def make_told(self, skills: int, hidden: int) -> nn.Module:
        """Make what turns a skill into a change of the first layer's bias: a linear map."""
        return nn.Linear(skills, hidden, bias=False)

    def tell(self, skill: Tensor) -> Tensor:
        """Give the vectors themselves."""
        return skill

    def spread(self, skill: Tensor) -> Tensor:
        """Give the log standard deviations that all skills have in common."""
        return self.log_std[0].expand(*skill.shape[:-1], -1)


def act(skills: dict[str, Tensor]) -> Act:
    """Return the outputs of policies [K, ...] for observations [K, E, d]: [K, E, 2 * action]."""

    def answer(x: Tensor) -> Tensor:
        for layer in ("1", "3"):
            x = torch.tanh(torch.baddbmm(skills[f"{layer}.bias"][:, None], x, skills[f"{layer}.weight"].mT))
        mean = torch.baddbmm(skills["head.bias"][:, None], x, skills["head.weight"].mT)
        return torch.cat([mean, skills["head.free"][:, None].expand_as(mean)], -1)

    return answer
