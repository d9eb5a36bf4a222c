"""A learner's features, as an embedding for the next round of proposing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from umeta.errors import UserError
from umeta.parts import Context, Images, Trained
from umeta.types import FeatureLearner

BATCH = 1000  # images embedded at a time


@dataclass
class Learner:
    """Features of a learner meta-trained before: propose, meta-train, propose again (UFLST, Ji et al. 2020)."""

    run: str
    """the learner, `runs/NAME`"""
    _trained: Trained = field(init=False, repr=False, compare=False)

    def receive(self, trained: Trained) -> None:
        """Take the loaded run.

        Raises:
            UserError: its learner has no features, or it was trained with true labels.
        """
        if not isinstance(trained.learner, FeatureLearner):
            raise UserError(f"embedding learner: the learner of {self.run} has no features")
        if trained.true_labels:
            raise UserError(f"embedding learner: {self.run} was trained with true labels, which must not reach propose")
        self._trained = trained

    @property
    def trained(self) -> Trained:
        """The run."""
        return self._trained

    @property
    def pretrained(self) -> str:
        """What the run had learnt from before."""
        return self._trained.pretrained

    def fit(self, images: Images, ctx: Context) -> None:
        """Check that the images are of the shape that the run takes; raise UserError when they are not."""
        shape = self._trained.item_shape
        if images.item_shape != shape:
            raise UserError(f"embedding learner: {self.run} takes images {shape}, these are {images.item_shape}")

    def embed(self, images: Images) -> Tensor:
        """[n, features] float32."""
        learner: Any = self._trained.learner
        theta = self._trained.theta
        with torch.no_grad():
            parts = [
                learner.features(theta, images.floats(slice(i, i + BATCH), theta.device)).cpu()
                for i in range(0, len(images), BATCH)
            ]
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Tensor]:
        theta = self._trained.theta
        return {
            **{f"params.{name}": value.cpu() for name, value in theta.params.items()},
            **{f"running.{name}": value.cpu() for name, value in (theta.running or {}).items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Check that the run is the one that the state is of; raise UserError when it is another by now."""
        for name, value in self._trained.theta.params.items():
            if not torch.equal(state.get(f"params.{name}", torch.empty(0)), value.cpu()):
                raise UserError(f"embedding learner: {self.run} is not the learner that this embedding was made with")
