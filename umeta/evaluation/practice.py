"""Practice: episodes without a reward, scored by what the rewards seen so far tell of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from umeta.metalearners.maml import MAML
from umeta.rl.ridge import features, predict, regress
from umeta.rl.rollout import Paths
from umeta.tasks.reward import RewardBatch
from umeta.train import policy_of
from umeta.types import Adapted, Batch, Theta, along

NATS = 0.3  # of a round's step
MARGIN = 1e-3  # of a return, by which a later round must earn more to count: where all earn the same, rounding differs


@dataclass(frozen=True)
class RegressedRewards:
    """Rewards regressed on steps that earned them, one for each task: a family of rewards like any other.

    By ridge regression on what is observed after a step and its squares, on its change, on the action and its squares,
    and on the time.
    """

    weights: Tensor  # [T, d + 1]

    @classmethod
    def fit(cls, seen: Sequence[Batch]) -> RegressedRewards:
        """Fit to all steps of these episodes but the last of each, after which nothing is observed."""
        each = [[getattr(b, n).unflatten(1, (b.sequences, -1)) for b in seen] for n in ("x", "y", "reward", "mask")]
        x, actions, rewards, mask = (torch.cat(parts, 1) for parts in each)
        described = describe_steps(x, actions[:, :, :-1])
        return cls(regress(described, rewards[:, :, :-1], mask[:, :, :-1]))

    @property
    def count(self) -> int:
        return len(self.weights)

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        return predict(self.weights[which], describe_steps(paths.observations, paths.actions)).to(paths.logp)

    def describe(self, states: Tensor) -> list[str]:
        return []


def describe_steps(observations: Tensor, actions: Tensor) -> Tensor:
    """Describe steps [T, E, H, d] by observations [T, E, H + 1, ...] and actions [T, E, H, ...]."""
    before, after = observations[:, :, :-1], observations[:, :, 1:]
    return torch.cat([after - before, actions, actions**2, features(after)], -1)


def practise(
    learner: MAML, theta: Theta, adapted: Adapted, seen: Sequence[Batch], batch: RewardBatch, rounds: int
) -> Adapted:
    """Take a step of the policy gradient in each of some rounds of fresh episodes, under regressed rewards.

    The true ones are not asked for. learner: for the steps; seen: rewarded episodes; batch: the tasks they are of.

    Returns:
        The policy whose episodes earned most by the regression, which may be the one that it began with.
    """
    rewards = RegressedRewards.fit(seen)
    own = replace(batch, tasks=replace(batch.tasks, rewards=rewards), which=torch.arange(rewards.count))
    best, most = adapted.params, torch.full((rewards.count,), -torch.inf)
    at = replace(adapted, steps=0)
    for i in range(rounds + 1):
        with torch.no_grad():
            paths = own.paths(policy_of(learner, theta, at), batch.episode.query, f"practice {len(seen)}, round {i}")
            episodes = own.batch(paths)
        assert episodes.score is not None
        better = episodes.score - MARGIN * episodes.score.abs() > most
        best = {name: torch.where(along(better, value), at.params[name], value) for name, value in best.items()}
        most = torch.where(better, episodes.score, most)
        if i < rounds:
            at = learner.adapt(theta, episodes, start=at, steps=1)
    return replace(adapted, params=best)


def practising(
    step: Callable[[Adapted, Batch], Adapted], learner: MAML, theta: Theta, batch: RewardBatch, rounds: int
) -> Callable[[Adapted, Batch], Adapted]:
    """Return the step with so many rounds of practice after it, on all the rewards that it has been shown by then."""
    seen: list[Batch] = []

    def go(adapted: Adapted, episodes: Batch) -> Adapted:
        seen.append(episodes)
        return practise(learner, theta, step(adapted, episodes), seen, batch, rounds)

    return go
