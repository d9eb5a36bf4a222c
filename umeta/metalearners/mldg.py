"""MLDG: descend the loss of one domain so that the step is good for another domain too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from umeta.metalearners._gradient import UnrolledLearner
from umeta.objectives import loss_of
from umeta.types import Adapted, Batch, OwnMetaLoss, Theta


@dataclass
class MLDG(UnrolledLearner, OwnMetaLoss):
    """Learning to generalise to other domains (MLDG, Li, Yang, Song, Hospedales 2018, arXiv 1710.03463, algorithm 1).

    The outer loop descends `F(theta) + beta * G(theta - inner_lr * grad F(theta))`, where F is the loss of a task's
    support and G that of its query, which the proposer `shifted` draws from another domain. The initialisation is to
    be good for the support by itself, and steps on it good for what it does not show. At test it adapts as MAML does.
    """

    beta: Annotated[float, Gt(0)] = 1.0
    """weight of the other domain's loss"""

    def meta_loss(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, Tensor]:
        """Adapt; return the support's loss before and the query's after."""
        loss = loss_of(self.built.spec)
        begun = self.predict(theta, self.adapt(theta, support, steps=0), support.x)
        adapted = self.adapt(theta, support)
        return adapted, loss(begun, support) + self.beta * loss(self.predict(theta, adapted, query.x), query)
