"""Several networks side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from umeta.models.check import build_module
from umeta.parts import ModelTraits


@dataclass(frozen=True)
class Joint:
    """The features of several networks side by side, so that their cosines add up (an ensemble, 2026)."""

    models: list[Any]
    """the networks"""
    weights: list[Annotated[float, Gt(0)]]
    """how much the cosine of each counts"""

    def __post_init__(self) -> None:
        if not self.models or len(self.models) != len(self.weights):
            raise ValueError(f"expected a weight for each network, got {len(self.weights)} for {len(self.models)}")

    @property
    def pretrained(self) -> str:
        """What the networks' weights were learnt from."""
        found = [ModelTraits.of(model).pretrained for model in self.models]
        return ", ".join(dict.fromkeys(one for one in found if one))

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        """Build the networks."""
        return SideBySide([build_module(model, item_shape) for model in self.models], self.weights)


class SideBySide(nn.Module):
    """Features of networks, each of length 1 times the root of its weight, one after the other."""

    def __init__(self, nets: list[nn.Module], weights: list[float]) -> None:
        super().__init__()
        self.nets, self.roots = nn.ModuleList(nets), [weight**0.5 for weight in weights]

    def forward(self, x: Tensor) -> Tensor:
        found = [root * F.normalize(net(x).flatten(1)) for net, root in zip(self.nets, self.roots, strict=True)]
        return torch.cat(found, 1)
