"""Images with their true labels, or attributes, for evaluation and oracles."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from umeta.data.images import Source, Split, UnlabelledImages
from umeta.errors import UserError
from umeta.runtime import artifacts, distributed
from umeta.tasks.partition import PartitionTasks


@dataclass(frozen=True)
class LabelledImages:
    """Unlabelled images, and beside them the labels.

    Where the source has attributes instead of classes, images with the same attributes count as a class here; tasks are
    made of the attributes themselves.
    """

    images: UnlabelledImages
    labels: np.ndarray  # [n] int64, aligned with images
    names: tuple[str, ...]
    attributes: np.ndarray | None = None  # [n, A] bool

    @classmethod
    def load(cls, source: Source, split: Split, images: UnlabelledImages | None = None) -> LabelledImages:
        """Read a split with its labels.

        images: the split without them, where it has been read before.

        Raises:
            UserError: the source has no labels for that split.
        """
        with distributed.take_turns():
            items = source.read(split)
        images = UnlabelledImages.of(items.pixels) if images is None else images
        if items.labels is not None:
            return cls(images, items.labels[images.rows], items.names)
        if items.attributes is None:
            raise UserError(f"data: the {split} split has no labels; give labelled data, such as data.test=DIR")
        attributes = items.attributes[images.rows]
        rows, labels = np.unique(attributes, axis=0, return_inverse=True)
        names = (", ".join(np.array(items.names)[row]) or "none of the attributes" for row in rows)
        return cls(images, labels.reshape(-1), tuple(names), attributes)

    @property
    def fingerprint(self) -> str:
        """Hash of the images and their labels or attributes."""
        told = [self.labels.tolist(), self.names, None if self.attributes is None else self.attributes.tolist()]
        return artifacts.hash_value([self.images.fingerprint, *told])

    def rotated(self) -> LabelledImages:
        """Each class in four rotations, which count as four classes.

        Raises:
            UserError: the images are not square, or have attributes instead of classes.
        """
        if self.attributes is not None:
            raise UserError("evaluate.protocol: rotations make new classes of classes, the data has attributes")
        pixels = self.images.pixels
        if pixels.shape[2] != pixels.shape[3]:
            raise UserError(f"evaluate.protocol: rotations need square images, these are {pixels.shape[2:]}")
        turned = np.concatenate([np.rot90(pixels, turn, (2, 3)) for turn in range(4)])
        rows = np.concatenate([self.images.rows + turn * len(pixels) for turn in range(4)])
        labels = np.concatenate([self.labels + turn * len(self.names) for turn in range(4)])
        names = tuple(f"{name}, turned {90 * turn}" if turn else name for turn in range(4) for name in self.names)
        return LabelledImages(UnlabelledImages(turned, rows), labels, names)

    def tasks(self, items: np.ndarray | None = None, device: str = "cpu") -> PartitionTasks:
        """Tasks on the true classes or attributes, of the images or of vectors [n, d] that stand for them."""
        items = self.images.pixels if items is None else items
        if self.attributes is None:
            return PartitionTasks(items, self.labels[None], self.names, device)
        return PartitionTasks(items, attribute_partitions(self.attributes), ("a pattern", "its complement"), device)


def attribute_partitions(attributes: np.ndarray, order: int = 3) -> np.ndarray:
    """CACTUs' tasks of attributes (Hsu, Levine, Finn 2019, section 4.1), as partitions [P, n] int8.

    One for each `order` of the attributes [n, A] and each pattern of having them or not: class 0 has them as the
    pattern says, class 1 each the other way round, and the remaining images are unused. A pattern and its complement
    are the same two classes, so the last of the attributes is always one that class 0 does not have.
    """
    last = 2**order - 1
    classes = np.full((2 ** (order - 1), last + 1), -1, dtype=np.int8)  # of each pattern and code, a bit an attribute
    for pattern in range(len(classes)):
        classes[pattern, [pattern, last - pattern]] = 0, 1
    weights = 2 ** np.arange(order)
    codes = (attributes[:, chosen] @ weights for chosen in combinations(range(attributes.shape[1]), order))
    return np.concatenate([classes[:, code] for code in codes])
