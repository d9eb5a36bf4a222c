"""MAML++: MAML with learnt step sizes, a loss at every inner step at first, and second derivatives only later."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from annotated_types import Ge, Le
from torch import Tensor

from umeta.metalearners._gradient import GradientLearner, InnerLoop
from umeta.objectives import loss_of
from umeta.types import Adapted, Batch, OwnMetaLoss, Theta


@dataclass
class MAMLPlusPlus(GradientLearner, OwnMetaLoss):
    """How to train your MAML (MAML++, Antoniou, Edwards, Storkey 2019, arXiv 1810.09502, section 4).

    Each weight has a learnt step size for each inner step, `phi_i <- phi_(i-1) - alpha_i * grad L_support(phi_(i-1))`.
    The outer loop descends `sum_i v_i L_query(phi_i)` : all v_i are equal at first, and that of the last
    step becomes 1 by and by. Inner gradients are constants until a share of meta-training is over. A further step at
    test is as long as the last. The paper's cosine schedule is an option of the outer step; what it does to batch
    normalisation, statistics of each step apart, is left out: `normalisation` says which statistics there are.
    """

    multi_step: Annotated[float, Ge(0), Le(1)] = 0.15
    """share of meta-training over which the loss of every step gives way to that of the last"""
    first_order_until: Annotated[float, Ge(0), Le(1)] = 0.5
    """share of meta-training in which second derivatives are left out"""

    progress = 1.0

    @property
    def twice(self) -> bool:
        """Whether meta-training takes second derivatives of the network."""
        return self.first_order_until < 1

    def at(self, progress: float) -> Self:
        """Return the learner as meta-training has it when this share of it is over."""
        learner = copy.copy(self)
        learner.progress, learner.first_order = progress, progress < self.first_order_until
        return learner

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Adapt each task's weights [T, ...] by the step sizes of each step."""
        loop = InnerLoop(self, theta, support, start)
        phi = loop.start
        for size in loop.sizes(1.0, steps):
            gradient, step = loop.gradient(phi), min(loop.taken, self.steps) - 1
            alpha = {name: size * theta.params[f"rate.{name}"][step] for name in gradient}
            phi = phi | {name: phi[name] - alpha[name] * gradient[name] for name in gradient}
        return loop.finish(phi)

    def meta_loss(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, Tensor]:
        """Adapt; return the weighted loss over the steps."""
        adapted, total = None, query.x.new_zeros(len(query))
        for v in self.weigh_steps():
            adapted = self.adapt(theta, support, start=adapted, steps=1)
            if v:
                total = total + v * loss_of(self.built.spec)(self.predict(theta, adapted, query.x), query)
        assert adapted is not None
        return adapted, total

    def weigh_steps(self) -> list[float]:
        """Return the weight v of each step's loss."""
        each = max(0.0, 1 - self.progress / self.multi_step if self.multi_step else 0.0) / self.steps
        return [each] * (self.steps - 1) + [1 - each * (self.steps - 1)]

    def _make_inner(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make a step size for each weight and step."""
        return {f"rate.{name}": torch.full((self.steps,), self.inner_lr) for name in weights}
