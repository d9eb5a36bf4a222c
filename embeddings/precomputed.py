"""Vectors computed elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from umeta.data.arrays import load
from umeta.data.images import hash_each
from umeta.errors import UserError
from umeta.parts import Context, Images


@dataclass
class Precomputed:
    """Vectors of your own from a `.npy`, one row per training image in the source's order (files sorted by path).

    They are known for the images they were given with, and for no others: baselines that need vectors of the test
    images are left out.
    """

    path: str
    """the .npy file, [n, d]"""
    _state: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fit(self, images: Images, ctx: Context) -> None:
        """Read the vectors and tie each to its image; raise UserError when their number or shape is off."""
        vectors = np.asarray(load(Path(self.path), "vectors"))
        if vectors.ndim != 2 or len(vectors) != len(images) or not np.issubdtype(vectors.dtype, np.floating):
            raise UserError(
                f"{self.path}: expected floats [{len(images)}, d], one row per training image, "
                f"got {vectors.dtype} {vectors.shape}"
            )
        self._state = {
            "vectors": torch.from_numpy(vectors[images.rows].astype(np.float32)),
            "keys": torch.from_numpy(content_keys(images)),
        }

    def embed(self, images: Images) -> Tensor:
        """[n, d] float32; raise UserError for images whose vectors were not given."""
        known = {key: i for i, key in enumerate(self._state["keys"].tolist())}
        wanted = content_keys(images).tolist()
        if wanted == self._state["keys"].tolist():  # of which two may be alike, with vectors of their own
            return self._state["vectors"]
        missing = sum(key not in known for key in wanted)
        if missing:
            raise UserError(f"embedding precomputed: no vectors for {missing} of {len(wanted)} images in {self.path}")
        return self._state["vectors"][torch.tensor([known[key] for key in wanted])]

    def state_dict(self) -> dict[str, Tensor]:
        return self._state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._state = dict(state)


def content_keys(images: Images) -> np.ndarray:
    """[n] int64 hash of each image's pixels."""
    return np.frombuffer(b"".join(hash_each(images.pixels, size=8)), dtype=np.int64).copy()
