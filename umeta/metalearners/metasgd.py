"""Meta-SGD: MAML that learns the size, and so the direction, of its inner steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from umeta.metalearners._gradient import InnerLoop, UnrolledLearner
from umeta.types import Adapted, Batch, Theta


@dataclass
class MetaSGD(UnrolledLearner):
    """Meta-SGD (Li, Zhou, Chen, Li 2017, arXiv 1707.09835, algorithm 1).

    MAML with the inner step `phi <- phi - alpha * grad L_support(phi)`, elementwise, where alpha is as large as phi and
    learnt with theta. It may become negative. Where classes share their row of the head they share its step sizes.
    """

    inner_lr: Annotated[float, Gt(0)] = 0.5
    """what every step size begins as, for the mean loss"""
    steps: Annotated[int, Gt(0)] = 5
    """inner steps in meta-training; 1 in the paper, but a first step from a `shared` head moves the head alone"""

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Adapt each task's weights [T, ...] by the learnt step sizes."""
        loop = InnerLoop(self, theta, support, start)
        phi = loop.start
        for size in loop.sizes(1.0, steps):
            gradient = loop.gradient(phi)
            alpha = {name: size * theta.params[f"rate.{name}"] for name in gradient}
            phi = phi | {name: phi[name] - alpha[name] * gradient[name] for name in gradient}
        return loop.finish(phi)

    def _make_inner(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make a step size for each number in the weights."""
        return {f"rate.{name}": torch.full_like(value, self.inner_lr) for name, value in weights.items()}
