"""What a task's loss is: plain functions of tensors, chosen by `TaskSpec.objective`, or one's own.

Each is one weighted likelihood loss per task. A policy's output is the mean and the log standard deviation of each
number of its action, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from umeta.types import Batch, Loss, TaskSpec

SMALLEST_STD = 0.05  # below it a policy explores no more, and its gradients explode


def categorical(output: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy over the unmasked items of each task: `- sum mask log p(y|x) / sum mask`. Returns [T].

    output: [T, N, way] logits.
    """
    loss = F.cross_entropy(output.flatten(0, 1), batch.y.flatten(), reduction="none").view_as(batch.y)
    return (loss * batch.mask).sum(1) / batch.mask.sum(1)


def squared_error(output: Tensor, batch: Batch) -> Tensor:
    """Mean squared error over the unmasked items of each task and the numbers of each item. Returns [T].

    Twice the mean negative log-likelihood of a Gaussian of variance 1, but for a constant.

    output: [T, N, outputs], which log standard deviations may follow.
    """
    each = (output[..., : batch.y.shape[-1]] - batch.y).square().mean(-1)
    return (each * batch.mask).sum(1) / batch.mask.sum(1)


def policy(output: Tensor, batch: Batch, clip: float | None = None) -> Tensor:
    """`- sum mask w exp(log p(y|x) - logp) / sum mask`: minus the importance-weighted mean advantage. Returns [T].

    At the parameters that acted its gradient is the policy gradient, and differentiating that once more gives the
    low-variance curvature estimator of ProMP (Rothfuss et al. 2019, equation 5).

    output: [T, N, 2 * action].
    clip: the ratio counts only within 1 - clip to 1 + clip where leaving it would pay (PPO, Schulman et al. 2017,
        equation 7).
    """
    assert batch.w is not None
    assert batch.logp is not None
    return -(surrogate(output, batch.y, batch.logp, batch.w, clip) * batch.mask).sum(1) / batch.mask.sum(1)


def surrogate(output: Tensor, action: Tensor, logp: Tensor, w: Tensor, clip: float | None = None) -> Tensor:
    """Each item's advantage times the ratio of its action's probability to what it was; `clip` as in `policy`."""
    ratio = (log_probability(output, action) - logp).exp()
    gain = ratio * w
    return gain if clip is None else torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * w)


def gaussian(output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation [..., action] of a policy's output."""
    mean, log_std = output.chunk(2, -1)
    return mean, log_std.clamp(min=math.log(SMALLEST_STD))


def log_probability(output: Tensor, action: Tensor) -> Tensor:
    """Of actions [..., action], summed over their numbers: [...]."""
    mean, log_std = gaussian(output)
    z = (action - mean) * (-log_std).exp()
    return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def log_likelihood(output: Tensor, batch: Batch, std: Tensor | None = None) -> Tensor:
    """Mean log-probability of the numbers of each task's unmasked items. Returns [T].

    output: [T, N, outputs], or [T, N, 2 * outputs] with log standard deviations of its own, which then count.
    std: of an output without them.
    """
    if std is not None and output.shape == batch.y.shape:
        output = torch.cat([output, std.log().expand_as(output)], -1)
    return (log_probability(output, batch.y) * batch.mask).sum(1) / batch.mask.sum(1)


def kl(before: Tensor, after: Tensor, batch: Batch) -> Tensor:
    """Mean KL(before || after) over the unmasked items of each task, of two outputs [T, N, 2 * action]. Returns [T]."""
    (mean, log_std), (other, other_log_std) = gaussian(before), gaussian(after)
    ratio = (2 * (log_std - other_log_std)).exp()
    apart = (mean - other).square() * (-2 * other_log_std).exp()
    each = (0.5 * (ratio + apart - 1) + other_log_std - log_std).sum(-1)
    return (each * batch.mask).sum(1) / batch.mask.sum(1)


def fisher(output: Tensor, tangent: Tensor) -> Tensor:
    """Multiply a change of the output by the Fisher information of each item's Gaussian."""
    _, log_std = gaussian(output)
    free = output.chunk(2, -1)[1] > math.log(SMALLEST_STD)
    mean_part, log_std_part = tangent.chunk(2, -1)
    return torch.cat([mean_part * (-2 * log_std).exp(), 2 * log_std_part * free], -1)


def accuracy(output: Tensor, batch: Batch) -> Tensor:
    """Share of the unmasked items of each task whose largest logit is the right one. Returns [T] float."""
    return ((output.argmax(-1) == batch.y) & batch.mask).sum(1) / batch.mask.sum(1)


def mean_return(output: Tensor, batch: Batch) -> Tensor:
    """Mean return of each task's episodes, as they were sampled. Returns [T]."""
    assert batch.score is not None
    return batch.score


def std(output: Tensor, batch: Batch) -> Tensor:
    """Mean standard deviation of each task's policy. Returns [T]."""
    return gaussian(output)[1].exp().mean((1, 2))


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "categorical": categorical,
    "policy": policy,
    "regression": squared_error,
}
MEASURES: dict[str, dict[str, Callable[[Tensor, Batch], Tensor]]] = {  # logged beside the loss, means over tasks
    "categorical": {"accuracy": accuracy},
    "policy": {"return": mean_return, "std": std},
    "regression": {},
}


def loss_of(spec: TaskSpec) -> Loss:
    """Give the loss of such tasks: their own, or that of their objective."""
    return spec.objective if callable(spec.objective) else OBJECTIVES[spec.objective]
