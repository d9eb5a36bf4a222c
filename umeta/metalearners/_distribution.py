"""What learners share whose answer is a distribution: its likelihood, mixtures of several answers, and their noise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from umeta.objectives import SMALLEST_STD, categorical, gaussian, log_likelihood
from umeta.types import Batch

GOLDEN, FIRST, SECOND = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # as int64


def likelihood(output: Tensor, batch: Batch) -> Tensor:
    """Return the mean log-probability of the unmasked items of each task: [T].

    output: logits [T, N, way], or of numbers the means and log standard deviations [T, N, 2 * outputs].
    """
    return log_likelihood(output, batch) if batch.y.is_floating_point() else -categorical(output, batch)


def mix_classes(logits: Tensor) -> Tensor:
    """Return the log-probabilities [T, N, way] of a mixture in equal parts of logits [T, S, N, way]."""
    return logits.log_softmax(-1).logsumexp(1) - torch.tensor(logits.shape[1]).log()


def mix_numbers(output: Tensor) -> Tensor:
    """Return mean and log standard deviation [T, N, 2 * outputs] of a mixture of Gaussians [T, S, N, 2 * outputs]."""
    mean, log_std = gaussian(output)
    variance = log_std.mul(2).exp().mean(1) + mean.var(1, correction=0)
    return torch.cat([mean.mean(1), variance.clamp(min=SMALLEST_STD**2).log() / 2], -1)


def draw_noise(batch: Batch, *shape: int) -> Tensor:
    """Draw standard normal numbers [T, *shape], a task's own by a hash of its items: the same whenever it is seen.

    Hash and numbers are made where the items are, by whole numbers that wrap, so that a GPU is not waited for.
    """
    items = torch.where(batch.mask.view(*batch.mask.shape, *[1] * (batch.x.dim() - 2)), batch.x, 0).detach()
    bits = items.float().flatten(1).view(torch.int32).long()
    hashed = scramble((bits * (count(bits.shape[1], bits.device) | 1)).sum(1, keepdim=True))
    drawn = scramble(hashed + count(math.prod(shape), bits.device)) >> 40  # -2^23 to 2^23 - 1
    uniform = (drawn.float() + 0.5) * 2**-23
    return (uniform.erfinv() * math.sqrt(2)).view(len(items), *shape).to(batch.x)


def count(n: int, device: torch.device) -> Tensor:
    """Return the first n numbers of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as int64."""
    return scramble(torch.arange(1, n + 1, device=device) * GOLDEN)


def scramble(z: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of int64: `>>` copies the sign, and what it copies is masked."""
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * FIRST
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * SECOND
    return z ^ (z >> 31 & (1 << 33) - 1)


def join(support: Batch, query: Batch) -> Batch:
    """Return support and query as one."""
    more = query.tensors()
    joined: dict[str, Any] = {name: torch.cat([value, more[name]], 1) for name, value in support.tensors().items()}
    return replace(support, **joined)
