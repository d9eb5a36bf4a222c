"""Pixels as they are, or PCA-whitened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from umeta.context import RunContext
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError


@dataclass
class Pixels:
    """Raw pixels in [0, 1], or PCA-whitened: leading components at unit variance (Kessy, Lewin, Strimmer 2018)."""

    whiten: Annotated[int, Gt(0)] | None = None
    """principal components to keep; by default the pixels as they are"""
    _state: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fit(self, images: UnlabelledImages, ctx: RunContext) -> None:
        """Finds the components, if asked for; raises UserError when there are fewer than that."""
        if self.whiten is None:
            return
        from sklearn.decomposition import PCA

        flat = flatten(images)
        if self.whiten > min(flat.shape):
            raise UserError(
                f"embedding.whiten: {self.whiten} components need as many images and pixels, got {flat.shape}"
            )
        pca = PCA(self.whiten, whiten=True, svd_solver="covariance_eigh").fit(flat)
        scaled = pca.components_ / np.sqrt(np.maximum(pca.explained_variance_, 1e-8))[:, None]
        # one layout in memory, now and when read from a file: a product's rounding depends on it
        components = torch.from_numpy(np.ascontiguousarray(scaled)).float()
        self._state = {"mean": torch.from_numpy(pca.mean_).float(), "components": components}

    def embed(self, images: UnlabelledImages) -> Tensor:
        """[n, pixels] or [n, whiten] float32."""
        flat = torch.from_numpy(flatten(images))
        return (flat - self._state["mean"]) @ self._state["components"].T if self._state else flat

    def state_dict(self) -> dict[str, Tensor]:
        return self._state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._state = dict(state)


def flatten(images: UnlabelledImages) -> np.ndarray:
    """[n, pixels] float32 in [0, 1]."""
    return images.pixels.reshape(len(images), -1).astype(np.float32) / 255
