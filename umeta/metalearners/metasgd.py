"""Meta-SGD: MAML that learns the size, and so the direction, of its inner steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from umeta.metalearners._gradient import GradientLearner
from umeta.models.functional import Normalisation
from umeta.parts import Model
from umeta.types import Theta


@dataclass
class MetaSGD(GradientLearner):
    """Meta-SGD (Li, Zhou, Chen, Li 2017, arXiv 1707.09835, algorithm 1).

    MAML with the inner step `phi <- phi - alpha * grad L_support(phi)`, elementwise, where alpha is as large as phi and
    learnt with theta. It may become negative. Where classes share their row of the head they share its step sizes.
    """

    model: Model
    """the network below the linear head"""
    inner_lr: Annotated[float, Gt(0)] = 0.5
    """what every step size begins as, for the mean loss"""
    steps: Annotated[int, Gt(0)] = 5
    """inner steps in meta-training; 1 in the paper, but a first step from a `shared` head moves the head alone"""
    test_steps: Annotated[int, Gt(0)] | None = None
    """inner steps at evaluation; by default those of meta-training"""
    first_order: bool = False
    """leave out second derivatives"""
    head: Literal["shared", "fixed", "prototypes"] = "shared"
    """`shared`: one row for all classes, for any way; `fixed`: a row per class; `prototypes`: the inner loop starts at
    the layer that the support's prototypes are (umeta/metalearners/maml.py)"""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """`cosine` gives the head features of length 1: prototypes are then a layer of cosines (see `maml`)"""
    normalisation: Normalisation = "support"
    """what batch normalisation normalises by (umeta/models/pure.py); `batch` is transductive"""

    def _own(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"rate.{name}": torch.full_like(value, self.inner_lr) for name, value in weights.items()}

    def _moves(
        self, theta: Theta, begun: dict[str, Tensor], fast: dict[str, Tensor], grads: dict[str, Tensor], size: float
    ) -> dict[str, Tensor]:
        return {name: theta.params[f"rate.{name}"] * grad for name, grad in grads.items()}
