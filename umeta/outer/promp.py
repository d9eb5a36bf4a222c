"""Several steps on one meta-batch, none far from the policies that acted in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from umeta.outer.adam import Adam
from umeta.parts import Problem


@dataclass
class ProMP:
    """ProMP (Rothfuss et al. 2019, algorithm 1): meta-steps by the clipped objective of PPO (Schulman et al. 2017).

    Each step adapts anew, at the parameters as they are by then, on the episodes sampled before the first. The paper's
    penalty on the KL divergence of the policies before adaptation is left out. For environments only.
    """

    lr: Annotated[float, Gt(0)] = 1e-3
    """step size of Adam"""
    schedule: Literal["constant", "cosine"] = "constant"
    """`cosine` lets the step size fall to zero over the run"""
    epochs: Annotated[int, Gt(0)] = 5
    """steps on each meta-batch"""
    clip: Annotated[float, Gt(0), Lt(1)] = 0.3
    """how far from 1 an adapted policy's probability ratios gain anything by moving"""

    max_kl: Annotated[float, Gt(0)] | None = None
    """how far the adapted policies may move in a meta-step: their mean KL divergence over the query's states, in nats;
    a longer step is shortened until it fits"""
    max_gradient: Annotated[float, Gt(0)] | None = None
    """largest norm of the meta-gradient; without it a single outlier distorts Adam's moments for many steps"""

    for_policies: ClassVar[bool] = True
    _params: dict[str, Tensor] = field(init=False, repr=False, compare=False)
    _adam: Adam = field(init=False, repr=False, compare=False)

    def start(self, params: dict[str, Tensor]) -> None:
        """Begin with these parameters, which `step` changes in place."""
        self._params = params
        self._adam = Adam(self.lr, self.schedule, clip=self.max_gradient)
        self._adam.start(params)

    def step(self, problem: Problem, progress: float) -> dict[str, float]:
        """`epochs` steps of Adam; the metrics are those of the first, at the parameters that acted."""
        before = {name: param.detach().clone() for name, param in self._params.items()}
        metrics = [self._adam.move(*problem.loss_and_grad(clip=self.clip), progress) for _ in range(self.epochs)]
        if not self.max_kl:
            return metrics[0]
        return {**metrics[0], "kl": self._shorten(problem, before, self.max_kl)}

    @torch.no_grad()
    def _shorten(self, problem: Problem, before: dict[str, Tensor], most: float) -> float:
        """Go back towards the parameters `before` until the divergence is at most `most`; return what it is then."""
        while (kl := problem.loss_and_kl()[1]) > most:
            share = max(0.5, 0.9 * (most / kl) ** 0.5)  # the divergence is quadratic in a small step alone
            for name, param in self._params.items():
                param.copy_(torch.lerp(before[name], param, share))
        return kl

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's moments and step counts, by parameter."""
        return self._adam.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._adam.load_state_dict(state)
