"""What an environment shows of itself: before anything has been learnt, and to the skills that were."""

from __future__ import annotations

import torch
from torch import Tensor

from umeta import seeds
from umeta.parts import Context, Environment
from umeta.rl.rollout import Paths, rollout
from umeta.rl.skills import act
from umeta.types import Act

EPISODES = 50  # of random actions
EACH = 4  # of each skill


def collect_states(env: Environment, ctx: Context) -> Tensor:
    """Return states that random actions lead to, not after an end [n, observation]; note where episodes end early."""
    paths = act_randomly(env, ctx.seed)
    note_early_ends(env, paths, ctx)
    return paths.after[paths.mask]


def note_early_ends(env: Environment, paths: Paths, ctx: Context) -> None:
    """Note it where episodes of random actions end early."""
    if early := int((~paths.mask.all(-1)).sum()):
        ctx.note(
            f"env: {early} of {EPISODES} episodes of random actions end before step {env.horizon}. The reward of a "
            "skill, log p(z|s) + log K, is negative wherever other skills are likelier, and then the shorter an "
            "episode the better: skills and learners may learn to end it. Safer is an environment that goes on"
        )


def roll_out_skills(env: Environment, skills: dict[str, Tensor] | None) -> Paths:
    """Roll out a few episodes of each skill [K, EACH, ...], or of random actions [1, EPISODES, ...] without skills."""
    if skills is None:
        return act_randomly(env, 0)
    return episodes(env, act(skills), len(skills["head.free"]), EACH, seeds.generator(0, "reached"))


def act_randomly(env: Environment, seed: int) -> Paths:
    """Roll out episodes of random actions [1, EPISODES, ...]."""
    still = torch.zeros(1, EPISODES, 2 * env.action)
    return episodes(env, lambda x: still, 1, EPISODES, seeds.generator(seed, "wandering"))


def episodes(
    env: Environment, act: Act, policies: int, count: int, random: torch.Generator, noiseless: int = 0
) -> Paths:
    """So many episodes of each of the policies [policies, count, ...], the first ones without noise."""
    noise = torch.randn(policies, count, env.horizon, env.action, generator=random)
    noise[:, :noiseless] = 0
    u = torch.rand(policies, count, env.randoms, generator=random)
    return rollout(env.simulate(policies * count), act, noise, u)
