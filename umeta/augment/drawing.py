"""Another hand drawing the same thing: for line drawings, bright ink on a dark ground."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

FIELD = 5  # nodes a side of the elastic field


@dataclass(frozen=True)
class Drawing:
    """Affine and elastic distortion (Simard, Steinkraus, Platt 2003) and a change of stroke width."""

    rotate: Annotated[float, Ge(0)] = 30.0
    """largest rotation either way, degrees"""
    shear: Annotated[float, Ge(0)] = 0.4
    """largest horizontal shear either way"""
    scale: Annotated[float, Ge(0)] = 0.35
    """largest change of the logarithm of width and of height"""
    shift: Annotated[float, Ge(0)] = 0.2
    """largest shift either way, in half widths"""
    elastic: Annotated[float, Ge(0)] = 0.12
    """standard deviation of the elastic displacement, in half widths"""
    stroke: Annotated[float, Ge(0)] = 0.6
    """largest share of the way to a stroke one pixel wider, or narrower, on each side"""

    @property
    def randoms(self) -> int:
        """Uniform numbers a view needs."""
        return 7 + 2 * FIELD * FIELD

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """x: [m, C, H, W] in [0, 1]; u: [m, randoms] in [0, 1)."""
        a, b, c, d, e, f, g = (2 * u[:, :7] - 1).T
        cos, sin = torch.cos(a * math.radians(self.rotate)), torch.sin(a * math.radians(self.rotate))
        wide, high = torch.exp(b * self.scale), torch.exp(c * self.scale)
        slant = d * self.shear
        # rotation @ [[1, slant], [0, 1]] @ diag(wide, high), and the shift: where each output pixel looks
        rows = [
            torch.stack([cos * wide, (cos * slant - sin) * high, e * self.shift], dim=1),
            torch.stack([sin * wide, (sin * slant + cos) * high, f * self.shift], dim=1),
        ]
        grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
        normal = torch.erfinv((2 * u[:, 7:] - 1).clamp(-0.9999, 0.9999)) * 2**0.5
        field = normal.view(-1, 2, FIELD, FIELD) * self.elastic
        field = F.interpolate(field, x.shape[-2:], mode="bicubic", align_corners=True)
        x = F.grid_sample(x, grid + field.permute(0, 2, 3, 1), align_corners=False)
        thick, thin = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
        by = (g * self.stroke).view(-1, 1, 1, 1)
        return torch.lerp(x, torch.where(by > 0, thick, thin), by.abs())
