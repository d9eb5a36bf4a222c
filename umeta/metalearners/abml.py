"""Amortized Bayesian meta-learning: each task's weights have a distribution, which the inner loop fits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from umeta.metalearners._distribution import draw_noise, join
from umeta.metalearners._gradient import InnerLoop, Weights
from umeta.metalearners._particles import ParticleLearner
from umeta.objectives import loss_of
from umeta.types import Adapted, Batch, Theta, along


@dataclass
class ABML(ParticleLearner):
    """Amortized Bayesian meta-learning (ABML, Ravi and Beatson, ICLR 2019, algorithm 1).

    The weights of a task are `q = N(m, s^2)`, which begins as the prior `p = N(mu, sigma^2)`. The inner loop steps on
    `L = E_q[loss of the support] + prior * KL(q || p) / items` with respect to m and log s, the outer loop descends L
    of support and query together with respect to mu and sigma, which have no prior of their own here. Expectations are
    means over draws, whose noise is a hash of the support; predictions are a mixture over draws of q.
    """

    spread: Annotated[float, Gt(0)] = 0.1
    """what sigma begins as"""
    prior: Annotated[float, Gt(0)] = 0.01
    """how much `KL(q || p)` counts, 1 in the paper; more keeps weights closer to their beginning, and needs a smaller
    `inner_lr`: its product with that stays below the variance times the items"""

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Fit each task's distribution: means [T, ...] by the weights' names, log s as `std.NAME`, and the noise."""
        return self._fit(theta, support, self._find_prior(theta, support), start, steps)

    def meta_loss(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, Tensor]:
        """Adapt; return L of support and query."""
        prior, both = self._find_prior(theta, support), join(support, query)
        adapted, many = self._fit(theta, support, prior), self.repeat(both)
        output = super(ParticleLearner, self).predict(theta, self.flatten(adapted), many.x)
        loss = loss_of(self.built.spec)(output, many).unflatten(0, (-1, self.particles)).mean(1)
        p, q = (self._read(weights) for weights in (prior, adapted.params))
        apart = [kl_divergence(q[name], p[name]).flatten(1).sum(1) for name in p]
        return adapted, loss + self.prior * torch.stack(apart).sum(0) / both.mask.sum(1)

    def flatten(self, adapted: Adapted) -> Adapted:
        """Return draws of the weights as the inner loop has them."""
        return replace(adapted, params=self._draw(adapted.params))

    def _fit(
        self, theta: Theta, support: Batch, prior: Weights, start: Adapted | None = None, steps: int | None = None
    ) -> Adapted:
        """Take the steps from the prior, or from where earlier ones ended."""
        begun = start or Adapted(prior)
        loop = InnerLoop(self, theta, self.repeat(support), self.flatten(begun))
        phi, noise = begun.params, self._read_noise(begun.params)
        for size in loop.sizes(self.inner_lr, steps):
            slopes = loop.gradient(self._draw(phi))
            phi = phi | self._step(phi, prior, slopes, noise, support.mask.sum(1), size)
        finished = loop.finish(self._draw(phi))
        return replace(finished, params=phi if loop.differentiable else {n: v.detach() for n, v in phi.items()})

    def _find_prior(self, theta: Theta, support: Batch) -> Weights:
        """Return means, log standard deviations and noise as each task begins with them."""
        mean = self.begin(theta, support)
        stds = {n: std for n, std in theta.params.items() if n.startswith("std.")}
        prior = mean | {n: std.expand(mean[n.removeprefix("std.")].shape) for n, std in stds.items()}
        numbers = sum(prior[n][0].numel() for n in stds)
        return prior | {"noise": draw_noise(support, self.particles, numbers)}

    def _read(self, phi: Weights) -> dict[str, Normal]:
        """Return the distributions of the weights that have one, by name, in the order of their noise."""
        names = sorted(name.removeprefix("std.") for name in phi if name.startswith("std."))
        # checks would wait for a GPU
        return {n: Normal(phi[n], phi[f"std.{n}"].exp(), validate_args=False) for n in names}

    def _read_noise(self, phi: Weights) -> Weights:
        """Return the noise of the weights that have a distribution, by name: [T, M, ...]."""
        q = self._read(phi)
        parts = phi["noise"].split([one.mean[0].numel() for one in q.values()], -1)
        return {n: e.view(*e.shape[:2], *q[n].mean.shape[1:]) for n, e in zip(q, parts, strict=True)}

    def _draw(self, phi: Weights) -> Weights:
        """Draw weights [T * M, ...]."""
        q, noise = self._read(phi), self._read_noise(phi)
        fixed = {n: v for n, v in phi.items() if n not in q and n != "noise" and not n.startswith("std.")}
        drawn = {n: one.mean[:, None] + one.stddev[:, None] * noise[n].to(one.mean) for n, one in q.items()}
        drawn |= {n: v[:, None].expand(-1, self.particles, *v.shape[1:]) for n, v in fixed.items()}
        return {n: value.flatten(0, 1) for n, value in drawn.items()}

    def _step(
        self, phi: Weights, prior: Weights, slopes: Weights, noise: Weights, items: Tensor, size: float
    ) -> Weights:
        """Return means and log standard deviations one step on, by the loss's slopes at the draws [T * M, ...]."""
        moved, q, p = {}, self._read(phi), self._read(prior)
        for name, slope in slopes.items():
            each, n = slope.unflatten(0, (-1, self.particles)), along(items, q[name].mean)
            pull = (q[name].mean - p[name].mean) / p[name].variance * self.prior / n
            widen = (q[name].variance / p[name].variance - 1) * self.prior / n
            moved[name] = phi[name] - size * (each.mean(1) + pull)
            moved[f"std.{name}"] = phi[f"std.{name}"] - size * ((each * noise[name]).mean(1) * q[name].stddev + widen)
        return moved

    def _make_inner(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make the logarithm of sigma for each number in the weights."""
        return {f"std.{name}": torch.full_like(value, math.log(self.spread)) for name, value in weights.items()}
