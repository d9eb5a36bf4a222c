"""What a task's loss is: plain functions of tensors, chosen by `TaskSpec.objective`. MAML never learns which."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from umeta.types import Batch


def categorical(output: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy over the unmasked items of each task: `- sum mask log p(y|x) / sum mask`. Returns [T].

    output: [T, N, way] logits.
    """
    loss = F.cross_entropy(output.flatten(0, 1), batch.y.flatten(), reduction="none").view_as(batch.y)
    return (loss * batch.mask).sum(1) / batch.mask.sum(1)


def accuracy(output: Tensor, batch: Batch) -> Tensor:
    """Share of the unmasked items of each task whose largest logit is the right one. Returns [T] float."""
    return ((output.argmax(-1) == batch.y) & batch.mask).sum(1) / batch.mask.sum(1)


OBJECTIVES: dict[str, Callable[[Tensor, Batch], Tensor]] = {"categorical": categorical}
