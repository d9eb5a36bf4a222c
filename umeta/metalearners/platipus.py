"""PLATIPUS: MAML from initialisations drawn for each task, as its support leaves more than one answer open."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from umeta.metalearners._distribution import draw_noise
from umeta.metalearners._gradient import InnerLoop, Weights
from umeta.metalearners._particles import ParticleLearner
from umeta.objectives import loss_of
from umeta.types import Adapted, Batch, Theta


@dataclass
class PLATIPUS(ParticleLearner):
    """Probabilistic MAML (PLATIPUS, Finn, Xu, Levine 2018, arXiv 1806.02817, algorithms 1 and 2).

    Initialisations are drawn from `p = N(mu - gamma_p grad L_support(mu), sigma^2)`, and each takes MAML's steps on the
    support. In meta-training they are drawn from `q = N(mu - gamma_q grad L_query(mu), v)`, and the outer loop descends
    `L_query(phi) + KL(q || p) / items`, where L is a mean over these items. mu, sigma, v and both gammas are learnt.
    The noise of a task is a hash of its support, so that answers are the same when asked again.
    """

    spread: Annotated[float, Gt(0)] = 0.02
    """what sigma and v begin as"""

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Adapt each task's draws: weights [T, M, ...]."""
        start = start or self._draw(*self._see(theta, support, support, "p"), support)
        loop = InnerLoop(self, theta, self.repeat(support), self.flatten(start))
        return self.gather(loop.descend(self.inner_lr, steps))

    def meta_loss(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, Tensor]:
        """Adapt from draws that have seen the query; return the loss of the query, and what seeing it was worth."""
        (p, sigma), (q, v) = (self._see(theta, support, *seen) for seen in ((support, "p"), (query, "q")))
        adapted = self.adapt(theta, support, start=self._draw(q, v, support))
        many = self.repeat(query)
        output = super(ParticleLearner, self).predict(theta, self.flatten(adapted), many.x)
        loss = loss_of(self.built.spec)(output, many).unflatten(0, (-1, self.particles)).mean(1)
        normal = partial(Normal, validate_args=False)  # checks would wait for a GPU
        apart = [kl_divergence(normal(q[n], v[n]), normal(p[n], sigma[n])).flatten(1).sum(1) for n in sigma]
        return adapted, loss + torch.stack(apart).sum(0) / query.mask.sum(1)

    def _see(self, theta: Theta, support: Batch, seen: Batch, which: str) -> tuple[Weights, Weights]:
        """Return means and standard deviations of the initialisations, `p` or `q`, that have seen a batch: [T, ...]."""
        loop = InnerLoop(self, theta, seen, Adapted(self.begin(theta, support)))
        mean = loop.move(loop.start, loop.gradient(loop.start), theta.params[f"gamma.{which}"])
        return mean, {n: theta.params[f"{which}.{n}"].abs().expand(mean[n].shape) for n in sorted(loop.moving)}

    def _draw(self, mean: Weights, std: Weights, support: Batch) -> Adapted:
        """Draw initialisations [T, M, ...] by the support's noise."""
        drawn = {n: value[:, None].expand(-1, self.particles, *value.shape[1:]) for n, value in mean.items()}
        sizes = [mean[n][0].numel() for n in std]
        noise = draw_noise(support, self.particles, sum(sizes)).split(sizes, -1)
        for name, e in zip(std, noise, strict=True):
            drawn[name] = drawn[name] + std[name][:, None] * e.view(drawn[name].shape).to(drawn[name])
        return Adapted(drawn)

    def _make_inner(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make sigma and v, whose sign is of no matter, for each number in the weights, and the two step sizes."""
        stds = {f"{which}.{n}": torch.full_like(p, self.spread) for which in "pq" for n, p in weights.items()}
        return {**stds, "gamma.p": torch.tensor(self.inner_lr), "gamma.q": torch.tensor(self.inner_lr)}
