"""Ridge regression on the steps of episodes, with the penalty by which each half of them predicts the other best."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGES = (1e-5, 1e-3, 1e-1, 10.0)  # penalties on observed features of variance 1, of which the best is taken
OF_TIME = 4  # last features, with next to no penalty


def features(observations: Tensor) -> Tensor:
    """[o, o^2, t/100, (t/100)^2, (t/100)^3, 1] of each step, o [T, E, H, d] clipped to +-10 (Duan et al. 2016)."""
    o = observations.clamp(-10, 10)
    t = (torch.arange(o.shape[2], device=o.device) / 100).view(1, 1, -1, 1).expand(*o.shape[:3], 1)
    return torch.cat([o, o**2, t, t**2, t**3, torch.ones_like(t)], -1)


def crossfit(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Predict y [T, E, H] from features x [T, E, H, d], each half of the episodes by a regression on the other.

    Each task has the penalty that predicts best. A few episodes of many observed numbers need a large one, as the fit
    would take up their noise; the largest leaves hardly more than the time.
    """
    return pick(*try_ridges(x, y, mask))


def regress(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Return what `predict` needs to give y [T, E, H] of x [T, E, H, d], with the penalties that `crossfit` takes."""
    return pick(fit(x, y, mask), try_ridges(x, y, mask)[1])


def try_ridges(x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each penalty has the halves predict of each other [R, T, E, H], and each task's best penalty [T]."""
    tried = y.new_empty(len(RIDGES), *y.shape)
    for half in (0, 1):
        seen, unseen = slice(1 - half, None, 2), slice(half, None, 2)
        weights = fit(x[:, seen], y[:, seen], mask[:, seen])
        for values, one in zip(tried, weights, strict=True):
            values[:, unseen] = predict(one, x[:, unseen]).to(y.dtype)
    return tried, ((tried - y) * mask).square().sum((2, 3)).argmin(0)


def predict(weights: Tensor, x: Tensor) -> Tensor:
    """Return what weights [T, d + 1], of which the last is added, give of x [T, E, H, d]: [T, E, H] float64."""
    flat = x.flatten(1, 2).double() @ weights[:, :-1, None]
    return (flat[..., 0] + weights[:, -1:]).view(x.shape[:3])


def fit(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Return the weights [R, T, d + 1] of regressions with each of the penalties."""
    there = mask.flatten(1)[..., None].double()
    a, b = x.flatten(1, 2).double(), y.flatten(1).double()[..., None] * there
    count = there.sum(1).clamp(min=1)
    mean, std = moments(a, there)
    mean[..., -OF_TIME:], std[..., -OF_TIME:] = 0, 1
    z = (a - mean) / std * there
    gram, right = z.mT @ z, z.mT @ b
    observed = torch.arange(x.shape[-1], device=x.device) < x.shape[-1] - OF_TIME
    penalties = [torch.where(observed, ridge * count, RIDGES[0]) for ridge in RIDGES]
    scaled = torch.stack([torch.linalg.solve(gram + torch.diag_embed(p), right)[..., 0] for p in penalties])
    weights = scaled / std[:, 0]
    return torch.cat([weights, -(weights * mean[:, 0]).sum(-1, keepdim=True)], -1)


def moments(x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [T, 1, d] of those items of x [T, N, d] for which there [T, N, 1] is 1, not 0.

    A number that does not vary has a deviation of 1e-6, to be divided by.
    """
    count = there.sum(1, keepdim=True).clamp(min=1)
    mean = (x * there).sum(1, keepdim=True) / count
    return mean, (((x - mean) * there).square().sum(1, keepdim=True) / count).sqrt().clamp(min=1e-6)


def pick(every: Tensor, which: Tensor) -> Tensor:
    """Pick one of `every` [R, T, ...] for each task; which: [T]."""
    return every[which, torch.arange(len(which), device=which.device)]
