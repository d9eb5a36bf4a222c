"""Adam on the meta-gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from umeta.parts import Problem


@dataclass
class Adam:
    """Adam (Kingma and Ba 2015), decoupled weight decay (Loshchilov and Hutter 2019) and a step-size schedule."""

    lr: Annotated[float, Gt(0)] = 1e-3
    """step size"""
    schedule: Literal["constant", "cosine"] = "constant"
    """`cosine` lets the step size fall to zero over the run"""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """decoupled from the gradient"""
    clip: Annotated[float, Gt(0)] | None = None
    """largest norm of the meta-gradient"""
    _optimiser: torch.optim.Optimizer = field(init=False, repr=False, compare=False)

    def start(self, params: dict[str, Tensor]) -> None:
        """Begins with these parameters, which `step` changes in place."""
        self._params = params
        self._optimiser = torch.optim.AdamW(list(params.values()), lr=self.lr, weight_decay=self.weight_decay)

    def step(self, problem: Problem, progress: float) -> dict[str, float]:
        """One step; `progress` in [0, 1) is the share of the run already done."""
        return self.move(*problem.loss_and_grad(), progress)

    def move(self, metrics: dict[str, float], grads: dict[str, Tensor], progress: float) -> dict[str, float]:
        """One step along these gradients: the metrics they came with, and their norm."""
        for name, param in self._params.items():
            param.grad = grads[name]
        norm = torch.nn.utils.clip_grad_norm_(list(self._params.values()), self.clip or math.inf)
        if self.schedule == "cosine":
            self._optimiser.param_groups[0]["lr"] = self.lr * (1 + math.cos(math.pi * progress)) / 2
        self._optimiser.step()
        return {**metrics, "gradient": norm.item()}  # so that a step that breaks the weights is noticed at once

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts, by parameter."""
        state = self._optimiser.state
        return {f"{name}.{k}": v for name, p in self._params.items() for k, v in state.get(p, {}).items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, param in self._params.items():
            prefix = f"{name}."
            moments = {k: state[prefix + k] for k in ("step", "exp_avg", "exp_avg_sq") if prefix + k in state}
            self._optimiser.state[param] = {
                k: v.clone() if k == "step" else v.to(param.device, copy=True) for k, v in moments.items()
            }
