"""Skills that can be told apart by the states they visit, and the rewards that tell them apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from umeta import seeds
from umeta.context import RunContext
from umeta.objectives import gaussian, log_probability
from umeta.rl.advantage import gae, normalised
from umeta.rl.discriminator import Discriminator, SkillRewards
from umeta.rl.explore import wandering
from umeta.rl.rollout import Paths, rollout
from umeta.rl.skills import SkillPolicy, act
from umeta.tasks.reward import RewardTasks
from umeta.types import Embedder, Environment


@dataclass(frozen=True)
class Diayn:
    """Diversity is all you need (DIAYN, Eysenbach et al. 2018, algorithm 1), its skills as rewards (Gupta et al. 2018).

    A discriminator learns to tell from a state which skill z led there, a policy per skill earns `log p(z|s)`. The
    original learns by SAC, one update a step; here all skills act in many copies of a fast simulator at once and learn
    on-policy by PPO (Schulman et al. 2017), which takes minutes. Rewards are always those of the present discriminator,
    on the states it learns from, and an episode cut short by the horizon counts on with its value.
    """

    skills: Annotated[int, Gt(1)] = 50
    """how many"""
    iterations: Annotated[int, Gt(0)] = 150
    """rounds of acting and learning"""
    episodes: Annotated[int, Gt(0)] = 4
    """per skill and iteration"""
    hidden: Annotated[int, Gt(0)] = 100
    """width of the two hidden layers of policy, value and discriminator"""
    lr: Annotated[float, Gt(0)] = 1e-3
    """Adam's step size"""
    clip: Annotated[float, Gt(0)] = 0.2
    """PPO's bound on probability ratios"""
    epochs: Annotated[int, Gt(0)] = 4
    """PPO's passes over an iteration's steps, in four parts each"""
    lam: Annotated[float, Ge(0)] = 0.95
    """of generalised advantage estimation"""
    entropy: Annotated[float, Ge(0)] = 0.0
    """bonus per nat of the policy's entropy"""
    discriminator_steps: Annotated[int, Gt(0)] = 10
    """of the discriminator per iteration, on a fifth of its steps each"""
    inputs: Annotated[float, Gt(0)] = 1.0
    """standard deviation of the discriminator's input, over the states that random actions reach"""
    noise: Annotated[float, Ge(0)] = 0.3
    """added to that input in training: skills must be told apart by more than that, and fill the space between the
    extremes instead of crowding there"""
    sees: list[int] | None = None
    """which numbers of the observation the discriminator sees; by default all"""

    domain: ClassVar[Literal["image", "env"]] = "env"
    sees_labels: ClassVar[bool] = False

    def propose(self, source: Environment, ctx: RunContext, embedder: Embedder | None = None) -> RewardTasks:
        """A reward per skill, and the skills' policies.

        Raises:
            UserError: the simulation breaks, or `sees` names numbers that it does not observe.
        """
        learning = Learning(self, source, ctx)
        ctx.loop("diayn", self.iterations, learning.step, learning.save, learning.load)
        return RewardTasks(source, SkillRewards(learning.discriminator), learning.policy.policies())


