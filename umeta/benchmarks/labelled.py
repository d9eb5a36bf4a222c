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

    def tasks(self, items: np.ndarray | None = None, device: str = "cpu") -> PartitionTasks:
        """Tasks on the true classes, of the images or of vectors [n, d] that stand for them."""
        return PartitionTasks(self.images.pixels if items is None else items, self.labels[None], self.names, device)
