"""Pixels as they are, or normalised and whitened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from umeta.errors import UserError
from umeta.parts import Context, Images


@dataclass
class Pixels:
    """Raw pixels in [0, 1], or whitened by PCA or ZCA (Kessy, Lewin, Strimmer 2018).

    `contrast` and `zca` together are the pixels that CACTUs (Hsu, Levine, Finn 2019) clusters as a baseline, prepared
    as by Coates and Ng (2012).
    """

    whiten: Annotated[int, Gt(0)] | None = None
    """principal components to keep, each at unit variance"""
    contrast: bool = False
    """first bring each image to mean 0 and variance 1"""
    zca: Annotated[float, Gt(0)] | None = None
    """whiten all components, turned back into pixels; this much is added to their variances (0.1 in Coates, Ng 2012)"""
    _state: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.whiten is not None and self.zca is not None:
            raise ValueError("expected whiten (PCA) or zca, not both")

    def fit(self, images: Images, ctx: Context) -> None:
        """Find the components, if asked for; raise UserError when there are fewer than that."""
        flat = self._flat(images)
        if self.zca is not None:
            mean = flat.mean(0)
            variances, axes = np.linalg.eigh(np.cov(flat, rowvar=False))
            scaled = axes / np.sqrt(variances.clip(0) + self.zca) @ axes.T
        elif self.whiten is not None:
            from sklearn.decomposition import PCA

            if self.whiten > min(flat.shape):
                raise UserError(
                    f"embedding.whiten: {self.whiten} components need as many images and pixels, got {flat.shape}"
                )
            pca = PCA(self.whiten, whiten=True, svd_solver="covariance_eigh").fit(flat)
            mean = pca.mean_
            scaled = pca.components_ / np.sqrt(np.maximum(pca.explained_variance_, 1e-8))[:, None]
        else:
            return
        # one layout in memory, now and when read from a file: a product's rounding depends on it
        components = torch.from_numpy(np.ascontiguousarray(scaled)).float()
        self._state = {"mean": torch.from_numpy(mean).float(), "components": components}

    def embed(self, images: Images) -> Tensor:
        """[n, pixels] or [n, whiten] float32."""
        flat = torch.from_numpy(self._flat(images))
        return (flat - self._state["mean"]) @ self._state["components"].T if self._state else flat

    def state_dict(self) -> dict[str, Tensor]:
        return self._state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._state = dict(state)

    def _flat(self, images: Images) -> np.ndarray:
        """[n, pixels] float32."""
        flat = images.pixels.reshape(len(images), -1).astype(np.float32) / 255
        if not self.contrast:
            return flat
        # 10 / 255^2, as Coates and Ng: a blank image stays blank, and its noise small
        return (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + 10 / 255**2)
