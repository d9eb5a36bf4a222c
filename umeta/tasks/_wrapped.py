"""What task distributions that change the tasks of another have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from umeta.types import TaskDistribution, TaskSpec


@dataclass(frozen=True)
class WrappedTasks:
    """Tasks of another distribution, with something done to them."""

    tasks: TaskDistribution

    @property
    def spec(self) -> TaskSpec:
        return self.tasks.spec

    def to(self, device: torch.device | str) -> Self:
        """Return the same tasks with their images on a device."""
        return replace(self, tasks=self.tasks.to(device))


def is_square(spec: TaskSpec) -> bool:
    """Tell whether items are images as high as wide, which can be turned."""
    return len(spec.item_shape) == 3 and spec.item_shape[1] == spec.item_shape[2]


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Turn square images [..., C, H, H] by 0 to 3 quarter turns, which broadcast against them."""
    turned = x
    for quarter in (1, 2, 3):  # all of them, as a GPU would be waited for to count some
        turned = torch.where(turns == quarter, x.rot90(quarter, (-2, -1)), turned)
    return turned
