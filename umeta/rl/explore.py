"""What an environment shows of itself before anything has been learnt."""

from __future__ import annotations

import torch
from torch import Tensor

from umeta import seeds
from umeta.rl.rollout import rollout
from umeta.types import Environment

EPISODES = 50


def wandering(env: Environment, seed: int) -> Tensor:
    """States that random actions lead to, ended episodes left out: [n, observation]."""
    random = seeds.generator(seed, "wandering")
    noise = torch.randn(1, EPISODES, env.horizon, env.action, generator=random)
    u = torch.rand(1, EPISODES, env.randoms, generator=random)
    still = torch.zeros(1, EPISODES, 2 * env.action)
    paths = rollout(env.simulate(EPISODES), lambda x: still, noise, u)
    return paths.after[paths.mask]
