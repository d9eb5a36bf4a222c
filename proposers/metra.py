"""Skills that move as far and as fast as asked for, in a space that is learnt, and rewards in that space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from umeta import seeds
from umeta.objectives import gaussian
from umeta.parts import Context, Embedder, Environment
from umeta.rl.explore import act_randomly
from umeta.rl.ppo import PPO
from umeta.rl.rollout import Paths, rollout, share_copies, share_rollout
from umeta.rl.skills import SpacePolicy
from umeta.rl.space import Family, MapLearner, Space, judge, tell_success
from umeta.runtime.checkpoints import make_resumable
from umeta.tasks.reward import RewardTasks

FARTHEST = 0.25  # share of the skills that had come farther than the farthest place
PATIENCE = 3  # steps in which what is left of the way is to be gone
FASTEST = 1.5  # length of the longest skill; beyond 1 it asks for more than a step can do


@dataclass(frozen=True)
class Metra:
    """METRA (Park, Rybkin, Levine 2024, arXiv 2310.08887) on-policy, with rewards for moving in the space it learns.

    A map phi of states learns to be moved along by skills z, `E (phi(s') - phi(s))'z`, while one step stays at most 1
    long (section 4.2, a dual variable for the constraint); skills earn this alignment. Once they are aligned they earn
    `1 / (1 + 10 |phi(s') - phi(s) - z|^2)` instead, as in Constrained Skill Discovery (arXiv 2410.07877): the length of
    z says how fast. All skills act in a fast simulator at once and learn by PPO (Schulman et al. 2017), where the
    authors' learn by SAC.

    Where tasks are places, all of this takes the first three quarters of the iterations. In the last quarter a copy of
    the policy is told where to end, and learns to act as the original does when it is told anew, at each step, what is
    left of the way (DAgger, Ross, Gordon, Bagnell 2011). A quarter of the skills had come farther than the farthest
    place.
    """

    skills: Annotated[int, Gt(1)] = 50
    """how many points of the space have a reward and a stored policy"""
    family: Family = "velocities"
    """what the tasks ask for: to go in directions of the space, at velocities, or to places in it, which only policies
    that observe where they are can do"""
    dim: Annotated[int, Gt(0)] = 2
    """of the space"""
    discrete: bool = False
    """whether a skill is one of `skills` kinds, a centred one-hot vector as in the authors' code, and not a point in a
    ball; the space then has as many dimensions as there are skills, whatever `dim` says"""
    iterations: Annotated[int, Gt(0)] = 500
    """rounds of acting and learning"""
    episodes: Annotated[int, Gt(0)] = 50
    """per iteration, each of a skill of its own"""
    hidden: Annotated[int, Gt(0)] = 64
    """width of the two hidden layers of policy and value; the map's are twice as wide"""
    lr: Annotated[float, Gt(0)] = 1e-3
    """Adam's step size for policy and value"""
    map_lr: Annotated[float, Gt(0)] = 1e-3
    """Adam's step size for the map and the dual variable"""
    map_steps: Annotated[int, Gt(0)] = 20
    """of the map per iteration, on a tenth of its steps each"""
    sees: list[int] | None = None
    """which numbers the map sees, of the observation and, after it, the two of the position; by default all. The
    policies see the observation alone"""
    domain: ClassVar[Literal["image", "env"]] = "env"
    sees_labels: ClassVar[bool] = False

    @property
    def count(self) -> int:
        """How many skills the policy has."""
        return self.skills

    @property
    def size(self) -> int:
        """Dimensions of the space."""
        return self.skills if self.discrete else self.dim

    def draw(self, count: int, random: torch.Generator) -> Tensor:
        """Draw what policies are told [count, size]."""
        if self.discrete:
            return centre(torch.randint(self.skills, (count,), generator=random), self.skills)
        return draw_skills(count, self.dim, random)

    def propose(self, source: Environment, ctx: Context, embedder: Embedder | None = None) -> RewardTasks:
        """Return a reward per point, and the policies of skills.

        Raises:
            UserError: the simulation breaks, or `sees` names numbers that there are not.
        """
        learning = Learning(self, source, ctx)
        ctx.loop("metra", self.iterations, learning.step, learning.save, learning.load)
        if learning.cosine is not None:  # else all iterations had been done before
            ctx.note(tell_success(learning.cosine))
        if learning.missed is not None:
            far = learning.space.points.norm(dim=1).max().item()
            ctx.note(
                f"metra: skills end {learning.missed:.1f} from where they are told to be, which is up to {far:.1f} away"
            )
        return RewardTasks(source, learning.space, learning.placer.policies(learning.stored))

    def rewards(self, source: Environment) -> Space:
        """Return the rewards, to load what was learnt into."""
        return Space(source, self.family, count=self.skills, dim=self.size, hidden=2 * self.hidden, sees=self.sees)


def draw_skills(count: int, dim: int, random: torch.Generator) -> Tensor:
    """Draw skills [count, dim], uniform in a ball."""
    way = nn.functional.normalize(torch.randn(count, dim, generator=random), dim=-1)
    return FASTEST * torch.rand(count, 1, generator=random) ** (1 / dim) * way


