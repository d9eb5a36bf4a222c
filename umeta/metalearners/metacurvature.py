"""Meta-Curvature: MAML that learns a linear transform of each layer's inner gradient."""

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

MODES = ("out", "in", "filter")  # of a layer's gradient [outputs, inputs, positions of the filter]


@dataclass
class MetaCurvature(GradientLearner):
    """Meta-Curvature (Park, Oliva 2019, arXiv 1902.03356, section 3.2).

    MAML with the inner step `phi <- phi - inner_lr * MC(grad L_support(phi))`, where `MC(G) = G x3 M_f x2 M_i x1 M_o`
    multiplies a layer's gradient by a square matrix along each of its modes. The matrices begin as identities and are
    learnt with theta. Vectors, such as biases, have M_o alone. A mode of length 1 has no matrix, and neither have the
    classes where they share their row of the head, as they are in no order.
    """

    model: Model
    """the network below the linear head"""
    inner_lr: Annotated[float, Gt(0)] = 0.5
    """inner step size, for the mean loss"""
    steps: Annotated[int, Gt(0)] = 5
    """inner steps in meta-training"""
    test_steps: Annotated[int, Gt(0)] | None = None
    """inner steps at evaluation; by default those of meta-training"""
    schedule: Literal["constant", "harmonic"] = "constant"
    """`harmonic` divides the inner step size by the number of the step"""
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
        return {
            f"curvature.{name}.{mode}": torch.eye(length)
            for name, value in weights.items()
            for mode, length in zip(MODES, (value.flatten(2) if value.dim() > 2 else value).shape, strict=False)
            if length > 1
        }

    def _moves(
        self, theta: Theta, begun: dict[str, Tensor], fast: dict[str, Tensor], grads: dict[str, Tensor], size: float
    ) -> dict[str, Tensor]:
        return {name: size * curved(theta, name, grad) for name, grad in grads.items()}


def curved(theta: Theta, name: str, grad: Tensor) -> Tensor:
    """MC of the gradient [T, ...] of the weight of this name."""
    out = grad.flatten(3) if grad.dim() > 3 else grad
    for dim, mode in enumerate(MODES[: out.dim() - 1], start=1):
        matrix = theta.params.get(f"curvature.{name}.{mode}")
        if matrix is not None:
            out = (out.movedim(dim, -1) @ matrix.mT).movedim(-1, dim)
    return out.view_as(grad)
