"""What this machine can do: the roofline that a meta-step's share is taken of."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F


def matmul(n: int = 2048, dtype: str = "float32") -> Callable[[], None]:
    """Return a product of two n x n matrices: `2 n^3` operations."""
    a, b = (torch.randn(n, n).to(getattr(torch, dtype)) for _ in range(2))

    def run() -> None:
        a @ b

    return run


CONVOLUTION = {"tasks": 8, "images": 5, "filters": 64, "side": 14}


def convolution(tasks: int, images: int, filters: int, side: int, calls: int = 1) -> Callable[[], None]:
    """Return a 3x3 convolution of each task's images with weights of its own: the second layer of Conv4."""
    x = torch.randn(images, tasks * filters, side, side).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(tasks * filters, filters, 3, 3).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def run() -> None:
        for _ in range(calls):
            F.conv2d(x, weight, padding=1, groups=tasks)

    return run


def convolution_flop(tasks: int, images: int, filters: int, side: int, calls: int = 1) -> float:
    return calls * 2 * 9 * filters**2 * side**2 * tasks * images
