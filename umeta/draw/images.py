"""Pictures of proposed classes of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from umeta.types import EpisodeSpec, TaskDistribution

if TYPE_CHECKING:
    pass
from umeta.draw.mosaic import mosaic, tile


def proposed(tasks: TaskDistribution, episode: EpisodeSpec, most: int = 12) -> np.ndarray:
    """Items of proposed classes, one class a row, from the first tasks."""
    batch = tasks.sample(np.arange(-(-most // episode.way)), episode=episode, seed=0)
    support, query = batch.support(), batch.query()
    x = torch.cat([support.x, query.x], dim=1).mul(255).byte().cpu().numpy()
    y = torch.cat([support.y, query.y], dim=1).cpu().numpy()
    classes = [x[t][y[t] == label] for t in range(len(x)) for label in range(episode.way)]
    return mosaic([[tile(image) for image in images[:most]] for images in classes[:most]])
