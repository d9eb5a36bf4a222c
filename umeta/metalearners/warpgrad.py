"""WarpGrad: layers that no task moves warp the loss surface so that short steps of the others go far."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from umeta.metalearners._gradient import GradientLearner
from umeta.objectives import loss_of
from umeta.types import Adapted, Batch, OwnMetaLoss, Theta


@dataclass
class WarpGrad(GradientLearner, OwnMetaLoss):
    """Warped gradient descent (WarpGrad, Flennerhag et al. 2020, arXiv 1909.00025, section 2).

    Every second layer of the network is a warp: the inner loop, gradient descent, moves the other weights alone. The
    outer loop descends the mean over the steps k of `L_query(phi_k - inner_lr * grad L_support(phi_k))`, where phi_k,
    wherever on the way of the inner loop it is, counts as given: only one step is ever differentiated twice, however
    many there are. The initialisation has the gradient that the phi_k would have if steps were constants, as in
    first-order MAML; the paper leaves its objective open.
    """

    @property
    def twice(self) -> bool:
        """Whether meta-training takes second derivatives of the network."""
        return True

    def meta_loss(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, Tensor]:
        """Adapt; return the loss of the query after each single step, their mean."""
        begun = self.begin(theta, support)
        adapted, total = Adapted(begun), query.x.new_zeros(len(query))
        for _ in range(self.steps):
            here = {
                name: value + (adapted.params[name] - value).detach() if self.adapts_weight(name) else value
                for name, value in begun.items()
            }
            adapted = self.adapt(theta, support, start=Adapted(here, steps=adapted.steps), steps=1)
            total = total + loss_of(self.built.spec)(self.predict(theta, adapted, query.x), query)
        return adapted, total / self.steps

    def adapts_weight(self, name: str) -> bool:
        """Whether the inner loop moves the weight of this name."""
        weights = self.built.network.module.named_parameters()
        layers = [n.rpartition(".")[0] for n, p in weights if p.dim() > 1]
        return name.rpartition(".")[0] not in layers[1::2]
