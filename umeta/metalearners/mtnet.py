"""MT-net: MAML whose inner steps are confined to a learnt subspace of each layer, by a learnt metric."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from umeta.metalearners._distribution import draw_noise
from umeta.metalearners._gradient import InnerLoop, UnrolledLearner
from umeta.types import Adapted, Batch, Theta


@dataclass
class MTNet(UnrolledLearner):
    """Learned layerwise metric and subspace (MT-net, Lee, Choi 2018, arXiv 1801.05558, section 3).

    Each layer is `y = T W x`. The inner loop moves `W <- W - inner_lr * M grad_W L_support`, where T is the outer
    loop's alone, and the mask M leaves out whole rows of W: row j of a task's is drawn with probability
    `sigmoid(zeta_j)`, by binary Gumbel-softmax, so that zeta is learnt. Without the mask it is the paper's T-net.

    With A = T W for the layer's weight the step is `A <- A - inner_lr * T M T' grad_A`, and so it is written here, for
    any network: T, M and W's rows are those of the outputs of a layer, or of the channels of a convolution. Rows that
    classes share are in no order, and have no T, nor have numbers by themselves. A task's mask is drawn by a hash of
    its support, so that it is the same when the task is seen again.
    """

    mask: bool = True
    """draw masks; `false` makes it a T-net"""
    temperature = 1.0

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Adapt each task's weights [T, ...] in the subspaces of the layers."""
        loop = InnerLoop(self, theta, support, start)
        phi = loop.start
        masks = self._draw_masks(theta, support)
        for size in loop.sizes(self.inner_lr, steps):
            gradient = loop.gradient(phi)
            phi = loop.move(phi, {name: turn(theta, name, g, masks.get(name)) for name, g in gradient.items()}, size)
        return loop.finish(phi)

    def _draw_masks(self, theta: Theta, support: Batch) -> dict[str, Tensor]:
        """Draw ones and zeros [T, rows] for each weight, whose gradient is that of the relaxed draws."""
        found = {}
        zetas = {n.removeprefix("mask."): zeta for n, zeta in sorted(theta.params.items()) if n.startswith("mask.")}
        sizes = [len(zeta) for zeta in zetas.values()]
        for (name, zeta), normal in zip(zetas.items(), draw_noise(support, sum(sizes)).split(sizes, 1), strict=True):
            uniform = torch.special.ndtr(normal).clamp(1e-6, 1 - 1e-6)
            soft = ((zeta + uniform.logit()) / self.temperature).sigmoid()
            found[name] = (soft > 0.5).to(soft) + (soft - soft.detach())
        return found

    def _make_inner(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make T, an identity, and zeta, zeros, for each weight with rows."""
        rows = {name: len(value) for name, value in weights.items() if value.dim() > 1 and len(value) > 1}
        masks = {f"mask.{name}": torch.zeros(n) for name, n in rows.items()} if self.mask else {}
        return {**{f"metric.{name}": torch.eye(n) for name, n in rows.items()}, **masks}


def turn(theta: Theta, name: str, gradient: Tensor, mask: Tensor | None) -> Tensor:
    """Return `T M T'` times a gradient [T, rows, ...]."""
    metric = theta.params.get(f"metric.{name}")
    if metric is None:
        return gradient
    rows = metric.T @ gradient.flatten(2)
    return (metric @ (rows if mask is None else mask[..., None] * rows)).view_as(gradient)
