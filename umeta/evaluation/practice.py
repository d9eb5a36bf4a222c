"""Practice: episodes without a reward, judged by a regression of the rewards seen so far."""

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

NATS = 1.0  # of a round's step
MARGIN = 1e-3  # of a return, by which a later round must earn more to count: where all earn the same, rounding differs
HIDDEN, STEPS, ITEMS, LR = 64, 500, 512, 3e-3  # of a network: its width, Adam's steps, and items and size of each
KEPT_OUT = 5  # one in so many episodes tells when a network has learnt enough,
CHECKED = 25  # and is looked at after so many of Adam's steps


@dataclass(frozen=True)
class Network:
    """A network of two hidden layers for each task."""

    layers: list[tuple[Tensor, Tensor]]  # weights [T, in, out] and biases [T, 1, out]
    mean: Tensor  # [T, 1, d], with the next: of what goes in
    std: Tensor
    scale: Tensor  # [T, 1] of what comes out

    @classmethod
    def fit(cls, x: Tensor, y: Tensor, mask: Tensor) -> Network:
        """Fit to y [T, E, H] by x [T, E, H, d], for as long as that helps with episodes that are kept out.

        Where it never does, the network gives zero.
        """
        random = torch.Generator().manual_seed(0)
        tasks, episodes, _, inputs = x.shape
        held = (torch.arange(episodes) % KEPT_OUT == KEPT_OUT - 1)[:, None] & mask
        taught = mask & ~held
        there = taught.flatten(1)[..., None].to(x)
        count = there.sum(1, keepdim=True).clamp(min=1)
        flat = x.flatten(1, 2)
        mean = (flat * there).sum(1, keepdim=True) / count
        std = (((flat - mean) * there).square().sum(1, keepdim=True) / count).sqrt().clamp(min=1e-6)
        scale = ((y * taught).square().sum((1, 2)) / count[:, 0, 0]).sqrt().clamp(min=1e-12)[:, None]
        shapes = [(inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)]
        layers = [
            (torch.randn(tasks, i, o, generator=random) / i**0.5 * (o > 1), torch.zeros(tasks, 1, o)) for i, o in shapes
        ]
        params = [value.requires_grad_() for layer in layers for value in layer]
        best = cls([(w.detach().clone(), b.detach().clone()) for w, b in layers], mean, std, scale)
        at = cls(layers, mean, std, scale)
        least = (y * held).square().sum((1, 2))
        adam = torch.optim.Adam(params, lr=LR)
        every = torch.arange(tasks)
        target, weight = y.flatten(1) / scale, taught.flatten(1).to(y)
        z = at.standardise(flat, every)
        for step in range(1, STEPS + 1):
            some = torch.randint(z.shape[1], (ITEMS,), generator=random)
            loss = ((at.run(z[:, some], every) - target[:, some]).square() * weight[:, some]).sum()
            adam.zero_grad()
            (loss / weight[:, some].sum().clamp(min=1)).backward()
            adam.step()
            if step % CHECKED == 0:
                with torch.no_grad():
                    errors = ((at(x, every) - y) * held).square().sum((1, 2))
                    better = errors < least
                    least = torch.where(better, errors, least)
                    for old, new in zip(best.layers, at.layers, strict=True):
                        for a, b in zip(old, new, strict=True):
                            a[better] = b[better]
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
    and on the time; and by a network on what that leaves. The first carries on beyond what was seen, the second bends.
    """

    weights: Tensor  # [T, d + 1]
    network: Network

    @classmethod
    def fit(cls, seen: Sequence[Batch]) -> RegressedRewards:
        """Fit to all steps of these episodes but the last of each, after which nothing is observed."""
        each = [[getattr(b, n).unflatten(1, (b.sequences, -1)) for b in seen] for n in ("x", "y", "reward", "mask")]
        x, actions, rewards, mask = (torch.cat(parts, 1) for parts in each)
        described, rewards, mask = describe_steps(x, actions[:, :, :-1]), rewards[:, :, :-1], mask[:, :, :-1]
        weights = regress(described, rewards, mask)
        left = rewards - predict(weights, described).to(rewards)
        return cls(weights, Network.fit(described, left, mask))

    @property
    def count(self) -> int:
        return len(self.weights)

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        described = describe_steps(paths.observations, paths.actions)
        return predict(self.weights[which], described).to(paths.logp) + self.network(described, which)

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
