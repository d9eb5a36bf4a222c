"""ResNet-12, the deeper network of few-shot learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Gt
from torch import Tensor, nn

from umeta.errors import UserError


@dataclass(frozen=True)
class ResNet12:
    """Four residual blocks of three 3x3 convolutions each (TADAM, Oreshkin et al. 2018; MetaOptNet, Lee et al. 2019).

    Each block adds a 1x1 convolution of its input, and halves by max-pooling; the end is an average over positions.
    Filters are those of MetaOptNet, whose DropBlock is left out: a network here is a function of weights and input.
    """

    averages: ClassVar[bool] = True

    filters: list[Annotated[int, Gt(0)]] = field(default_factory=lambda: [64, 160, 320, 640])
    """channels of each block"""

    def __post_init__(self) -> None:
        if len(self.filters) != 4:
            raise ValueError(f"filters: expected four numbers, got {self.filters}")

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        if len(item_shape) != 3:
            raise UserError(f"ResNet12 takes images [C, H, W], not items of shape {item_shape}")
        if min(item_shape[1:]) < 16:
            raise UserError(
                f"model: ResNet12 halves 4 times: {item_shape[1]}x{item_shape[2]} is too small, resize to 16"
            )
        channels = [item_shape[0], *self.filters]
        blocks = [Block(channels[i], channels[i + 1]) for i in range(4)]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Block(nn.Module):
    """Half the size of x, with other channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (before, after, after):
            layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.1)]
        self.path = nn.Sequential(*layers[:-1])  # the last activation comes after the sum
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
        self.end = nn.Sequential(nn.LeakyReLU(0.1), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.path(x) + self.shortcut(x))
