"""What gradient learners share that adapt several weights for each task, whose answers are mixed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor

from umeta.metalearners._distribution import mix_classes, mix_numbers
from umeta.metalearners._gradient import GradientLearner
from umeta.objectives import SMALLEST_STD
from umeta.types import Adapted, Batch, OwnMetaLoss, Theta


@dataclass
class ParticleLearner(GradientLearner, OwnMetaLoss):
    """A gradient learner with particles, M for each task: weights [T, M, ...], in its inner loop [T * M, ...]."""

    particles: Annotated[int, Gt(1)] = 5
    """weights that are adapted for each task, and answer together"""
    first_order: bool = True
    """leave out second derivatives"""

    family: ClassVar[str] = "by a distribution, not a point"

    @property
    def twice(self) -> bool:
        """Whether meta-training takes second derivatives of the network."""
        return not self.first_order

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Return log-probabilities [T, N, way] of x [T, N, ...], or mean and log standard deviation of numbers."""
        mix = mix_numbers if self.built.spec.outputs else mix_classes
        return mix(self.predict_each(theta, adapted, x))

    def predict_each(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Answer x by each particle: [T, M, N, ...]."""
        each = super().predict(theta, self.flatten(adapted), x.repeat_interleave(self.particles, 0))
        each = each.unflatten(0, (-1, self.particles))
        if not self.built.spec.outputs:
            return each
        return torch.cat([each, torch.full_like(each, math.log(SMALLEST_STD))], -1)

    def repeat(self, batch: Batch) -> Batch:
        """Return the batch with each task once for each of its particles."""
        return batch.map_tensors(lambda value: value.repeat_interleave(self.particles, 0))

    def flatten(self, adapted: Adapted) -> Adapted:
        """Return weights [T, M, ...] as the inner loop has them."""
        return replace(adapted, params={name: value.flatten(0, 1) for name, value in adapted.params.items()})

    def gather(self, adapted: Adapted) -> Adapted:
        """Return weights of the inner loop as [T, M, ...]."""
        params = {name: value.unflatten(0, (-1, self.particles)) for name, value in adapted.params.items()}
        return replace(adapted, params=params)
