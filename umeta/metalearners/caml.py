"""CAML: a concept from positive examples alone, by gradient steps that never see what is no example."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from umeta.metalearners._embedding import members
from umeta.metalearners._gradient import GradientLearner, InnerLoop, Weights
from umeta.types import Adapted, Batch, OwnMetaLoss, Theta


@dataclass
class CAML(GradientLearner, OwnMetaLoss):
    """Concept acquisition through meta-learning (CAML, Grant, Finn et al. 2017; Xie et al. 2018, arXiv 1810.00482).

    Each class of a task is a concept with weights of its own. The inner loop, MAML's, descends the mean of `-log
    sigmoid(o_i)` over the class's items alone; the outer loop descends the mean cross-entropy of `sigmoid(o)` over all
    queries, of the class or not. So theta is to say no to everything, until a few examples say yes. The answer is the
    class of the largest o, of any number of classes, and o by itself says whether an item is of any of them.
    """

    first_order: bool = False
    """leave out second derivatives"""

    regresses: ClassVar[bool] = False

    @property
    def twice(self) -> bool:
        """Whether meta-training takes second derivatives of the network."""
        return not self.first_order

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Adapt the weights [T, way, ...] of each class to its items."""
        if start is not None:
            start = replace(start, params={name: value.flatten(0, 1) for name, value in start.params.items()})
        adapted = InnerLoop(self, theta, take_apart(support), start).descend(self.inner_lr, steps)
        params = {name: value.unflatten(0, (-1, support.way)) for name, value in adapted.params.items()}
        return replace(adapted, params=params)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Return the log-odds [T, N, way] that x [T, N, ...] is of each class."""
        way = next(iter(adapted.params.values())).shape[1]
        apart = replace(adapted, params={name: value.flatten(0, 1) for name, value in adapted.params.items()})
        return super().predict(theta, apart, x.repeat_interleave(way, 0)).view(len(x), way, -1).mT

    def begin(self, theta: Theta, support: Batch) -> Weights:
        """Return the weights with which each class's inner loop begins: from its prototype, with a learnt threshold."""
        phi = super().begin(theta, support)
        if self._from_prototypes:
            phi["head.bias"] = phi["head.bias"] + theta.params["threshold"]
        return phi

    def inner_loss(self, theta: Theta, output: Tensor, support: Batch) -> Tensor:
        """Return minus the log-probability of the positives: [T * way]."""
        return -(F.logsigmoid(output[..., 0]) * support.mask).sum(1) / support.mask.sum(1).clamp(min=1)

    def meta_loss(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, Tensor]:
        """Adapt; return the cross-entropy of yes and no, over queries and classes."""
        adapted = self.adapt(theta, support)
        odds, yes = self.predict(theta, adapted, query.x), members(query)
        loss = F.binary_cross_entropy_with_logits(odds, yes.to(odds.dtype), reduction="none").mean(-1)
        return adapted, (loss * query.mask).sum(1) / query.mask.sum(1)

    def _make_inner(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make the threshold: half of what a cosine of 1 comes to."""
        return {"threshold": torch.tensor(-5.0)} if self._from_prototypes else {}


def take_apart(support: Batch) -> Batch:
    """Make of T tasks one for each class, of its items alone: T * way tasks of way 1."""
    member = members(support).mT  # [T, way, N]
    most = int(member.sum(-1).max())
    mask, place = member.to(torch.int8).sort(dim=-1, descending=True, stable=True)
    place, mask = place[..., :most].flatten(1), mask[..., :most].bool().flatten(0, 1)
    x = support.x.flatten(2).gather(1, place[..., None].expand(-1, -1, support.x[0, 0].numel()))
    return Batch(x.view(-1, most, *support.x.shape[2:]), torch.zeros_like(mask, dtype=torch.int64), mask, 1)
