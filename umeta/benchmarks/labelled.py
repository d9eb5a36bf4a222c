"""Images with their true labels, for evaluation and oracles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from umeta.data.images import Source, Split, UnlabelledImages
from umeta.errors import UserError
from umeta.tasks.partition import PartitionTasks


@dataclass(frozen=True)
class LabelledImages:
    """Unlabelled images, and beside them the labels."""

    images: UnlabelledImages
    labels: np.ndarray  # [n] int64, aligned with images
    names: tuple[str, ...]

    @classmethod
    def load(cls, source: Source, split: Split) -> LabelledImages:
        """Raises UserError when the source has no labels for that split."""
        items = source.read(split)
        if items.labels is None:
            raise UserError(f"data: the {split} split has no labels; give labelled data, such as data.test=DIR")
        images = UnlabelledImages.of(items.pixels)
        return cls(images, items.labels[images.rows], items.names)

    def rotated(self) -> LabelledImages:
        """Each class in four rotations, which count as four classes.

        Raises:
            UserError: the images are not square.
        """
        pixels = self.images.pixels
        if pixels.shape[2] != pixels.shape[3]:
            raise UserError(f"evaluate.protocol: rotations need square images, these are {pixels.shape[2:]}")
        turned = np.concatenate([np.rot90(pixels, turn, (2, 3)) for turn in range(4)])
        rows = np.concatenate([self.images.rows + turn * len(pixels) for turn in range(4)])
        labels = np.concatenate([self.labels + turn * len(self.names) for turn in range(4)])
        names = tuple(f"{name}, turned {90 * turn}" if turn else name for turn in range(4) for name in self.names)
        return LabelledImages(UnlabelledImages(turned, rows), labels, names)

    def tasks(self, items: np.ndarray | None = None, device: str = "cpu") -> PartitionTasks:
        """Tasks on the true classes, of the images or of vectors [n, d] that stand for them."""
        return PartitionTasks(self.images.pixels if items is None else items, self.labels[None], self.names, device)
