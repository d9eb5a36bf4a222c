"""What a learner has learnt, as an embedding for the next round of proposing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from umeta.config import registry
from umeta.errors import UserError
from umeta.parts import Context, Images

BATCH = 1000  # images embedded at a time


@dataclass
class Learner:
    """Features of a learner meta-trained before: propose, meta-train, propose again (UFLST, Ji et al. 2020)."""

    run: str
    """the learner, `runs/NAME`"""
    _state: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fit(self, images: Images, ctx: Context) -> None:
        """Reads the run; raises UserError when it takes other images."""
        self._load(ctx.device)
        if images.item_shape != self._shape:
            raise UserError(f"embedding learner: {self.run} takes images {self._shape}, these are {images.item_shape}")
        running = self._run.theta.running or {}
        self._state = {
            **{f"params.{name}": value.cpu() for name, value in self._run.theta.params.items()},
            **{f"running.{name}": value.cpu() for name, value in running.items()},
        }

    def embed(self, images: Images) -> Tensor:
        """[n, features] float32."""
        learner: Any = self._run.learner
        theta = self._run.theta
        device = next(iter(theta.params.values())).device
        with torch.no_grad():
            parts = [
                learner.features(theta, images.floats(slice(i, i + BATCH), device)).cpu()
                for i in range(0, len(images), BATCH)
            ]
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Tensor]:
        return self._state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises UserError when the run is gone, or is another one by now."""
        self._load("cpu")
        for name, value in self._run.theta.params.items():
            if not torch.equal(state.get(f"params.{name}", torch.empty(0)), value):
                raise UserError(f"embedding learner: {self.run} is not the learner that this embedding was made with")
        self._state = dict(state)

    def _load(self, device: torch.device | str) -> None:
        from umeta.stages.runs import load_run

        self._run = load_run(self.run, device=str(device), trusted=registry.loaded())
        if not hasattr(self._run.learner, "features"):
            raise UserError(f"embedding learner: the learner of {self.run} has no features")
        if self._run.true_labels:
            raise UserError(f"embedding learner: {self.run} was trained with true labels, which must not reach propose")
        self._shape = self._run.item_shape
