"""Tasks in which every image is a class of its own, told apart through augmentation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.config import registry
from umeta.errors import UserError
from umeta.parts import Augment, Images
from umeta.runtime.devices import keep, send
from umeta.tasks._wrapped import WrappedTasks
from umeta.tasks.partition import Episodes
from umeta.types import Act, Batch, EpisodeSpec, TaskBatch, TaskSpec


class InstanceTasks:
    """Each class is one image (UMTRA, Khodadadeh, Bölöni, Shah 2019): support and query show it again and again.

    Only augmentation makes such a task worth solving, see `Augmented`.
    """

    def __init__(self, pixels: np.ndarray | Tensor, device: torch.device | str = "cpu") -> None:
        """pixels: [n, C, H, W] uint8."""
        self.items, self.device = keep(torch.as_tensor(pixels), device), device
        self.spec = TaskSpec(tuple(self.items.shape[1:]))

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> Episodes:
        """Return the tasks of these numbers; task i depends on (seed, i) only.

        Raises:
            UserError: there are too few images.
        """
        if len(self.items) < episode.way:
            raise UserError(f"{episode.way}-way tasks need as many images, there are {len(self.items)}; lower way")
        keys = seeds.key(seed, "instances", np.asarray(indices))
        image = torch.from_numpy(seeds.choose(keys, len(self.items), episode.way))
        label = torch.arange(episode.way).expand_as(image)
        shot, query = episode.shot, episode.query
        # All queries of a class show the same image, so their order tells nothing that shuffling could hide.
        return Episodes(
            self.items,
            image.repeat_interleave(shot, 1),
            label.repeat_interleave(shot, 1),
            image.repeat_interleave(query, 1),
            label.repeat_interleave(query, 1),
            episode.way,
            self.device,
        )

    def to(self, device: torch.device | str) -> InstanceTasks:
        """Return the same tasks on a device, with all images there where they fit."""
        return InstanceTasks(self.items, device)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        return [f"classes: {len(self.items)}, each a single image"]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write nothing: the images say it all."""
        return {"kind": "instances"}

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path, source: Images, parts: list[Any]) -> InstanceTasks:
        """Make the tasks of the images again."""
        return cls(source.pixels)


@dataclass(frozen=True)
class Views:
    """T tasks whose items are seen through an augmentation."""

    tasks: TaskBatch
    augment: Augment
    keys: np.ndarray  # [T] uint64

    def support(self, act: Act | None = None, round: int = 0) -> Batch:
        return self._augmented(self.tasks.support(act, round), "support")

    def query(self, act: Act | None = None) -> Batch:
        return self._augmented(self.tasks.query(act), "query")

    def _augmented(self, batch: Batch, role: str) -> Batch:
        count = batch.x.shape[1]
        keys = seeds.key(self.keys[:, None], role, np.arange(count * self.augment.randoms))
        u = send(torch.from_numpy(seeds.uniform(keys)), batch.x.device)
        x = self.augment(batch.x.flatten(0, 1), u.view(len(u) * count, self.augment.randoms))
        return replace(batch, x=x.unflatten(0, batch.x.shape[:2]))


@dataclass(frozen=True)
class Augmented(WrappedTasks):
    """Any task distribution, each item of it an augmented view of its own."""

    augment: Augment

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> Views:
        """Return the tasks of these numbers; task i and its views depend on (seed, i) only."""
        keys = seeds.key(seed, "views", np.asarray(indices))
        return Views(self.tasks.sample(indices, episode=episode, seed=seed), self.augment, keys)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        return [*self.tasks.describe(episode), f"views: {self.augment}"]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the tasks; the augmentation is its name and options."""
        options: Any = self.augment
        augment = {"name": registry.name_of("augment", options), **asdict(options)}
        return {"kind": "augmented", "augment": augment, "of": self.tasks.save(folder, name)}

    @classmethod
    def load(cls, description: dict[str, Any], folder: Path, source: Images, parts: list[Any]) -> Augmented:
        """Load what `save` described, of the tasks that were loaded already."""
        return cls(parts[0], registry.build_part("augment", description["augment"]))
