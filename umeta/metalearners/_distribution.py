"""What learners share whose answer is a distribution: its likelihood, mixtures of several answers, and their noise."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from umeta import seeds
from umeta.objectives import SMALLEST_STD, categorical, gaussian, log_likelihood
from umeta.types import Batch


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
    """Draw standard normal numbers [T, *shape], a task's own by a hash of its items: the same whenever it is seen."""
    items = (batch.x * batch.mask.view(*batch.mask.shape, *[1] * (batch.x.dim() - 2))).detach().float().cpu()
    found = [
        torch.randn(shape, generator=seeds.generator("noise", zlib.crc32(task.contiguous().numpy().tobytes())))
        for task in items
    ]
    return torch.stack(found).to(batch.x)


def join(support: Batch, query: Batch) -> Batch:
    """Return support and query as one."""
    more = query.tensors()
    joined: dict[str, Any] = {name: torch.cat([value, more[name]], 1) for name, value in support.tensors().items()}
    return replace(support, **joined)
