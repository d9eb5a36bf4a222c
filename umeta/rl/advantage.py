"""From rewards to advantages: how much better an action was than what was to be expected there."""

from __future__ import annotations

import torch
from torch import Tensor

from umeta.rl.ridge import crossfit, features
from umeta.rl.rollout import Paths


def advantages(paths: Paths, rewards: Tensor, discount: float, lam: float = 1.0) -> Tensor:
    """Advantages [T, E, H] of each task's steps, normalised to mean 0 and standard deviation 1 over the task.

    Against a linear baseline, fitted to the other half of the task's episodes so that it knows nothing of those it
    scores. Normalising makes pseudo-rewards and true rewards, which differ in scale, alike to a learner.
    """
    x = features(paths.observations[:, :, :-1])
    values = crossfit(x, returns(rewards, paths.mask, discount), paths.mask)
    return normalise(gae(rewards, values, paths.mask, discount, lam), paths.mask)


def trial_advantages(observations: Tensor, rewards: Tensor, mask: Tensor, discount: float) -> Tensor:
    """Advantages [T, E, R, H] in E trials of R episodes one after the other: later episodes count for earlier ones.

    observations: [T, E, R, H, d]. The baseline, otherwise as in `advantages`, is each episode's of the trial.
    """
    coming = returns(rewards.flatten(2), mask.flatten(2), discount).view_as(rewards)
    rounds = zip(observations.unbind(2), coming.unbind(2), mask.unbind(2), strict=True)
    values = torch.stack([crossfit(features(o), y, there) for o, y, there in rounds], 2)
    return normalise(((coming - values) * mask).flatten(2), mask.flatten(2)).view_as(rewards)


def returns(rewards: Tensor, mask: Tensor, discount: float) -> Tensor:
    """Discounted sums of what is still to come [T, E, H]; nothing comes after an episode's end or the horizon."""
    return gae(rewards, torch.zeros_like(rewards), mask, discount, 1.0)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, discount: float, lam: float, last: Tensor | None = None
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16) [T, E, H].

    rewards, values, mask: [T, E, H]; last: values [T, E] after the last step, for episodes that the horizon cut short;
    zero by default.
    """
    rewards, values = rewards * mask, values * mask
    out = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[..., 0])
    following = running if last is None else last * mask[..., -1]
    for t in reversed(range(rewards.shape[-1])):
        delta = rewards[..., t] + discount * following - values[..., t]
        running = delta + discount * lam * running
        out[..., t] = running
        following = values[..., t]
    return out * mask


def normalise(x: Tensor, mask: Tensor) -> Tensor:
    """Each task's unmasked numbers [T, E, H] shifted and scaled to mean 0 and standard deviation 1."""
    count = mask.sum((1, 2), keepdim=True)
    mean = (x * mask).sum((1, 2), keepdim=True) / count
    apart = (x - mean) * mask
    return apart / ((apart.square().sum((1, 2), keepdim=True) / count).sqrt() + 1e-8)
