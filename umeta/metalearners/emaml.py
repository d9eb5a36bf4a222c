"""E-MAML: MAML for policies, whose first episodes are also worth what could be learnt from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from umeta.metalearners._gradient import UnrolledLearner
from umeta.objectives import log_probability, loss_of
from umeta.types import Adapted, Batch, OwnMetaLoss, Theta

SMALL = 1e-6


@dataclass
class EMAML(UnrolledLearner, OwnMetaLoss):
    """Considerations on exploration in meta-RL (E-MAML, Stadie et al. 2018, arXiv 1803.01118, equation 5).

    MAML's meta-gradient, and beside it `sum_e R log pi_theta(e)` over the episodes e that were adapted on, where R is
    the return after it: exploration counts by what it led to, which the estimate of MAML leaves out. R is held against
    the mean return of the task's other first episodes, which does not depend on e, in units of their standard
    deviation; as in the policy loss, logarithms are means over an episode's steps.
    """

    policies_only: ClassVar[bool] = True

    def meta_loss(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, Tensor]:
        """Adapt; return the query's loss, and what the support's episodes were worth, weighing their probability."""
        assert support.reward is not None
        assert query.score is not None
        adapted = self.adapt(theta, support)
        loss = loss_of(self.built.spec)(self.predict(theta, adapted, query.x), query)
        returns = (support.reward * support.mask).unflatten(1, (support.sequences, -1)).sum(-1)  # [T, episodes]
        others = (returns.sum(1, keepdim=True) - returns) / (support.sequences - 1)
        worth = (query.score[:, None] - others) / returns.std(1, keepdim=True).clamp(min=SMALL)
        output = self.predict(theta, self.unadapted(theta, len(support)), support.x)
        said = (log_probability(output, support.y) * support.mask).unflatten(1, (support.sequences, -1)).sum(-1)
        return adapted, loss - (worth * said).sum(1) / support.mask.sum(1)
