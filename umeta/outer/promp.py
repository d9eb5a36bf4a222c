"""Several steps on one meta-batch, none far from the policies that acted in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

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

    for_policies: ClassVar[bool] = True
    _adam: Adam = field(init=False, repr=False, compare=False)

    def start(self, params: dict[str, Tensor]) -> None:
        """Begins with these parameters, which `step` changes in place."""
        self._adam = Adam(self.lr, self.schedule)
        self._adam.start(params)

    def step(self, problem: Problem, progress: float) -> dict[str, float]:
        """`epochs` steps of Adam; the metrics are those of the first, at the parameters that acted."""
        metrics = [self._adam.move(*problem.loss_and_grad(clip=self.clip), progress) for _ in range(self.epochs)]
        return metrics[0]

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's moments and step counts, by parameter."""
        return self._adam.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._adam.load_state_dict(state)
