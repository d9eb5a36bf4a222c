"""Meta-Curvature: MAML that learns a linear transform of each layer's inner gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from umeta.metalearners._gradient import InnerLoop, UnrolledLearner
from umeta.types import Adapted, Batch, Theta

MODES = ("out", "in", "filter")  # of a layer's gradient [outputs, inputs, positions of the filter]


@dataclass
class MetaCurvature(UnrolledLearner):
    """Meta-Curvature (Park, Oliva 2019, arXiv 1902.03356, section 3.2).

    MAML with the inner step `phi <- phi - inner_lr * MC(grad L_support(phi))`, where `MC(G) = G x3 M_f x2 M_i x1 M_o`
    multiplies a layer's gradient by a square matrix along each of its modes. The matrices begin as identities and are
    learnt with theta. Vectors, such as biases, have M_o alone. A mode of length 1 has no matrix, and neither have the
    classes where they share their row of the head, as they are in no order.
    """

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Adapt each task's weights [T, ...] along the transformed gradients."""
        loop = InnerLoop(self, theta, support, start)
        phi = loop.start
        for size in loop.sizes(self.inner_lr, steps):
            gradient = loop.gradient(phi)
            phi = phi | {name: phi[name] - size * curve(theta, name, gradient[name]) for name in gradient}
        return loop.finish(phi)

    def _make_inner(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make an identity matrix for each mode of each weight."""
        return {
            f"curvature.{name}.{mode}": torch.eye(length)
            for name, value in weights.items()
            for mode, length in zip(MODES, (value.flatten(2) if value.dim() > 2 else value).shape, strict=False)
            if length > 1
        }


def curve(theta: Theta, name: str, grad: Tensor) -> Tensor:
    """Transform the gradient [T, ...] of the weight of this name: MC of the paper."""
    out = grad.flatten(3) if grad.dim() > 3 else grad
    for dim, mode in enumerate(MODES[: out.dim() - 1], start=1):
        matrix = theta.params.get(f"curvature.{name}.{mode}")
        if matrix is not None:
            out = (out.movedim(dim, -1) @ matrix.mT).movedim(-1, dim)
    return out.view_as(grad)