def centre(kinds: Tensor, count: int) -> Tensor:
    """Give the one-hot vectors [n, count] of kinds [n] less their mean, so long that their own number is 1."""
    return (nn.functional.one_hot(kinds, count) - 1 / count) * (count / (count - 1))


class Learning:
    """The policy, what improves it, and the space on their way."""

    def __init__(self, options: Metra, env: Environment, ctx: Context) -> None:
        o = self.options = options
        self.env, self.seed = env, ctx.seed
        self.cosine: float | None = None  # of steps and skills, in the last iteration that the map learnt in
        self.missed: float | None = None  # mean distance from their places that the last episodes ended at
        with seeds.seed_torch(seeds.integer(ctx.seed, "metra")):
            self.policy = SpacePolicy(env.observation, env.action, o.size, o.hidden)
            self.learner = PPO().build(self.policy, env.discount, o.lr)
            self.space = o.rewards(env)
            self.placer = self.policy  # which is told what the tasks ask for
            if o.family == "places":
                self.placer = SpacePolicy(env.observation, env.action, o.size, o.hidden)
        self.space.standardise(act_randomly(env, ctx.seed))
        # what skills are told is longer than the points: the longest ask for more than a step can do
        drawn = draw_skills(o.skills, o.dim, seeds.generator(ctx.seed, "metra, stored"))
        self.stored = centre(torch.arange(o.skills), o.skills) if o.discrete else drawn
        lengths = self.stored.norm(dim=1, keepdim=True)
        longest = lengths if o.discrete else FASTEST  # kinds are of one length
        self.space.points.copy_(self.stored / (lengths if o.family == "directions" else longest))
        self.map = MapLearner(self.space, o.map_lr, o.map_steps)
        self.placer_optimiser = torch.optim.Adam(self.placer.parameters(), lr=o.lr)
        self.mine = share_copies(o.episodes, "proposer.episodes")
        self.simulation = env.simulate(len(self.mine))
        placing: dict[str, nn.Module | torch.optim.Optimizer] = {}
        if o.family == "places":
            placing = {"placer": self.placer, "placer_adam": self.placer_optimiser}
        self.save, self.load = make_resumable(
            learner=self.learner,
            learner_adam=self.learner.optimiser,
            space=self.space,
            dual=self.map.dual,
            space_adam=self.map.optimiser,
            **placing,
        )

    def step(self, i: int) -> dict[str, float]:
        """One iteration: act, learn the space, earn what going one's way in it gives.

        Several processes share the episodes out to act, and then learn the same of all of them.
        """
        o, random = self.options, seeds.generator(self.seed, "metra", i)
        turn = o.iterations * 3 // 4 if o.family == "places" else o.iterations  # from which on it is taught
        if i == turn:
            self.placer.load_state_dict(self.policy.state_dict())
        policy = self.policy if i < turn else self.placer
        z = o.draw(o.episodes, random)
        noise = torch.randn(1, o.episodes, self.env.horizon, self.env.action, generator=random)
        u = torch.rand(1, o.episodes, self.env.randoms, generator=random)

        def roll_out() -> Paths:
            told = z[None, self.mine]
            return rollout(self.simulation, lambda x: policy(x, told), noise[:, self.mine], u[:, self.mine])

        paths = share_rollout(policy, roll_out, 1)
        skill = z[None, :, None].expand(*paths.mask.shape, -1)
        found = self.go(paths, skill, random) if i < turn else self.stay(paths, skill, random, first=i == turn)
        std = gaussian(torch.cat([self.policy.log_std] * 2, -1))[1].exp().mean().item()
        return {**found, "std": std}

    def go(self, paths: Paths, skill: Tensor, random: torch.Generator) -> dict[str, float]:
        """Train the map, and the policy on what going one's way in it earns; say how well it does."""
        length = self.map.learn(paths, skill, random)
        d, self.cosine, earned = judge(self.space, paths, skill)
        self.learner.learn(paths, skill, earned, random)
        off = (d - skill).norm(dim=-1)[paths.mask].mean().item()
        return {"cosine": self.cosine, "length": length, "off": off, "dual": self.map.dual[0].exp().item()}

    def stay(self, paths: Paths, skill: Tensor, random: torch.Generator, first: bool) -> dict[str, float]:
        """Teach where to end, by the policy that is told which way to go; first: decide how far places are."""
        there = paths.mask
        with torch.no_grad():
            phi = self.space.locate(self.space.seen(paths))
            come = phi - phi[:, :, :1]
            if first:
                self.space.points.mul_(come[:, :, -1].norm(dim=-1).quantile(1 - FARTHEST))
            left = skill * (self.space.points.norm() / self.stored.norm()) - come[:, :, :-1]
            way = left / PATIENCE
            way = way * (FASTEST / way.norm(dim=-1, keepdim=True)).clamp(max=1)
            x, z = paths.observations[:, :, :-1][there], skill[there]
            taught = self.policy(x, way[there])[:, : self.env.action]
        for part in self.map.draw_parts(len(z), random):
            loss = nn.functional.smooth_l1_loss(self.placer(x[part], z[part])[:, : self.env.action], taught[part])
            self.placer_optimiser.zero_grad()
            loss.backward()
            self.placer_optimiser.step()
        self.missed = left[:, :, -1].norm(dim=-1).mean().item()
        return {"off": left[there].norm(dim=-1).mean().item(), "loss": loss.item()}
