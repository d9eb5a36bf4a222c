"""Prototypes refined by pictures without labels, some of which may be of no class that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn

from umeta.metalearners._embedding import EmbeddingLearner, linear, members, prototype_layer, prototypes
from umeta.types import Adapted, Batch, EpisodeSpec, TaskSpec, Theta


@dataclass
class SemiProto(EmbeddingLearner):
    """Semi-supervised prototypes (Ren et al. 2018, arXiv 1803.00676, sections 3.1.1 and 3.1.3).

    `p_c = (sum_i h_i z_ic + sum_j h_j z_jc m_jc) / (sum_i z_ic + sum_j z_jc m_jc)`: labelled items i count for their
    class, and an unlabelled one j by its softmax z over minus the squared distances to the labelled items' prototypes.
    With `masked` it counts less the farther away it is, so that distractors do little harm: `m_jc = sigmoid(-gamma_c
    (d_jc - beta_c))` of its distance, d in means over j, where beta and gamma are a perceptron of the smallest and
    largest d, their variance, skewness and kurtosis. Queries are answered as by ProtoNet.

    Of a class's support the first `labelled` items keep their labels here, the others and those of label -1 have none.
    """

    unlabelled: ClassVar[bool] = True

    labelled: Annotated[int, Gt(0)] = 1
    """items of each class whose label is told"""
    masked: bool = False
    """weigh unlabelled items by how near they are, where some may be of no class of the task"""

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module | None:
        return nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 2)) if self.masked else None

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Return the refined prototypes [T, way, features]."""
        z, stats = self.embed(theta, support.x)
        told = members(support)
        told = told & (told.cumsum(1) <= self.labelled)
        known = told.any(-1)
        first = prototypes(z, Batch(support.x, support.y, known, support.way))[0]
        unknown = (support.mask & ~known)[..., None]
        share = linear(z, *prototype_layer(first, "euclidean", theta)).softmax(-1) * unknown
        if self.masked:
            share = share * self._weigh(theta, (z[:, :, None] - first[:, None]).square().sum(-1), unknown)
        weight = told.to(z.dtype) + share
        total = weight.sum(1)[..., None]
        return Adapted({"prototypes": weight.mT @ z / total.clamp(min=torch.finfo(z.dtype).tiny)}, stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]."""
        return linear(
            self.embed_queries(theta, adapted, x), *prototype_layer(adapted.params["prototypes"], "euclidean", theta)
        )

    def _weigh(self, theta: Theta, distance: Tensor, unknown: Tensor) -> Tensor:
        """Return the mask m [T, N, way] of squared distances, by those of the items that are `unknown` [T, N, 1]."""

        def mean(value: Tensor) -> Tensor:
            return (value * unknown).sum(1, keepdim=True) / unknown.sum(1, keepdim=True).clamp(min=1)

        d = distance / mean(distance).clamp(min=1e-6)
        off = d - mean(d)
        variance = mean(off.square())
        least = d.masked_fill(~unknown, torch.finfo(d.dtype).max).amin(1, keepdim=True)
        most = d.masked_fill(~unknown, 0).amax(1, keepdim=True)
        std = variance.clamp(min=1e-6).sqrt()
        skewness, kurtosis = (mean((off / std) ** k) for k in (3, 4))
        about = torch.stack([least.clamp(max=1), most, variance, skewness, kurtosis - 3], -1)
        beta, gamma = self._run_module(theta, about).unbind(-1)
        return (-gamma * (d - beta)).sigmoid()
