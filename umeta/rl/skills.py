"""A policy for every skill: one network that is told the skill, seen as a policy per skill."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from umeta.types import Act


class SkillPolicy(nn.Module):
    """Two tanh layers on the observation and the skill (one-hot), and standard deviations of each skill's own."""

    def __init__(self, observation: int, action: int, skills: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(observation, hidden)
        self.told = nn.Embedding(skills, hidden)  # the one-hot's columns of the first layer
        self.second = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, action)
        self.log_std = nn.Parameter(torch.zeros(skills, action))
        with torch.no_grad():
            self.told.weight.mul_(hidden**-0.5)
            self.head.weight.mul_(0.1)  # acts like pure noise at first

    def forward(self, observations: Tensor, skill: Tensor) -> Tensor:
        """Mean and log standard deviation [n, 2 * action] of observations [n, d] and skills [n]."""
        h = torch.tanh(self.first(observations) + self.told(skill))
        h = torch.tanh(self.second(h))
        return torch.cat([self.head(h), self.log_std[skill]], -1)

    def policies(self) -> dict[str, Tensor]:
        """Return a network for each skill: MAML's fast weights [K, ...] of `mlp` with as many hidden units."""
        skills = len(self.log_std)
        shared = {
            "1.weight": self.first.weight,
            "3.weight": self.second.weight,
            "3.bias": self.second.bias,
            "head.weight": self.head.weight,
            "head.bias": self.head.bias,
        }
        own = {"1.bias": self.first.bias + self.told.weight, "head.free": self.log_std}
        every = {name: value.expand(skills, *value.shape) for name, value in shared.items()}
        whole = torch.contiguous_format
        return {name: value.detach().clone(memory_format=whole) for name, value in {**every, **own}.items()}


def act(skills: dict[str, Tensor]) -> Act:
    """Return the outputs of policies [K, ...] for observations [K, E, d]: [K, E, 2 * action]."""

    def answer(x: Tensor) -> Tensor:
        for layer in ("1", "3"):
            x = torch.tanh(torch.baddbmm(skills[f"{layer}.bias"][:, None], x, skills[f"{layer}.weight"].mT))
        mean = torch.baddbmm(skills["head.bias"][:, None], x, skills["head.weight"].mT)
        return torch.cat([mean, skills["head.free"][:, None].expand_as(mean)], -1)

    return answer
