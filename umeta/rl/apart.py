"""Skills that learn to be told apart by the states they visit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from umeta import seeds
from umeta.objectives import gaussian
from umeta.parts import Context, Environment
from umeta.rl.discriminator import Discriminator, SkillRewards
from umeta.rl.explore import act_randomly, note_early_ends
from umeta.rl.ppo import PPO
from umeta.rl.rollout import Paths, rollout, share_copies, share_rollout
from umeta.rl.sac import SAC
from umeta.rl.skills import SkillPolicy, act
from umeta.runtime.checkpoints import make_resumable


@dataclass(frozen=True)
class ToldApart:
    """Options of a proposer whose skills are told apart."""

    skills: Annotated[int, Gt(1)] = 50
    """how many"""
    iterations: Annotated[int, Gt(0)] = 150
    """rounds of acting and learning"""
    episodes: Annotated[int, Gt(0)] = 4
    """per skill and iteration"""
    hidden: Annotated[int, Gt(0)] = 100
    """width of the two hidden layers of policy, value (critics) and discriminator"""
    lr: Annotated[float, Gt(0)] = 1e-3
    """Adam's step size"""
    algorithm: PPO | SAC = field(default_factory=PPO)
    """what improves the policies: PPO on this iteration's steps, or SAC, as in the original, on a replay of all"""
    discriminator_steps: Annotated[int, Gt(0)] = 10
    """of the discriminator per iteration, on a fifth of its steps each"""
    inputs: Annotated[float, Gt(0)] = 1.0
    """standard deviation of the discriminator's input, over the states that random actions reach"""
    noise: Annotated[float, Ge(0)] = 0.3
    """added to that input in training: skills must be told apart by more than that, and fill the space between the
    extremes instead of crowding there"""
    sees: list[int] | None = None
    """which numbers of the observation the discriminator sees; by default all"""

    @property
    def count(self) -> int:
        """How many skills the policy has."""
        return self.skills


def tell_success(accuracy: float, skills: int) -> str:
    """Describe how well the skills were told apart, and what to do where that is hardly better than chance."""
    said = f"diayn: {skills} skills are told apart in {accuracy:.0%} of their states, by chance in {1 / skills:.0%}"
    failed = (
        ". The skills are alike, and so are their rewards: try more iterations, fewer skills, proposer.sees, or a "
        "smaller env.unit"
    )
    return said + failed * (accuracy < 2 / skills)


class Learning:
    """Policies, what improves them, and the discriminator on their way."""

    def __init__(self, options: ToldApart, env: Environment, ctx: Context) -> None:
        o = self.options = options
        self.env, self.seed = env, ctx.seed
        with seeds.seed_torch(seeds.integer(ctx.seed, "diayn")):
            self.policy = SkillPolicy(env.observation, env.action, o.count, o.hidden)
            self.learner = o.algorithm.build(self.policy, env.discount, o.lr)
            self.discriminator = Discriminator.checked(env, o.skills, o.hidden, o.sees)
        self.rewards = SkillRewards(self.discriminator)  # of the discriminator as it is by then
        paths = act_randomly(env, ctx.seed)
        note_early_ends(env, paths, ctx)
        self.prepare(paths)
        self.optimiser = torch.optim.Adam(self.discriminator.parameters(), lr=o.lr)
        self.mine = share_copies(o.count, "proposer.skills")
        self.simulation = env.simulate(len(self.mine) * o.episodes)
        self.accuracy: float | None = None  # of the discriminator in the last iteration
        self.save, self.load = make_resumable(**self.list_parts())

    def prepare(self, paths: Paths) -> None:
        """Let the discriminator see states in the units of those that random actions led to."""
        seen = self.discriminator.seen(paths.after[paths.mask])
        self.discriminator.standardise(seen.mean(0), seen.std(0), self.options.inputs)

    def list_parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """List what a checkpoint holds, by name."""
        return {
            "learner": self.learner,
            "learner_adam": self.learner.optimiser,
            "discriminator": self.discriminator,
            "discriminator_adam": self.optimiser,
        }

    def step(self, i: int) -> dict[str, float]:
        """One iteration: act, learn to tell the skills apart, earn what that gives.

        Several processes share the skills out to act, and then learn the same of what all of them did.
        """
        o, random = self.options, seeds.generator(self.seed, "diayn", i)
        noise = torch.randn(o.count, o.episodes, self.env.horizon, self.env.action, generator=random)
        u = torch.rand(o.count, o.episodes, self.env.randoms, generator=random)

        def roll_out() -> Paths:
            return rollout(self.simulation, act(self.policy.policies(self.mine)), noise[self.mine], u[self.mine])

        paths = share_rollout(self.policy, roll_out, 0)
        skill = torch.arange(o.count).view(-1, 1, 1).expand_as(paths.mask)
        found = self.learn(paths, skill, random)
        std = gaussian(torch.cat([self.policy.log_std] * 2, -1))[1].exp().mean().item()
        return {**found, "std": std}

    def learn(self, paths: Paths, skill: Tensor, random: torch.Generator) -> dict[str, float]:
        """Train the discriminator and the policies on the episodes of each skill; say how well they do."""
        self.accuracy = self.tell_apart(paths, skill, random)
        earned = (self.rewards.at(paths.after, skill) * paths.mask).sum() / paths.mask.sum()
        self.learner.improve(paths, skill, self.rewards.at, random)
        return {"accuracy": self.accuracy, "reward": earned.item()}

    def tell_apart(self, paths: Paths, skill: Tensor, random: torch.Generator) -> float:
        """Train the discriminator on the states of this iteration; returns its accuracy on them."""
        states, labels = paths.after[paths.mask], skill[paths.mask]
        right = 0.0
        for _ in range(self.options.discriminator_steps):
            part = torch.randperm(len(states), generator=random)[: max(len(states) // 5, 1)]
            seen = self.discriminator.seen(states[part])
            seen = seen + self.options.noise * torch.randn(seen.shape, generator=random)
            logits = self.discriminator.layers(seen)
            self.optimiser.zero_grad()
            F.cross_entropy(logits, labels[part]).backward()
            self.optimiser.step()
            right = (logits.argmax(-1) == labels[part]).float().mean().item()
        return right
