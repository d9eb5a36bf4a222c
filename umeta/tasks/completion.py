"""Tasks that are images, to be completed from a few of their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.data.images import share, to_float
from umeta.errors import UserError
from umeta.runtime.devices import keep, send
from umeta.tasks.points import Points
from umeta.types import EpisodeSpec, TaskSpec


class PixelTasks:
    """Each task is an image: the function from where a pixel is, row and column from -1 to 1, to what it shows.

    As Garnelo et al. 2018 (arXiv 1807.01613, section 4.2). Support and query are different pixels, at random.
    """

    def __init__(self, pixels: np.ndarray | Tensor, device: torch.device | str = "cpu") -> None:
        """pixels: [n, C, H, W] uint8."""
        items = share(pixels) if isinstance(pixels, np.ndarray) else pixels
        self.items, self.device = keep(items, device), device
        self.image: tuple[int, ...] = tuple(items.shape[1:])
        sides = (torch.linspace(-1, 1, side, device=device) for side in self.image[1:])
        self.places = torch.cartesian_prod(*sides)  # [H * W, 2], in the order of the pixels
        self.spec = TaskSpec((2,), "regression", outputs=self.image[0])

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> Points:
        """Return the tasks of these numbers; task i depends on (seed, i) only.

        Raises:
            UserError: an image has too few pixels.
        """
        need = episode.shot + episode.query
        if need > len(self.places):
            raise UserError(f"completion: {need} pixels of each image (shot + query), and it has {len(self.places)}")
        keys = seeds.key(seed, "completion", np.asarray(indices))
        chosen = send(torch.from_numpy(seeds.choose(keys, len(self.places), need)), self.device)
        images = self.draw(indices, seed).flatten(2)
        x, y = self.places[chosen], images.gather(2, chosen[:, None].expand(-1, images.shape[1], -1)).mT
        return Points(x[:, : episode.shot], y[:, : episode.shot], x[:, episode.shot :], y[:, episode.shot :])

    def draw(self, indices: Tensor | np.ndarray, seed: int) -> Tensor:
        """Return the images of the tasks of these numbers: [T, C, H, W] from 0 to 1."""
        which = seeds.below(seeds.key(seeds.key(seed, "completion", np.asarray(indices)), "image"), len(self.items))
        return to_float(send(self.items[send(torch.from_numpy(which), self.items.device)], self.device))

    def to(self, device: torch.device | str) -> PixelTasks:
        """Return the same tasks on a device, with all images there where they fit."""
        return PixelTasks(self.items, device)

    def describe(self, episode: EpisodeSpec) -> list[str]:
        """In numbers."""
        return [
            f"images: {len(self.items)} of {'x'.join(map(str, self.image))}",
            f"pixels of a task: {episode.shot} to adapt to, {episode.query} to be scored on",
        ]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write nothing: the proposer reads the images again where they are needed."""
        return {"kind": "formula"}
