"""Tasks from partitions: whatever divides items into classes (clusters, true labels) gives N-way K-shot tasks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.data.images import share, to_float, to_pixels
from umeta.errors import UserError
from umeta.parts import Images
from umeta.runtime import artifacts
from umeta.runtime.devices import keep, send
from umeta.types import Act, Batch, EpisodeSpec, TaskSpec


@dataclass(frozen=True)
class Episodes:
    """T sampled tasks as item numbers, and the items they point to."""

    items: Tensor  # [n, *item_shape] uint8 or float
    support_index: Tensor  # [T, way * shot] int64
    support_label: Tensor  # [T, way * shot] int64
    query_index: Tensor  # [T, way * query]
    query_label: Tensor
    way: int
    device: torch.device | str  # where batches are wanted

    def support(self, act: Act | None = None, round: int = 0) -> Batch:
        return self._batch(self.support_index, self.support_label)

    def query(self, act: Act | None = None) -> Batch:
        return self._batch(self.query_index, self.query_label)

    def _batch(self, index: Tensor, label: Tensor) -> Batch:
        # `items[index]` takes ten to twenty times as long
        x = self.items.index_select(0, send(index.flatten(), self.items.device))
        x = to_float(send(x, self.device).view(*index.shape, *self.items.shape[1:]))
        label = send(label, self.device)
        return Batch(x, label, torch.ones_like(label, dtype=torch.bool), self.way)


class PartitionTasks:
    """CACTUs' task construction (Hsu, Levine, Finn 2019, algorithm 1) over any partitions of any items.

    A task takes a partition uniformly, `way` of its classes without replacement, and `shot + query` items of each
    without replacement; label ids and the order of the queries are random. Classes with fewer items are never drawn,
    and partitions with fewer than `way` large enough classes are passed over.
    """

    def __init__(
        self,
        items: Tensor | np.ndarray,
        partitions: np.ndarray,
        names: Sequence[str] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        """items: [n, *item_shape], uint8 pixels or floats; partitions: [P, n] integers, -1 where an item is unused.

        Raises:
            UserError: the partitions are not of these items, or no integers.
        """
        partitions = np.atleast_2d(partitions)
        if partitions.dtype.kind not in "iub":
            raise UserError(f"partitions: expected integers, got {partitions.dtype}; see PartitionTasks.of_classes")
        if partitions.shape[1] != len(items):
            raise UserError(f"partitions of {partitions.shape[1]} items cannot belong to data of {len(items)} items")
        self.items, self.device = keep(share(items) if isinstance(items, np.ndarray) else items, device), device
        self.partitions, self.names = partitions, names
        self.spec = TaskSpec(tuple(items.shape[1:]))
        # Items of a partition sorted by class; class c of partition p begins at starts[p, c] and has sizes[p, c] items.
        # Classes without a name are counted from 0 in the order of their numbers, which may be any.
        self.order = np.empty(partitions.shape, np.int32)
        for row, order in zip(partitions, self.order, strict=True):  # one at a time: argsort's own are twice as large
            order[:] = np.argsort(row, kind="stable")
        used = [row[row >= 0] for row in partitions]
        if len(names):
            counted = [np.bincount(row, minlength=len(names)) for row in used]
        else:
            counted = [np.unique(row, return_counts=True)[1] for row in used]
        self.sizes = np.zeros((len(used), max(map(len, counted), default=0)), np.int64)
        for sizes, found in zip(self.sizes, counted, strict=True):
            sizes[: len(found)] = found
        unused = (partitions < 0).sum(1)
        self.starts = unused[:, None] + np.cumsum(self.sizes, axis=1) - self.sizes
        self._usable: dict[tuple[int, int], tuple[np.ndarray, ...]] = {}

    @classmethod
    def of_classes(cls, images: np.ndarray, labels: Any) -> PartitionTasks:
        """Tasks on the true classes, for evaluation: images in any layout of `UnlabelledImages.of`, labels [n].

        Raises:
            UserError: no images, or not a label for each.
        """
        names, index = np.unique(np.asarray(labels), return_inverse=True)
        return cls(to_pixels(images), index.reshape(1, -1), [str(name) for name in names])

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> Episodes:
        """Return the tasks of these numbers; task i depends on (seed, i) only.

        Raises:
            UserError: no partition has `way` classes with `shot + query` items.
        """
        need = episode.shot + episode.query
        partitions, counts, classes = self._large_enough(episode.way, need)
        keys = seeds.key(seed, "task", np.asarray(indices))
        drawn = seeds.below(seeds.key(keys, "partition"), len(partitions))
        partition = partitions[drawn]  # [T]
        pick = seeds.choose(seeds.key(keys, "classes"), counts[drawn], episode.way)
        chosen = classes[drawn[:, None], pick]  # [T, way] in random order: position is label id
        sizes = self.sizes[partition[:, None], chosen]
        member = seeds.choose(seeds.key(keys[:, None], "items", range(episode.way)), sizes, need)  # [T, way, need]
        item = self.order[partition[:, None, None], self.starts[partition[:, None], chosen][..., None] + member]
        query_item = item[..., episode.shot :].reshape(len(keys), -1)  # class after class, which the shuffle undoes
        shuffle = np.argsort(seeds.key(keys[:, None], "order", range(query_item.shape[1])), axis=1)
        support_label = np.repeat(np.arange(episode.way), episode.shot)
        return Episodes(
            self.items,
            _tensor(item[..., : episode.shot].reshape(len(keys), -1)),
            _tensor(np.broadcast_to(support_label, (len(keys), len(support_label)))),
            _tensor(query_item[np.arange(len(keys))[:, None], shuffle]),
            _tensor(shuffle // episode.query),
            episode.way,
            self.device,
        )

    def to(self, device: torch.device | str) -> PartitionTasks:
        """Return the same tasks on a device, with all items there where they fit."""
        moved = copy.copy(self)
        moved.items, moved.device = keep(self.items, device), device
        return moved

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers: partitions, their large enough clusters, and how many items are in use."""
        need = episode.shot + episode.query
        usable = self.usable(episode.way, need)
        low, middle, high = np.percentile(self.sizes[self.sizes > 0], [0, 50, 100])
        able = int((usable >= episode.way).sum())
        return [
            f"partitions: {len(self.partitions)}, {able} of them can give {episode} tasks",
            f"clusters with at least {need} items (shot + query): {usable.mean():.1f} a partition on average, "
            f"{usable.min()} to {usable.max()}",
            f"items a kept cluster: {low:.0f} to {high:.0f}, median {middle:.0f}",
            f"share of the {self.partitions.shape[1]} items in a kept cluster: {(self.partitions >= 0).mean():.1%}",
        ]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the partitions as `name`.npy; the items are the data's."""
        artifacts.write_array(folder / f"{name}.npy", self.partitions)
        return {"kind": "partitions", "file": f"{name}.npy"}

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path, source: Images, parts: list[Any]) -> PartitionTasks:
        """Load what `save` described, on the images it was saved for."""
        return cls(source.pixels, artifacts.read_array(folder / description["file"]))

    def usable(self, way: int, need: int) -> np.ndarray:
        """How many classes of each partition have `need` items: [P]; those below `way` cannot give a task."""
        return (self.sizes >= need).sum(1)

    def _large_enough(self, way: int, need: int) -> tuple[np.ndarray, ...]:
        """Usable partitions [U], how many classes each offers [U], and which: [U, most] padded at the end."""
        if (way, need) not in self._usable:
            counts = self.usable(way, need)
            partitions = np.flatnonzero(counts >= way)
            if not len(partitions):
                raise UserError(self._too_few(way, need))
            # stable sort puts the large enough classes first, in order
            classes = np.argsort(self.sizes[partitions] < need, axis=1, kind="stable")[:, : counts[partitions].max()]
            self._usable[way, need] = partitions, counts[partitions], classes
        return self._usable[way, need]

    def _too_few(self, way: int, need: int) -> str:
        counts = self.usable(way, need)
        best = int(counts.argmax())
        sizes = self.sizes[best]
        present = np.flatnonzero(sizes)
        small = [c for c in present[np.argsort(-sizes[present], kind="stable")] if sizes[c] < need][:3]
        listed = ", ".join(f"'{self.names[c] if len(self.names) else f'cluster {c}'}' has {sizes[c]}" for c in small)
        return (
            f"{way}-way tasks with {need} items a class (shot + query) need {way} such classes, but "
            f"{'the best of the partitions has' if len(counts) > 1 else 'there are'} {counts[best]} of "
            f"{len(present)}" + (f" ({listed})" if listed else "") + "; lower way, shot or query"
        )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.int64, order="C"))
