"""A network's features, of which those that vary most count less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor, nn

from umeta.models.check import build_module
from umeta.parts import ModelTraits

POWER = 0.05  # of a variance, that a deviation is divided by; 0.5 is whitening, and 0.25 does harm on land cover


@dataclass(frozen=True)
class Whitened:
    """A network's features, partly whitened (Kessy, Lewin, Strimmer 2018): what varies most counts less.

    What a network that others trained sees in pictures of one kind lies mostly in few directions; less of them gives
    the others a say. `umeta run --backbone` finds mean and components of the pictures at hand and keeps them with the
    weights; elsewhere they change nothing.
    """

    model: Any
    """the network"""
    features: Annotated[int, Gt(0)]
    """how many numbers it gives"""

    @property
    def pretrained(self) -> str:
        """What the network's weights were learnt from."""
        return ModelTraits.of(self.model).pretrained

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        """Build the network, with a mean of zero and components as they are."""
        return Straightened(build_module(self.model, item_shape), torch.zeros(self.features), torch.eye(self.features))


class Straightened(nn.Module):
    """A network's features [n, d], less a mean [d], times a matrix [d, d]."""

    def __init__(self, net: nn.Module, mean: Tensor, directions: Tensor) -> None:
        super().__init__()
        self.net = net
        self.mean, self.directions = (nn.Parameter(value, requires_grad=False) for value in (mean, directions))

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x).flatten(1) - self.mean) @ self.directions


def find_whitening(z: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the mean [d] of vectors [n, d], and what takes a part of the larger ones of their variances away: [d, d].

    A standard deviation s becomes `s / (s^2 + m)^POWER`, m the mean variance, so that directions without any, as where
    n < d, stay small.
    """
    mean = z.mean(0, dtype=np.float64)
    apart = z - mean
    variances, components = np.linalg.eigh(apart.T @ apart / len(z))
    scale = (variances.clip(min=0) + max(variances.mean(), 1e-12)) ** -POWER
    return torch.from_numpy(mean).float(), torch.from_numpy(components * scale).float()
