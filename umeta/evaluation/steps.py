"""Ways in which a policy learns from the episodes that it has seen: its own steps, and those tried beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from umeta.metalearners.maml import MAML
from umeta.objectives import log_probability
from umeta.parts import Environment
from umeta.tasks.reward import policy_spec
from umeta.types import Adapted, Batch, EpisodeSpec, PolicyLearner, Step, Theta

SGD = {"constant": (0.1, 0.3, 1.0), "harmonic": (0.3, 1.0, 3.0)}  # step sizes tried for every row
NATS = (0.1, 0.3, 1.0)  # KL divergences of a first step
ADAM = (0.003, 0.01, 0.03)
PPO = (0.001, 0.003, 0.01)
EPOCHS, CLIP = 10, 0.2  # of PPO


def change_learner(learner: MAML, env: Environment, **options: Any) -> MAML:
    """Return the same learner with other options, ready to adapt on the environment."""
    return replace(learner, **options).build(policy_spec(env), EpisodeSpec(1, 1, 1))


def own_step(learner: PolicyLearner, theta: Theta) -> Step:
    """Return the learner's own inner step."""
    return lambda adapted, batch: learner.adapt(theta, batch, start=adapted, steps=1)


def adam_step(learner: MAML, env: Environment, theta: Theta, lr: float) -> Step:
    """Adam (Kingma and Ba 2015) on each task's policy, which keeps its moments from step to step."""
    unit = change_learner(learner, env, inner_lr=1.0, schedule="constant")
    params: dict[str, Tensor] = {}
    adam: list[torch.optim.Adam] = []  # made at the first step

    def step(adapted: Adapted, batch: Batch) -> Adapted:
        if not adam:
            params.update({name: value.detach().clone() for name, value in adapted.params.items()})
            adam.append(torch.optim.Adam(params.values(), lr=lr))
        after = unit.adapt(theta, batch, start=adapted, steps=1)
        for name, value in params.items():
            value.copy_(adapted.params[name])  # a guard may have gone back
            value.grad = adapted.params[name] - after.params[name]  # a step of size 1
        adam[0].step()
        return replace(after, params={name: value.clone() for name, value in params.items()})

    return step


def ppo_step(learner: MAML, env: Environment, theta: Theta, lr: float) -> Step:
    """`EPOCHS` steps of Adam on the clipped objective (PPO, Schulman et al. 2017, equation 7) of the same episodes."""
    adam = adam_step(learner, env, theta, lr)

    def step(adapted: Adapted, batch: Batch) -> Adapted:
        assert batch.w is not None
        assert batch.logp is not None
        for _ in range(EPOCHS):
            ratio = (log_probability(learner.predict(theta, adapted, batch.x), batch.y) - batch.logp).exp()
            clipped = torch.where(batch.w > 0, ratio > 1 + CLIP, ratio < 1 - CLIP)  # where it has no gradient
            adapted = adam(adapted, replace(batch, w=batch.w.masked_fill(clipped, 0)))
        return adapted

    return step


def list_candidates(learner: MAML, env: Environment, theta: Theta) -> dict[str, Callable[[], Step]]:
    """Ways to train a policy by gradient steps alone, of which the best on validation goals is tested."""
    found: dict[str, Callable[[], Step]] = {}
    for schedule, rates in SGD.items():
        for lr in rates:
            plain = change_learner(learner, env, inner_lr=lr, schedule=schedule)
            found[f"SGD {lr:g}{'/k' if schedule == 'harmonic' else ''}"] = partial(own_step, plain, theta)
    for nats in NATS:
        sized = change_learner(learner, env, inner_kl=nats, schedule="harmonic")
        found[f"{nats:g}/k nats"] = partial(own_step, sized, theta)
    for lr in ADAM:
        found[f"Adam {lr:g}"] = partial(adam_step, learner, env, theta, lr)
    for lr in PPO:
        found[f"PPO {lr:g}"] = partial(ppo_step, learner, env, theta, lr)
    return found


def follow(first: Callable[[], Step], rest: Callable[[], Step]) -> Step:
    """Return a step that takes `first` once and `rest` from then on."""
    begin, go_on = first(), rest()
    return lambda adapted, batch: (go_on if adapted.steps else begin)(adapted, batch)


def stay(adapted: Adapted, batch: Batch) -> Adapted:
    """Learn nothing more."""
    return adapted
