"""A plain network of fully connected layers, for vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Gt
from torch import nn


@dataclass(frozen=True)
class MLP:
    """Fully connected layers with a nonlinearity after each (2 x 100 in MAML for RL, Finn, Abbeel, Levine 2017)."""

    hidden: list[Annotated[int, Gt(0)]] = field(default_factory=lambda: [100, 100])
    """width of each layer"""
    activation: Literal["tanh", "relu"] = "tanh"
    """the nonlinearity"""

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        widths = [math.prod(item_shape), *self.hidden]
        nonlinear = {"tanh": nn.Tanh, "relu": nn.ReLU}[self.activation]
        layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nonlinear())]
        return nn.Sequential(nn.Flatten(), *layers)
