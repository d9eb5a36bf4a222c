"""Practice: episodes without a reward, judged by a regression of the rewards seen so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from umeta.evaluation.guard import choose, did_harm, totals
from umeta.metalearners.maml import MAML
from umeta.rl.ridge import features, moments, predict, regress
from umeta.rl.rollout import Paths
from umeta.tasks.reward import RewardBatch
from umeta.train import policy_of
from umeta.types import Adapted, Batch, Step, Theta

ROUND_NATS = 1.0  # KL divergence of each round's step
MARGIN = 1e-5  # of a return, by which a later round must earn more to be kept: with constant rewards rounding differs
HIDDEN, STEPS, ITEMS, LR = 64, 500, 512, 3e-3  # of a network: width, number of Adam's steps, items in each, their size
HELD_OUT = 5  # one in so many episodes tells when a network has learnt enough
CHECK_EVERY = 25  # of Adam's steps


@dataclass(frozen=True)
class Network:
    """A network of two hidden layers for each task."""

    layers: list[tuple[Tensor, Tensor]]  # weights [T, in, out] and biases [T, 1, out]
    mean: Tensor  # [T, 1, d], with the next: of what goes in
    std: Tensor
    scale: Tensor  # [T, 1] of what comes out

    @classmethod
    def fit(cls, x: Tensor, y: Tensor, mask: Tensor) -> Network:
        """Fit to y [T, E, H] by x [T, E, H, d], and keep the weights with the least error on held-out episodes.

        Where no step makes it less than that of zero, or no episode is held out, the network gives zero.
        """
        random = torch.Generator().manual_seed(0)
        tasks, episodes, _, inputs = x.shape
        held = (torch.arange(episodes) % HELD_OUT == HELD_OUT - 1)[:, None] & mask
        weight = (mask & ~held).flatten(1).to(x)
        count = weight.sum(1).clamp(min=1)[:, None]
        flat, y_flat = x.flatten(1, 2), y.flatten(1)
        mean, std = moments(flat, weight[..., None])
        scale = ((y_flat * weight).square().sum(1, keepdim=True) / count).sqrt().clamp(min=1e-12)
        shapes = [(inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)]
        drawn = [torch.randn(i, o, generator=random) / i**0.5 for i, o in shapes[:-1]] + [torch.zeros(HIDDEN, 1)]
        layers = [(w.repeat(tasks, 1, 1), torch.zeros(tasks, 1, w.shape[1])) for w in drawn]  # all begin alike
        best = cls([(w.clone(), b.clone()) for w, b in layers], mean, std, scale)
        if not held.any():
            return best
        network, every = replace(best, layers=layers), torch.arange(tasks)
        adam = torch.optim.Adam([value.requires_grad_() for layer in layers for value in layer], lr=LR)
        least = (y * held).square().sum((1, 2))
        z, target = best.standardise(flat, every), y_flat / scale
        for step in range(1, STEPS + 1):
            items = torch.randint(z.shape[1], (ITEMS,), generator=random)
            off = (network.run(z[:, items], every) - target[:, items]).square() * weight[:, items]
            adam.zero_grad()
            (off.sum(1) / weight[:, items].sum(1).clamp(min=1)).sum().backward()
            adam.step()
            if step % CHECK_EVERY == 0:
                with torch.no_grad():
                    error = ((network(x, every) - y) * held).square().sum((1, 2))
                    for kept, new in zip(best.layers, layers, strict=True):
                        for a, b in zip(kept, new, strict=True):
                            a[error < least] = b[error < least]
                    least = torch.minimum(error, least)
        return best

    def standardise(self, flat: Tensor, which: Tensor) -> Tensor:
        """Give what the networks take, of x [T, N, d]."""
        return ((flat - self.mean[which]) / self.std[which]).clamp(-5, 5)

    def run(self, z: Tensor, which: Tensor) -> Tensor:
        """Return the networks' outputs [T, N] for z [T, N, d]."""
        for i, (weight, bias) in enumerate(self.layers):
            z = torch.baddbmm(bias[which], z.tanh() if i else z, weight[which])
        return z[..., 0]

    def __call__(self, x: Tensor, which: Tensor) -> Tensor:
        """Return what it gives [T, E, H] for x [T, E, H, d]; which: each one's task."""
        return (self.run(self.standardise(x.flatten(1, 2), which), which) * self.scale[which]).view(x.shape[:3])


