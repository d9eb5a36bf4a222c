"""No network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Vectors:
    """Items as they are, as vectors: for features that a network has computed before (no network, 2026)."""

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        """Build what does nothing."""
        return nn.Flatten()
