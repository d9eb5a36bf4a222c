"""R2-D2: the classifier of a task is ridge regression in closed form, through which the embedding is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from umeta.metalearners._embedding import EmbeddingLearner, linear, members
from umeta.types import Adapted, Batch, Theta


@dataclass
class R2D2(EmbeddingLearner):
    """Ridge regression differentiable discriminator (R2-D2, Bertinetto, Henriques, Torr, Vedaldi 2019, section 3.2).

    `W = Z' (Z Z' + lambda I)^-1 Y` fits the one-hot labels Y of the support's embeddings Z: by Woodbury's identity a
    system as large as the support, not as the embedding. The logits of a query are `scale z W + shift`. lambda > 0,
    scale and shift are learnt; shift adds the same to all classes, so it only matters to who reads the logits.
    """

    family: ClassVar[str] = "by solving for a linear layer"

    def _make_parameters(self, weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        return {"scale": torch.tensor(10.0), "shift": torch.tensor(0.0), "log_lambda": torch.tensor(0.0)}

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Return the layer that the regression is, scaled and shifted: weight [T, way, features], bias [T, way]."""
        z, stats = self.embed(theta, support.x)
        y = members(support).to(z.dtype)
        z = z * support.mask[..., None]  # rows of zeros, in Z and Y, change no solution
        ridge = theta.params["log_lambda"].exp() * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        weight = theta.params["scale"] * torch.linalg.solve(z @ z.mT + ridge, y).mT @ z
        return Adapted({"weight": weight, "bias": theta.params["shift"].expand(weight.shape[:2])}, stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]."""
        return linear(self.embed_queries(theta, adapted, x), adapted.params["weight"], adapted.params["bias"])
