"""Bayesian MAML: several initialisations, whose inner steps keep them apart, answer together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from umeta import seeds
from umeta.metalearners._distribution import join
from umeta.metalearners._gradient import InnerLoop, Weights
from umeta.metalearners._particles import ParticleLearner
from umeta.types import Adapted, Batch, Theta


@dataclass
class BMAML(ParticleLearner):
    """Bayesian MAML (BMAML, Yoon, Kim, Dia, Kim, Bengio, Ahn 2018, arXiv 1806.03836, sections 2.2 and 3.2).

    M particles phi_m, each from an initialisation of its own, take steps of Stein variational gradient descent:
    `phi_m <- phi_m + inner_lr * mean_n [k(phi_n, phi_m) grad log p(phi_n) + grad_phi_n k(phi_n, phi_m)]`, where log p
    is minus the mean support loss, the last term is divided by the number of items accordingly, and k is
    `exp(-|phi_n - phi_m|^2 / h)` with h the median squared distance over log M. The answer is the mixture of theirs.

    The outer loop descends the chaser loss `sum_m |phi_m - leader_m|^2`: the leaders, which are constants, are where
    `lead` further steps on support and query together take the particles.
    """

    lead: Annotated[int, Gt(0)] = 1
    """steps of the leader beyond the particles (s of the paper)"""
    apart: Annotated[float, Gt(0)] = 0.1
    """how far initialisations begin from each other, in root mean squares of each weight"""

    def begin(self, theta: Theta, support: Batch) -> Weights:
        """Return the weights that the particles begin with; the support's tasks are repeated, once for each of them."""
        tasks = len(support) // self.particles
        phi = super().begin(theta, support)
        moves = {name: theta.params[f"particle.{name}"] for name in phi if f"particle.{name}" in theta.params}
        return phi | {name: phi[name] + move.repeat(tasks, *[1] * (move.dim() - 1)) for name, move in moves.items()}

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Adapt each task's particles: weights [T, M, ...]."""
        loop = InnerLoop(self, theta, self.repeat(support), start and self.flatten(start))
        phi = loop.start
        for size in loop.sizes(self.inner_lr, steps):
            phi = loop.move(phi, self._steer(phi, loop.gradient(phi), support.mask.sum(1)), size)
        return self.gather(loop.finish(phi))

    def meta_loss(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, Tensor]:
        """Adapt; return the chaser loss."""
        chaser = self.adapt(theta, support)
        with torch.no_grad():
            leader = self.adapt(theta, join(support, query), start=chaser, steps=self.lead)
        moved = [(value - leader.params[n]).square().flatten(1).sum(1) for n, value in chaser.params.items()]
        return chaser, torch.stack(moved).sum(0) / self.particles

    def _steer(self, phi: Weights, gradient: Weights, items: Tensor) -> Weights:
        """Return minus the direction of such a step for each particle, of their gradients of the mean loss."""
        names = sorted(gradient)  # a stored theta has an order of its own
        both = (torch.cat([w[n].flatten(1) for n in names], 1) for w in (phi, gradient))
        flat, slope = (values.unflatten(0, (-1, self.particles)) for values in both)
        apart = (flat[:, :, None] - flat[:, None]).square().sum(-1)
        median = apart.detach().flatten(1).median(1).values.clamp(min=1e-12)
        h = median[:, None, None] / math.log(self.particles)
        kernel = (-apart / h).exp()
        repulsion = 2 / h * (kernel.sum(2, keepdim=True) * flat - kernel @ flat) / items[:, None, None]
        steered = ((kernel @ slope - repulsion) / self.particles).flatten(0, 1)
        parts = steered.split([gradient[n][0].numel() for n in names], 1)
        return {n: part.view_as(gradient[n]) for n, part in zip(names, parts, strict=True)}

    def _make_inner(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make what each particle begins away from the initialisation."""
        draw = seeds.generator("particles")
        found = {}
        for name, value in weights.items():
            size = self.apart * value.square().mean().sqrt()
            found[f"particle.{name}"] = size * torch.randn(self.particles, *value.shape, generator=draw)
        return found
