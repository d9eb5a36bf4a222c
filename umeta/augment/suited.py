"""Which augmentation to take where a config names none."""

from __future__ import annotations

from umeta.augment.drawing import Drawing
from umeta.augment.photo import Photo
from umeta.parts import Augment


def suited(item_shape: tuple[int, ...]) -> Augment:
    """`drawing` for grey images [1, H, W], `photo` for colour."""
    return Drawing() if item_shape[0] == 1 else Photo()
