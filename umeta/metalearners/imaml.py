"""Implicit MAML: the meta-gradient at the end of the inner loop, whichever way led there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from umeta.metalearners._gradient import GradientLearner, InnerLoop
from umeta.objectives import loss_of
from umeta.outer.conjugate_gradients import conjugate_gradients
from umeta.types import Adapted, Batch, OwnMetaGradient, Theta


@dataclass
class IMAML(GradientLearner, OwnMetaGradient):
    """Implicit MAML (iMAML, Rajeswaran, Finn, Kakade, Levine 2019, arXiv 1909.04630, algorithms 1 and 2).

    Inner problem: `phi = argmin L_support(phi) + lambda / 2 |phi - theta|^2`, by `steps` of gradient descent. There
    `dphi / dtheta = (I + H / lambda)^-1` with H the Hessian of L_support at phi (lemma 1), so that the meta-gradient
    `(I + H / lambda)^-1 grad L_query(phi)` takes a few products with H (conjugate gradients) and remembers no step.
    """

    inner_lr: Annotated[float, Gt(0)] = 0.2
    """inner step size, for the mean loss; below 2 / (lambda + the largest curvature), or the inner loop diverges"""
    steps: Annotated[int, Gt(0)] = 16
    """inner steps in meta-training, enough to come near the minimum"""
    proximal: Annotated[float, Gt(0)] = 0.5
    """lambda: how much the adapted weights are held at theta; the smaller, the more steps the inner loop needs"""
    iterations: Annotated[int, Gt(0)] = 5
    """of conjugate gradients; many of them are no better where the loss curves down by about lambda"""

    @property
    def twice(self) -> bool:
        """Whether meta-training takes second derivatives of the network."""
        return True

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Adapt each task's weights [T, ...] by gradient descent on the inner problem."""
        loop = InnerLoop(self, theta, support, start)
        phi = loop.start
        for size in loop.sizes(self.inner_lr, steps):
            gradient = loop.gradient(phi)
            slope = {name: gradient[name] + self.proximal * (phi[name] - loop.begun[name]) for name in gradient}
            phi = loop.move(phi, slope, size)
        return loop.finish(phi)

    def meta_gradient(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, dict[str, Tensor]]:
        """Adapt, and give the implicit gradient."""
        with torch.no_grad():
            adapted = self.adapt(theta, support)
        phi = {name: value.detach().requires_grad_() for name, value in adapted.params.items()}
        leaves = list(phi.values())
        with torch.enable_grad():
            here = self.adapt(theta, support, start=Adapted(phi), steps=0)  # statistics as a function of phi
            loss = loss_of(self.built.spec)
            inner, outer = (loss(self.predict(theta, here, b.x), b).sum() for b in (support, query))
            gradient = flat(torch.autograd.grad(outer, leaves, retain_graph=True, materialize_grads=True))
            slope = flat(torch.autograd.grad(inner, leaves, create_graph=True, materialize_grads=True))

        def product(vector: Tensor) -> Tensor:
            curved = torch.autograd.grad(slope, leaves, vector, retain_graph=True, materialize_grads=True)
            return vector + flat(curved) / self.proximal

        found = conjugate_gradients(product, gradient, self.iterations, gradient)  # from the first-order gradient on
        sizes = [value[0].numel() for value in leaves]
        named = {n: part.view_as(p) for (n, p), part in zip(phi.items(), found.split(sizes, 1), strict=True)}
        return adapted, self.pull_back(theta, support, named)


def flat(values: tuple[Tensor, ...]) -> Tensor:
    """[T, n] of tensors [T, ...]."""
    return torch.cat([value.flatten(1) for value in values], 1)
