"""Prototypical networks: a class is the mean of its support embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from umeta.metalearners._embedding import EmbeddingLearner, linear, prototype_layer, prototypes
from umeta.models.precision import Precision
from umeta.objectives import categorical
from umeta.types import Adapted, Batch, Theta

PASSES, WAY = 5, 0.7  # of optimal transport at one shot, and how far along its way the only one goes at more
SMOOTHING, ROUNDS = 0.05, 300  # entropy of the transport where the largest cost is 1, and how often it is balanced


@dataclass
class ProtoNet(EmbeddingLearner):
    """Prototypical networks (ProtoNet, Snell, Swersky, Zemel 2017, arXiv 1703.05175, equations 1 and 2).

    A prototype is the mean embedding of a class's support; the logits of a query are minus its squared Euclidean
    distances to the prototypes, or its cosines with them times a learnt scale (without which cosines in [-1, 1] cannot
    fit 20 ways). Either is a linear layer on the embedding, from which `steps` of `adapt` can go on.
    """

    distance: Literal["euclidean", "cosine"] = "euclidean"
    """squared Euclidean distance, or cosine with a learnt scale"""
    scale: Annotated[float, Gt(0)] = 10.0
    """where that scale starts: the larger, the more a task is about the classes that are hard to tell apart"""
    precision: Precision = "float32"
    """of the embedding network; `auto` is bfloat16 where the hardware computes with it, which is faster"""
    test_steps: Annotated[int, Ge(0)] = 0
    """steps of Adam at evaluation on the support loss of the linear layer that starts at the prototypes, the embedding
    kept (ProtoTune of ProtoTransfer, Medina, Devos, Grossglauser 2020)"""
    tune_lr: Annotated[float, Gt(0)] = 0.05
    """step size of those steps, relative to the size of the layer's weights"""
    refine: Annotated[int, Ge(0)] = 0
    """steps of soft k-means that move the prototypes towards the queries (Ren et al. 2018, equation 3): transductive"""
    transport: bool = False
    """carry the prototypes to the queries by optimal transport before that (OpTA of BECLR, Poulakakis-Daktylidis and
    Jamali-Rad 2024): transductive, and takes it that each class has as many queries"""

    @property
    def transductive(self) -> bool:
        """Whether the answer to one query depends on the others."""
        return self.normalisation == "batch" or self.refine > 0 or self.transport

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Prototypes [T, way, features] and how many items each stands for [T, way].

        With `steps` also the linear layer (`weight`, `bias`) that Adam reaches from them in `steps` steps.
        """
        z, stats = self.embed(theta, support.x)
        means, counts = prototypes(z, support)
        adapted = {"prototypes": means, "counts": counts}
        if steps:
            weight, bias = self.layer(theta, adapted["prototypes"])
            adapted["weight"], adapted["bias"] = tuned(weight, bias, z, support, steps, self.tune_lr)
        return Adapted(adapted, stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]."""
        z = self.embed_queries(theta, adapted, x)
        prototypes, counts = adapted.params["prototypes"], adapted.params["counts"]
        if "weight" in adapted.params:
            return linear(z, adapted.params["weight"], adapted.params["bias"])
        moved = carry(prototypes, counts, z) if self.transport else prototypes
        for _ in range(self.refine):
            share = linear(z, *self.layer(theta, moved)).softmax(-1)  # [T, N, way]
            total = counts[..., None] * prototypes + share.mT @ z
            moved = total / (counts + share.sum(1))[..., None].clamp(min=torch.finfo(total.dtype).tiny)
        return linear(z, *self.layer(theta, moved))

    def layer(self, theta: Theta, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the linear layer that prototypes [T, way, features] are: weight of the same shape, bias [T, way]."""
        return prototype_layer(prototypes, self.distance, theta)


def carry(prototypes: Tensor, counts: Tensor, z: Tensor) -> Tensor:
    """Carry prototypes [T, way, d] to the means of those queries z [T, N, d] that they are transported to.

    As BECLR's evaluate.py does: again and again where each of a task stands for one item (`counts`, [T, way]), and else
    once and not all of the way.
    """
    reached: list[Tensor] = []
    for _ in range(PASSES):
        start = reached[-1] if reached else prototypes
        plan = balance(torch.cdist(start, z, compute_mode="donot_use_mm_for_euclid_dist").square())
        reached.append(plan / plan.sum(2, keepdim=True) @ z)
    single = (counts <= 1).all(1)[:, None, None]
    return torch.where(single, reached[-1], torch.lerp(prototypes, reached[0], WAY))


def balance(cost: Tensor) -> Tensor:
    """Return the transport [T, way, N] of least cost [T, way, N], smoothed, between equal shares of either side.

    Sinkhorn's algorithm (Cuturi 2013), in logarithms.
    """
    way, n = cost.shape[1:]
    plan = -cost / cost.amax((1, 2), keepdim=True).clamp(min=torch.finfo(cost.dtype).tiny) / SMOOTHING
    for _ in range(ROUNDS):
        plan = plan - plan.logsumexp(2, keepdim=True) - math.log(way)
        plan = plan - plan.logsumexp(1, keepdim=True) - math.log(n)
    return plan.exp()


def tuned(weight: Tensor, bias: Tensor, z: Tensor, support: Batch, steps: int, lr: float) -> tuple[Tensor, Tensor]:
    """Return a linear layer per task, weight [T, way, d] and bias [T, way], after `steps` of Adam on z [T, N, d]."""
    # Adam's steps do not shrink with the gradient, so they are taken relative to the size of each task's layer.
    size = weight.detach().square().mean((1, 2), keepdim=True).sqrt()
    moves = [torch.zeros_like(weight, requires_grad=True), torch.zeros_like(bias, requires_grad=True)]
    optimiser = torch.optim.Adam(moves, lr=lr)

    def layer() -> tuple[Tensor, Tensor]:
        return weight.detach() + size * moves[0], bias.detach() + size[..., 0] * moves[1]

    with torch.enable_grad():
        for _ in range(steps):
            loss = categorical(linear(z.detach(), *layer()), support).sum()
            for move, grad in zip(moves, torch.autograd.grad(loss, moves), strict=True):
                move.grad = grad
            optimiser.step()
    weight, bias = layer()
    return weight.detach(), bias.detach()
