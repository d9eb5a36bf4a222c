"""ResNet-9, a small residual network that is quick on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt
from torch import Tensor, nn

from umeta.errors import UserError


@dataclass(frozen=True)
class ResNet9:
    """Four 3x3 convolutions, the second and third followed by a residual pair (the ResNet-9 of DAWNBench, Page 2018).

    The first three halve by max-pooling, before the normalisation; the end is an average over positions. Most of its
    products are on small pictures with many channels, where a processor is fast.
    """

    averages: ClassVar[bool] = True

    filters: list[Annotated[int, Gt(0)]] = field(default_factory=lambda: [32, 64, 128, 256])
    """channels of each of the four"""
    stride: Literal[1, 2] = 1
    """of the first convolution: 2 for pictures that are larger than 40 pixels"""

    def __post_init__(self) -> None:
        if len(self.filters) != 4:
            raise ValueError(f"filters: expected four numbers, got {self.filters}")

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        if len(item_shape) != 3:
            raise UserError(f"ResNet9 takes images [C, H, W], not items of shape {item_shape}")
        least = 8 * self.stride
        if min(item_shape[1:]) < least:
            height, width = item_shape[1:]
            raise UserError(f"model: ResNet9 halves too often for {height}x{width}, resize to {least}")
        a, b, c, d = self.filters
        return nn.Sequential(
            *block(item_shape[0], a, stride=self.stride, halve=True),
            *block(a, b, halve=True),
            Residual(b),
            *block(b, c, halve=True),
            Residual(c),
            *block(c, d),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def block(before: int, after: int, *, stride: int = 1, halve: bool = False) -> list[nn.Module]:
    """Convolution, halving if so, normalisation, ReLU."""
    pool = [nn.MaxPool2d(2)] if halve else []
    return [
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        *pool,
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]


class Residual(nn.Module):
    """Two convolutions of x and x itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.path = nn.Sequential(*(block(channels, channels) + block(channels, channels))[:-1])
        self.end = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.path(x) + x)
