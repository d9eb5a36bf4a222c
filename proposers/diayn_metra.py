"""Skills that can be told apart and skills that go their own way, learnt by one policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from umeta import seeds
from umeta.parts import Context, Embedder, Environment
from umeta.rl import apart
from umeta.rl.apart import ToldApart
from umeta.rl.discriminator import Discriminator, SkillRewards
from umeta.rl.ppo import PPO, Proximal
from umeta.rl.rollout import Paths
from umeta.rl.space import MapLearner, Space, judge, tell_success
from umeta.tasks.reward import RewardTasks


@dataclass(frozen=True)
class DiaynMetra(ToldApart):
    """DIAYN's skills and METRA's in one policy (Eysenbach et al. 2018; Park, Rybkin, Levine 2024).

    A skill that is told apart by its states need not move: DIAYN's take up postures, gentle ones among them. METRA's go
    ever farther in a space that is learnt, and hold no posture. Of an environment of which nothing is known a reward
    may ask for either. An iteration has as many episodes of each skill, and all of them teach one network.
    """

    movers: Annotated[int, Gt(1)] = 10
    """how many skills go a way of their own, in directions that divide a circle evenly, beside the `skills` that are
    told apart"""
    algorithm: PPO = field(default_factory=PPO)
    """what improves the policies"""

    domain: ClassVar[Literal["image", "env"]] = "env"
    sees_labels: ClassVar[bool] = False

    @property
    def count(self) -> int:
        """How many skills the policy has."""
        return self.skills + self.movers

    def propose(self, source: Environment, ctx: Context, embedder: Embedder | None = None) -> RewardTasks:
        """Return a reward per skill, and the skills' policies: first those that are told apart.

        Raises:
            UserError: the simulation breaks, or `sees` names numbers that it does not observe.
        """
        learning = Learning(self, source, ctx)
        ctx.loop("skills", self.iterations, learning.step, learning.save, learning.load)
        if learning.accuracy is not None and learning.cosine is not None:  # else all iterations had been done before
            ctx.note(apart.tell_success(learning.accuracy, self.skills))
            ctx.note(tell_success(learning.cosine, smaller="env.unit"))
        return RewardTasks(source, Both(learning.rewards, learning.space), learning.policy.policies())

    def rewards(self, source: Environment) -> Both:
        """Return the rewards, to load what was learnt into."""
        discriminator = Discriminator.checked(source, self.skills, self.hidden, self.sees)
        return Both(SkillRewards(discriminator), self.make_space(source))

    def make_space(self, env: Environment) -> Space:
        """Return the space of the movers, with a direction for each."""
        space = Space(env, "directions", count=self.movers, dim=2, hidden=2 * self.hidden, sees=self.sees)
        angle = torch.arange(self.movers) / self.movers * 2 * math.pi
        space.points.copy_(torch.stack([angle.cos(), angle.sin()], 1))
        return space


class Both(nn.Module):
    """The rewards of skills that are told apart, and after them of those that go their own way."""

    def __init__(self, apart: SkillRewards, going: Space) -> None:
        super().__init__()
        self.apart, self.discriminator, self.going = apart, apart.discriminator, going

    @property
    def count(self) -> int:
        return self.apart.count + self.going.count

    @property
    def of_places(self) -> bool:
        """Whether a place alone tells its reward: no, as where it comes from counts for some."""
        return False

    def forward(self, paths: Paths, which: Tensor) -> Tensor:
        """Return what each step earns [T, E, H]; which: each task's reward [T]."""
        first = self.apart.count
        by_state = self.apart(paths, which.clamp(max=first - 1))
        by_step = self.going(paths, (which - first).clamp(min=0))
        return torch.where((which < first)[:, None, None], by_state, by_step)

    def describe(self, states: Tensor) -> list[str]:
        """In numbers."""
        return [*self.apart.describe(states), *self.going.describe(states)]


class Learning(apart.Learning):
    """Policies, the discriminator, and the space on their way."""

    options: DiaynMetra
    learner: Proximal
    cosine: float | None = None  # of the movers' steps and directions, in the last iteration

    def prepare(self, paths: Paths) -> None:
        """Make the space as well, and let both see states in the units of those that random actions led to."""
        super().prepare(paths)
        with seeds.seed_torch(seeds.integer(self.seed, "movers")):
            self.space = self.options.make_space(self.env)
        self.space.standardise(paths)
        self.map = MapLearner(self.space)

    def list_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """List what a checkpoint holds, by name."""
        return {
            **super().list_parts(),
            "space": self.space,
            "dual": self.map.dual,
            "space_adam": self.map.optimiser,
        }

    def learn(self, paths: Paths, skill: Tensor, random: torch.Generator) -> dict[str, float]:
        """Train the discriminator, the map and the policies on the episodes of each skill; say how well they do."""
        first = self.options.skills
        posing, told = paths.of(slice(first)), skill[:first]
        going, way = paths.of(slice(first, None)), self.space.points[skill[first:] - first]
        self.accuracy = self.tell_apart(posing, told, random)
        by_state = self.rewards.at(posing.after, told) - self.options.algorithm.charge(posing.actions, told, first)
        self.map.learn(going, way, random)
        _, self.cosine, by_step = judge(self.space, going, way)
        size = by_state[posing.mask].square().mean().sqrt() + 1e-8  # of rewards by step it is 1
        self.learner.learn(paths, skill, torch.cat([by_state / size, by_step]), random)
        return {"accuracy": self.accuracy, "reward": by_state[posing.mask].mean().item(), "cosine": self.cosine}
