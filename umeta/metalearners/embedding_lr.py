"""Logistic regression on a good embedding, batched over tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from torch import Tensor

from umeta.metalearners._embedding import EmbeddingLearner, linear, members
from umeta.types import Adapted, Batch, Theta


@dataclass
class EmbeddingLR(EmbeddingLearner):
    """A good embedding is all you need (Tian, Wang, Krishnan, Tenenbaum, Isola 2020, arXiv 2003.11539, section 3).

    A task's classifier is logistic regression on embeddings of length 1, that of scikit-learn: the minimum
    of `|W|^2 / 2 + strength * sum cross-entropy` over W and an unpenalised bias, by accelerated gradient steps.

    The paper trains the embedding to tell all training classes apart. Proposed tasks share no classes, so here it is
    the query's cross-entropy that trains it, through the steps of the regression (as in LR-D2, Bertinetto et al. 2019,
    whose steps are Newton's). The first, from zero, is towards the class means. The logits are multiplied by a learnt
    scale, which changes no answer: without it they stay near [-1, 1] and could not fit 20 ways.
    """

    strength: Annotated[float, Gt(0)] = 1.0
    """how much the support counts against the penalty (C of scikit-learn)"""
    steps: Annotated[int, Gt(0)] = 20
    """steps of the regression in meta-training"""
    test_steps: Annotated[int, Gt(0)] = 200
    """steps of the regression at evaluation: as good as all"""
    distance = "cosine"
    family: ClassVar[str] = "by solving for a linear layer"

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Return the regression's layer, scaled: weight [T, way, features] and bias [T, way]."""
        z, stats = self.embed(theta, support.x)
        layer = regression(z, support, self.strength, self.steps if steps is None else steps)
        weight, bias = (theta.params["scale"] * value for value in layer)
        return Adapted({"weight": weight, "bias": bias}, stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]."""
        return linear(self.embed_queries(theta, adapted, x), adapted.params["weight"], adapted.params["bias"])


def regression(z: Tensor, support: Batch, strength: float, steps: int) -> tuple[Tensor, Tensor]:
    """Logistic regression on z [T, N, d] of length 1: weight [T, way, d] and bias [T, way].

    Steps of Nesterov's method for a function whose curvature is between 1, the penalty's, and `steepest`: softmax has
    at most 1/2, times the squared length of z and its constant 1, summed over the items.
    """
    y, mask = members(support).to(z.dtype), support.mask[..., None].to(z.dtype)
    steepest = 1 + strength * mask.sum(1, keepdim=True)  # [T, 1, 1]
    momentum = (steepest.sqrt() - 1) / (steepest.sqrt() + 1)
    weight, bias = z.new_zeros(len(z), support.way, z.shape[2]), z.new_zeros(len(z), support.way)
    ahead = weight, bias
    for _ in range(steps):
        wrong = strength * (linear(z, *ahead).softmax(-1) - y) * mask
        moved = ahead[0] - (ahead[0] + wrong.mT @ z) / steepest, ahead[1] - wrong.sum(1) / steepest[..., 0]
        ahead = moved[0] + momentum * (moved[0] - weight), moved[1] + momentum[..., 0] * (moved[1] - bias)
        weight, bias = moved
    return weight, bias
