"""From rewards to advantages: how much better an action was than what was to be expected there."""

from __future__ import annotations

import torch
from torch import Tensor

from umeta.rl.rollout import Paths

RIDGES = (1e-5, 1e-3, 1e-1, 10.0)  # penalties on observed features of variance 1, of which the best is taken
OF_TIME = 4  # last features, with next to no penalty


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


def features(observations: Tensor) -> Tensor:
    """[o, o^2, t/100, (t/100)^2, (t/100)^3, 1] of each step, o [T, E, H, d] clipped to +-10 (Duan et al. 2016)."""
    o = observations.clamp(-10, 10)
    t = (torch.arange(o.shape[2], device=o.device) / 100).view(1, 1, -1, 1).expand(*o.shape[:3], 1)
    return torch.cat([o, o**2, t, t**2, t**3, torch.ones_like(t)], -1)


def crossfit(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Ridge regression of y [T, E, H] on features x [T, E, H, d], each half of the episodes predicted from the other.

    Each task has the penalty that predicts best. A few episodes of many observed numbers need a large one, as the fit
    would take up their noise; the largest leaves hardly more than the time.
    """
    tried = [torch.empty_like(y) for _ in RIDGES]
    for half in (0, 1):
        seen, unseen = slice(1 - half, None, 2), slice(half, None, 2)
        there = mask[:, seen].flatten(1)[..., None].double()
        a, b = x[:, seen].flatten(1, 2).double(), y[:, seen].flatten(1).double()[..., None] * there
        count = there.sum(1, keepdim=True).clamp(min=1)
        mean = (a * there).sum(1, keepdim=True) / count
        std = (((a - mean) * there).square().sum(1, keepdim=True) / count).sqrt().clamp(min=1e-6)
        mean[..., -OF_TIME:], std[..., -OF_TIME:] = 0, 1
        z, new = (a - mean) / std * there, (x[:, unseen].flatten(1, 2).double() - mean) / std
        gram, right = z.mT @ z, z.mT @ b
        observed = torch.arange(x.shape[-1], device=x.device) < x.shape[-1] - OF_TIME
        for values, ridge in zip(tried, RIDGES, strict=True):
            penalty = torch.where(observed, ridge * count[..., 0], RIDGES[0])
            weights = torch.linalg.solve(gram + torch.diag_embed(penalty), right)
            values[:, unseen] = (new @ weights).view(y[:, unseen].shape).to(y.dtype)
    errors = torch.stack([((values - y) * mask).square().sum((1, 2)) for values in tried])
    return torch.stack(tried)[errors.argmin(0), torch.arange(len(y), device=y.device)]


def normalise(x: Tensor, mask: Tensor) -> Tensor:
    """Each task's unmasked numbers [T, E, H] shifted and scaled to mean 0 and standard deviation 1."""
    count = mask.sum((1, 2), keepdim=True)
    mean = (x * mask).sum((1, 2), keepdim=True) / count
    apart = (x - mean) * mask
    return apart / ((apart.square().sum((1, 2), keepdim=True) / count).sqrt() + 1e-8)
