"""MetaOptNet: the classifier of a task is a support vector machine, through whose optimum the embedding is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor

from umeta.metalearners._embedding import EmbeddingLearner, linear, members
from umeta.types import Adapted, Batch, Theta


@dataclass
class MetaOptNet(EmbeddingLearner):
    """Meta-learning with convex optimisation (MetaOptNet, Lee, Maji, Ravichandran, Soatto 2019, arXiv 1904.03758).

    A task's classifier is the multi-class support vector machine of Crammer and Singer on the support's embeddings z,
    solved by its dual (section 3.2): `min_a |sum_n a_n z_n'|^2 / 2 - sum_n a_n[y_n]` where each item's a_n sums to 0,
    `a_n[y_n] <= strength` and its other numbers are <= 0. The layer is `sum_n a_n z_n'`, times a learnt scale that
    starts at 10. As in the code of the authors I is added to the kernel of z, which makes the optimum unique.

    The paper calls a solver of quadratic programs. Here accelerated projected gradient finds which constraints hold;
    with these the optimum is a linear system, whose solution torch differentiates: the implicit gradient.
    """

    strength: Annotated[float, Gt(0)] = 0.1
    """how much the support counts against the penalty (C of the paper)"""
    iterations: Annotated[int, Gt(0)] = 100
    """of projected gradient"""

    family: ClassVar[str] = "by solving for a linear layer"

    def _make_parameters(self, weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        return {"scale": torch.tensor(10.0)}

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Return the machine's layer, scaled: weight [T, way, features]."""
        z, stats = self.embed(theta, support.x)
        z, y = z * support.mask[..., None], members(support).to(z.dtype)
        kernel = z @ z.mT + torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        dual = solve_dual(kernel, y, self.strength, self.iterations)
        return Adapted({"weight": theta.params["scale"] * dual.mT @ z}, stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]."""
        weight = adapted.params["weight"]
        return linear(self.embed_queries(theta, adapted, x), weight, torch.zeros_like(weight[..., 0]))


def solve_dual(kernel: Tensor, y: Tensor, strength: float, iterations: int) -> Tensor:
    """Return the optimal a [T, N, way], differentiable; kernel: [T, N, N], at least I; y: one-hot, zeros for padding.

    With `a = strength y - p` the constraints say that p lies in a simplex of size `strength` for each item, so all but
    the few p above 0, the support vectors, are known: stationarity of these, and each item's sum, make the system.
    """
    with torch.no_grad():
        size = strength * y.sum(-1, keepdim=True)
        steepest = torch.linalg.eigvalsh(kernel)[:, -1:, None]
        momentum = (steepest.sqrt() - 1) / (steepest.sqrt() + 1)  # of a function whose curvature is 1 to `steepest`
        p = ahead = strength * y
        for _ in range(iterations):
            moved = project(ahead + (kernel @ (strength * y - ahead) - y) / steepest, size)
            ahead, p = moved + momentum * (moved - p), moved
    items, way = y.shape[1:]
    free = (p > 0).mT.flatten(1)[..., None]  # [T, way * N, 1], class by class
    each, classes, same = (torch.eye(n, dtype=y.dtype, device=y.device) for n in (items, way, way * items))
    curved = torch.einsum("kl,tnm->tknlm", classes, kernel).flatten(3).flatten(1, 2)
    stationary = torch.cat([torch.where(free, curved, same), -each.repeat(way, 1) * free], 2)
    sums = torch.cat([each.repeat(1, way).expand(len(y), -1, -1), torch.diag_embed((size[..., 0] == 0).to(y))], 2)
    wanted = torch.where(free, 1, strength) * y.mT.flatten(1)[..., None]
    found = torch.linalg.solve(torch.cat([stationary, sums], 1), torch.cat([wanted, torch.zeros_like(size)], 1))
    return found[:, : way * items, 0].unflatten(1, (way, items)).mT


def project(p: Tensor, size: Tensor) -> Tensor:
    """Return the point nearest to p [..., way] in the simplex of numbers >= 0 that sum to `size` [..., 1]."""
    ordered = p.sort(-1, descending=True).values
    count = torch.arange(1, p.shape[-1] + 1, device=p.device)
    level = (ordered.cumsum(-1) - size) / count
    last = (ordered >= level).sum(-1, keepdim=True) - 1
    return (p - level.gather(-1, last)).clamp(min=0)
