"""Conv4, the four-block network of few-shot learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from torch import nn

from umeta.errors import UserError


@dataclass(frozen=True)
class Conv4:
    """Four blocks of 3x3 convolution, normalisation, ReLU, halving (Vinyals et al. 2016; MAML, Finn et al. 2017).

    `pool` halves by max-pooling and flattens (64 features for 28x28 and 64 filters); `stride` halves by striding and
    averages over positions, as MAML and CACTUs do for Omniglot. `pool_first` is `pool` before the normalisation, which
    then works on a quarter of the elements: another function, as accurate, and faster.
    """

    filters: Annotated[int, Gt(0)] | list[Annotated[int, Gt(0)]] = 64
    """channels of each block, one number for all or four"""
    down: Literal["pool", "pool_first", "stride"] = "pool"
    """how a block halves the picture"""
    halvings: Annotated[int, Ge(1), Le(4)] = 4
    """how many of the blocks halve, the first ones: 3 leaves 3x3 positions of a 28x28 picture, 9 times the features"""

    @property
    def averages(self) -> bool:
        """Whether features are means over all places."""
        return self.down == "stride"

    def __post_init__(self) -> None:
        if isinstance(self.filters, list) and len(self.filters) != 4:
            raise ValueError(f"filters: expected one number or four, got {self.filters}")

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        if len(item_shape) != 3:
            raise UserError(f"Conv4 takes images [C, H, W], not items of shape {item_shape}")
        height, width = item_shape[1:]
        pools = self.down != "stride"
        if pools and min(height, width) < 2**self.halvings:
            least = 2**self.halvings
            raise UserError(
                f"model: Conv4 halves {self.halvings} times: {height}x{width} is too small, resize to {least}"
            )
        blocks: list[nn.Module] = []
        channels = item_shape[0]
        filters = self.filters if isinstance(self.filters, list) else [self.filters] * 4
        for block, width in enumerate(filters):
            # No bias: normalisation would subtract it. Pooling before the ReLU is the same function (both are
            # monotone) on a quarter of the elements.
            halves = block < self.halvings
            stride = 1 if pools or not halves else 2
            rest = [nn.BatchNorm2d(width), *([nn.MaxPool2d(2)] if pools and halves else [])]
            blocks.append(nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False))
            blocks += [*(rest[::-1] if self.down == "pool_first" else rest), nn.ReLU()]
            channels = width
        if not pools:
            blocks.append(nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(*blocks, nn.Flatten())
