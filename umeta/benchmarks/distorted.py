"""Test images unlike those of meta-training: sheared and scaled, all by the same amount."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Distorted:
    """Shears, then scales every image about its centre (for the study of Finn and Levine 2018, arXiv 1710.11622).

    An augmentation without randomness, for `umeta.tasks.instances.Augmented`.
    """

    shear: float = 0.0
    """pixels to the right for each pixel down"""
    scale: float = 1.0
    """size after by size before, above 0"""

    randoms = 0

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """x: [m, C, H, W] in [0, 1]; u: [m, 0]."""
        # where each output pixel looks: the inverse of scale * [[1, shear], [0, 1]]
        looks = x.new_tensor([[1, -self.shear, 0], [0, 1, 0]]) / self.scale
        grid = F.affine_grid(looks.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)
