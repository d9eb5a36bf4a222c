"""A network's features, of which those that all pictures share count less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor, nn

from umeta.models.check import build_module
from umeta.parts import ModelTraits


@dataclass(frozen=True)
class Whitened:
    """A network's features less their mean, their principal components divided by the root of their deviation.

    What a network that others trained sees in pictures of one kind lies mostly in few directions; half of a whitening
    (Kessy, Lewin, Strimmer 2018) gives the others a say. `umeta run --backbone` finds mean and components of the
    pictures at hand and keeps them with the weights; elsewhere they change nothing.
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


def half_whitening(z: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the mean [d] of vectors [n, d], and what makes their variances v be about the root of v: [d, d].

    A mean variance is added to each before, so that directions without any, as where n < d, stay small.
    """
    mean = z.mean(0, dtype=np.float64)
    variances, components = np.linalg.eigh(np.cov(z - mean, rowvar=False, bias=True))
    scale = (variances.clip(min=0) + max(variances.mean(), 1e-12)) ** -0.25
    return torch.from_numpy(mean).float(), torch.from_numpy(components * scale).float()