@dataclass(frozen=True)
class RegressedRewards:
    """Rewards regressed on steps that earned them, one for each task: a family of rewards like any other.

    By ridge regression on what is observed after a step and its squares, on its change, on the action and its squares,
    and on the time; and by a network on what that leaves. The regression extrapolates, the network bends.
    """

    weights: Tensor  # [T, d + 1]
    network: Network

    @classmethod
    def fit(cls, seen: Sequence[Batch]) -> RegressedRewards:
        """Fit to all steps of these episodes."""
        names = ("x", "after", "y", "reward", "mask")
        each = [[getattr(b, name).unflatten(1, (b.sequences, -1)) for b in seen] for name in names]
        before, after, actions, rewards, mask = (torch.cat(parts, 1) for parts in each)
        described = describe_steps(before, after, actions)
        weights = regress(described, rewards, mask)
        return cls(weights, Network.fit(described, rewards - predict(weights, described).to(rewards), mask))

    @property
    def count(self) -> int:
        return len(self.weights)

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        described = describe_steps(paths.observations[:, :, :-1], paths.after, paths.actions)
        return predict(self.weights[which], described).to(paths.logp) + self.network(described, which)

    def describe(self, states: Tensor) -> list[str]:
        return []


def describe_steps(before: Tensor, after: Tensor, actions: Tensor) -> Tensor:
    """Describe steps [T, E, H, d] by what is observed before and after, and by the actions, each [T, E, H, ...]."""
    return torch.cat([after - before, actions, actions**2, features(after)], -1)


def practise(
    learner: MAML, theta: Theta, adapted: Adapted, seen: Sequence[Batch], batch: RewardBatch, rounds: int
) -> Adapted:
    """Roll out fresh episodes `rounds` times, and take a policy-gradient step after each, under regressed rewards.

    The true ones are not asked for. learner: for the steps; seen: rewarded episodes; batch: the tasks they are of.

    Returns:
        The policy whose episodes earned most by the regression, which may be the one that it began with.
    """
    rewards = RegressedRewards.fit(seen)
    own = replace(batch, tasks=replace(batch.tasks, rewards=rewards), which=torch.arange(rewards.count))
    best, most = adapted.params, torch.full((rewards.count,), -torch.inf)
    policy = replace(adapted, steps=0)
    for i in range(rounds + 1):
        with torch.no_grad():
            act = policy_of(learner, theta, policy)
            episodes = own.batch(own.paths(act, batch.episode.query, f"practice {len(seen)}, round {i}"))
        assert episodes.score is not None
        better = episodes.score - MARGIN * episodes.score.abs() > most
        best = choose(better, policy.params, best)
        most = torch.where(better, episodes.score, most)
        if i < rounds:
            policy = learner.adapt(theta, episodes, start=policy, steps=1)
    return replace(adapted, params=best)


def add_practice(step: Step, learner: MAML, theta: Theta, batch: RewardBatch, rounds: int) -> Step:
    """Return a step that takes `step` once, and practises after it and after each later batch.

    Each time on all rewards seen by then. Where practice did harm, as the next rewarded episodes show, it begins anew
    from where it began before.
    """
    seen: list[Batch] = []
    kept: tuple[Adapted, Tensor] | None = None  # where the last practice began, and what episodes earned before it

    def step_and_practise(adapted: Adapted, episodes: Batch) -> Adapted:
        nonlocal kept
        seen.append(episodes)
        earned = totals(episodes)
        if kept is None:
            adapted = step(adapted, episodes)
        else:
            harm = did_harm(kept[1], earned)
            adapted = replace(adapted, params=choose(harm, kept[0].params, adapted.params))
            earned = torch.where(harm[:, None], kept[1], earned)
        kept = adapted, earned
        return practise(learner, theta, adapted, seen, batch, rounds)

    return step_and_practise
