"""A trust region around the policies that the meta-learner adapts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from umeta.outer.conjugate_gradients import conjugate_gradients
from umeta.parts import Problem


@dataclass
class TRPO:
    """Trust region policy optimisation (Schulman et al. 2015, appendix C), as MAML for RL uses it (Finn et al. 2017).

    The step is along the natural gradient, as far as the mean KL divergence of the adapted policies may go, and shorter
    until the loss has in fact improved; where none improves it no step is taken. For environments only.

    Logged: `kl`, and `accepted`, the share of the longest step that was taken: 0 where none was.
    """

    max_kl: Annotated[float, Gt(0)] = 0.01
    """how far the adapted policies may move: their mean KL divergence over the query's states, in nats"""
    iterations: Annotated[int, Gt(0)] = 10
    """of conjugate gradients"""
    damping: Annotated[float, Ge(0)] = 1e-5
    """added to the diagonal of the Fisher information"""
    share: Annotated[float, Gt(0), Le(1)] = 0.1
    """of the states that the Fisher information is taken on; loss and KL divergence are taken on all"""
    backtracks: Annotated[int, Gt(0)] = 15
    """lengths of the step that are tried"""
    shrink: Annotated[float, Gt(0), Lt(1)] = 0.8
    """from one length to the next"""

    for_policies: ClassVar[bool] = True
    second_order: ClassVar[bool] = True  # differentiates the KL divergence twice
    _params: dict[str, Tensor] = field(init=False, repr=False, compare=False)

    def start(self, params: dict[str, Tensor]) -> None:
        """Begins with these parameters, which `step` changes in place."""
        self._params = params

    def step(self, problem: Problem, progress: float) -> dict[str, float]:
        """One step."""
        metrics, grads = problem.loss_and_grad()
        gradient = self._flat(grads)
        (direction,) = conjugate_gradients(lambda v: self._fisher(problem, v[0])[None], gradient[None], self.iterations)
        curvature = (direction @ gradient).item()  # what is left of the gradient is orthogonal to the direction
        kl, accepted = 0.0, 0.0
        if 0 < curvature < inf:  # else the gradient is zero, or something is not a number
            kl, accepted = self._search(problem, metrics["loss"], direction * (2 * self.max_kl / curvature) ** 0.5)
        return {**metrics, "gradient": gradient.norm().item(), "kl": kl, "accepted": accepted}

    def _search(self, problem: Problem, loss: float, longest: Tensor) -> tuple[float, float]:
        """Goes back by the first length that will do. Returns its KL divergence and its share of the longest."""
        before = self._flat(self._params)
        for share in (self.shrink**i for i in range(self.backtracks)):
            self._set(before - share * longest)
            new, kl = problem.loss_and_kl()
            if new < loss and kl <= self.max_kl:  # neither holds of what is not a number
                return kl, share
        self._set(before)
        return 0.0, 0.0

    def _fisher(self, problem: Problem, vector: Tensor) -> Tensor:
        return self._flat(problem.fisher_vector(self._named(vector), self.share)) + self.damping * vector

    def _flat(self, named: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([named[name].detach().flatten() for name in self._params])

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([param.numel() for param in self._params.values()])
        return {n: part.view_as(p) for (n, p), part in zip(self._params.items(), parts, strict=True)}

    def _set(self, flat: Tensor) -> None:
        with torch.no_grad():
            for name, value in self._named(flat).items():
                self._params[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: all it knows is the parameters."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing."""
