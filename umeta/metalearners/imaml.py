"""Implicit MAML: the meta-gradient at the end of the inner loop, whichever way led there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from umeta.metalearners._gradient import GradientLearner
from umeta.models.functional import Normalisation
from umeta.parts import Model
from umeta.types import Adapted, Batch, Theta


@dataclass
class IMAML(GradientLearner):
    """Implicit MAML (iMAML, Rajeswaran, Finn, Kakade, Levine 2019, arXiv 1909.04630, algorithms 1 and 2).

    Inner problem: `phi = argmin L_support(phi) + lambda / 2 |phi - theta|^2`, by `steps` of gradient descent. There
    `dphi / dtheta = (I + H / lambda)^-1` with H the Hessian of L_support at phi (lemma 1), so that the meta-gradient
    `(I + H / lambda)^-1 grad L_query(phi)` takes a few products with H (conjugate gradients) and remembers no step.
    """

    model: Model
    """the network below the linear head"""
    inner_lr: Annotated[float, Gt(0)] = 0.2
    """inner step size, for the mean loss; below 2 / (lambda + the largest curvature), or the inner loop diverges"""
    steps: Annotated[int, Gt(0)] = 16
    """inner steps in meta-training, enough to come near the minimum"""
    test_steps: Annotated[int, Gt(0)] | None = None
    """inner steps at evaluation; by default those of meta-training"""
    proximal: Annotated[float, Gt(0)] = 0.5
    """lambda: how much the adapted weights are held at theta; the smaller, the more steps the inner loop needs"""
    iterations: Annotated[int, Gt(0)] = 5
    """of conjugate gradients; many of them are no better where the loss curves down by about lambda"""
    head: Literal["shared", "fixed", "prototypes"] = "shared"
    """`shared`: one row for all classes, for any way; `fixed`: a row per class; `prototypes`: the inner loop starts at
    the layer that the support's prototypes are (umeta/metalearners/maml.py)"""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """`cosine` gives the head features of length 1: prototypes are then a layer of cosines (see `maml`)"""
    normalisation: Normalisation = "support"
    """what batch normalisation normalises by (umeta/models/pure.py); `batch` is transductive"""

    unadapted = None  # type: ignore[assignment]  # not for policies: their support is from before the adaptation

    def meta_gradient(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, dict[str, Tensor]]:
        """Adapted, and the implicit gradient."""
        with torch.no_grad():
            adapted = self.adapt(theta, support)
        phi = {name: value.detach().requires_grad_() for name, value in adapted.params.items()}
        leaves = list(phi.values())
        with torch.enable_grad():
            here = self.adapt(theta, support, start=Adapted(phi), steps=0)  # statistics as a function of phi
            inner, outer = (self._loss(self.predict(theta, here, b.x), b).sum() for b in (support, query))
            gradient = flat(torch.autograd.grad(outer, leaves, retain_graph=True, materialize_grads=True))
            slope = flat(torch.autograd.grad(inner, leaves, create_graph=True, materialize_grads=True))

        def product(vector: Tensor) -> Tensor:
            curved = torch.autograd.grad(slope, leaves, vector, retain_graph=True, materialize_grads=True)
            return vector + flat(curved) / self.proximal

        found = conjugate_gradients(product, gradient, self.iterations)
        sizes = [value[0].numel() for value in leaves]
        named = {n: part.view_as(p) for (n, p), part in zip(phi.items(), found.split(sizes, 1), strict=True)}
        return adapted, self._pulled(theta, support, named)

    def _moves(
        self, theta: Theta, begun: dict[str, Tensor], fast: dict[str, Tensor], grads: dict[str, Tensor], size: float
    ) -> dict[str, Tensor]:
        return {name: size * (grad + self.proximal * (fast[name] - begun[name])) for name, grad in grads.items()}


def flat(values: tuple[Tensor, ...]) -> Tensor:
    """[T, n] of tensors [T, ...]."""
    return torch.cat([value.flatten(1) for value in values], 1)


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solves A x = b, a system for each row of b [T, n], for symmetric A known by their products [T, n] -> [T, n].

    It begins at x = b, the first-order gradient, and passes over directions along which A is not positive.
    """
    x, residual = b, b - product(b)
    direction, error = residual, residual.square().sum(1, keepdim=True)
    enough = torch.finfo(b.dtype).eps ** 2 * b.square().sum(1, keepdim=True)
    for _ in range(iterations):
        image = product(direction)
        curvature = (direction * image).sum(1, keepdim=True)
        going = (curvature > 0) & (error > enough)
        length = torch.where(going, error / curvature, 0)
        x, residual = x + length * direction, residual - length * image
        last, error = error, residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(going, error / last, 0) * direction
    return x