class Learning:
    """Policy, value and discriminator on their way."""

    def __init__(self, options: Diayn, env: Environment, ctx: RunContext) -> None:
        self.options, self.env, self.seed = options, env, ctx.seed
        skills, hidden = options.skills, options.hidden
        with torch.random.fork_rng():
            torch.manual_seed(seeds.integer(ctx.seed, "diayn"))
            self.policy = SkillPolicy(env.observation, env.action, skills, hidden)
            self.value = nn.Sequential(
                nn.Linear(env.observation + skills, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
            ).append(nn.Linear(hidden, 1))
            self.discriminator = Discriminator.checked(env, skills, hidden, options.sees)
        seen = self.discriminator.seen(wandering(env, ctx))
        self.discriminator.standardise(seen.mean(0), seen.std(0), options.inputs)
        self.nets = nn.ModuleDict({"policy": self.policy, "value": self.value, "discriminator": self.discriminator})
        # one optimiser for all: a parameter without a gradient is left alone
        self.optimiser = torch.optim.Adam(self.nets.parameters(), lr=options.lr)
        self.scale = torch.ones(())  # of the rewards, a running mean: what the value is in units of
        self.simulation = env.simulate(skills * options.episodes)

    def step(self, i: int) -> dict[str, float]:
        """One iteration: act, learn to tell the skills apart, earn what that gives."""
        o, random = self.options, seeds.generator(self.seed, "diayn", i)
        noise = torch.randn(o.skills, o.episodes, self.env.horizon, self.env.action, generator=random)
        u = torch.rand(o.skills, o.episodes, self.env.randoms, generator=random)
        paths = rollout(self.simulation, act(self.policy.policies()), noise, u)
        skill = torch.arange(o.skills).view(-1, 1, 1).expand_as(paths.mask)
        accuracy = self.tell_apart(paths, skill, random)
        rewards = SkillRewards(self.discriminator)(paths, torch.arange(o.skills))
        self.improve(paths, skill, rewards, random)
        std = gaussian(torch.cat([self.policy.log_std] * 2, -1))[1].exp().mean().item()
        earned = (rewards * paths.mask).sum() / paths.mask.sum()
        return {"accuracy": accuracy, "reward": earned.item(), "std": std}

    def tell_apart(self, paths: Paths, skill: Tensor, random: torch.Generator) -> float:
        """Trains the discriminator on the states of this iteration; returns its accuracy on them."""
        states, labels = paths.after[paths.mask], skill[paths.mask]
        right = 0.0
        for _ in range(self.options.discriminator_steps):
            part = torch.randperm(len(states), generator=random)[: max(len(states) // 5, 1)]
            seen = self.discriminator.seen(states[part])
            seen = seen + self.options.noise * torch.randn(seen.shape, generator=random)
            logits = self.discriminator.layers(seen)
            self.descend(F.cross_entropy(logits, labels[part]))
            right = (logits.argmax(-1) == labels[part]).float().mean().item()
        return right

    def improve(self, paths: Paths, skill: Tensor, rewards: Tensor, random: torch.Generator) -> None:
        """PPO on the skills' rewards."""
        o = self.options
        self.scale = torch.lerp(self.scale, rewards[paths.mask].square().mean().sqrt(), 0.1)
        rewards = rewards / self.scale
        with torch.no_grad():
            skills = torch.arange(o.skills).view(-1, 1, 1).expand(*paths.observations.shape[:3])
            values = self.valued(paths.observations, skills)
            advantage = gae(rewards, values[..., :-1], paths.mask, self.env.discount, o.lam, last=values[..., -1])
        target = advantage + values[..., :-1]
        w = normalised(advantage, paths.mask)
        every = [paths.observations[:, :, :-1], skill, paths.actions, paths.logp, w, target]
        flat = [value[paths.mask] for value in every]
        for part in parts(len(flat[0]), o.epochs, random):
            x, z, action, logp, gain, aim = (value[part] for value in flat)
            output = self.policy(x, z)
            ratio = (log_probability(output, action) - logp).exp()
            clipped = torch.minimum(ratio * gain, ratio.clamp(1 - o.clip, 1 + o.clip) * gain).mean()
            entropy = gaussian(output)[1].sum(-1).mean()
            self.descend(-clipped - o.entropy * entropy + F.mse_loss(self.valued(x, z), aim))

    def valued(self, observations: Tensor, skill: Tensor) -> Tensor:
        """Values [...] of observations [..., d] under skills [...]."""
        told = F.one_hot(skill, self.options.skills).to(observations.dtype)
        return self.value(torch.cat([observations, told], -1))[..., 0]

    def descend(self, loss: Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def save(self) -> dict[str, Tensor]:
        """Everything a later step depends on."""
        state = {f"nets.{name}": value for name, value in self.nets.state_dict().items()}
        for name, param in self.nets.named_parameters():
            state |= {f"adam.{name}.{key}": value for key, value in self.optimiser.state[param].items()}
        return {**state, "scale": self.scale}

    def load(self, state: dict[str, Tensor]) -> None:
        found = {name.removeprefix("nets."): value for name, value in state.items() if name.startswith("nets.")}
        self.nets.load_state_dict(found)
        for name, param in self.nets.named_parameters():
            moments = {key: state[f"adam.{name}.{key}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
            self.optimiser.state[param] = moments
        self.scale = state["scale"]


def parts(count: int, epochs: int, random: torch.Generator) -> Iterator[Tensor]:
    """Which items to take in each step: every epoch all of them once, in four parts."""
    for _ in range(epochs):
        yield from torch.randperm(count, generator=random).chunk(4)
