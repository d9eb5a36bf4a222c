"""Pictures of proposed classes of images."""

from __future__ import annotations

import numpy as np
import torch

from umeta.draw.mosaic import mosaic, tile
from umeta.types import EpisodeSpec, TaskDistribution

SHOWN = 12  # classes, and items of each


def draw_tasks(tasks: TaskDistribution, episode: EpisodeSpec) -> np.ndarray:
    """Draw items of proposed classes, one class a row, from the first tasks: [H, W, 3] uint8."""
    batch = tasks.sample(np.arange(-(-SHOWN // episode.way)), episode=episode, seed=0)
    support, query = batch.support(), batch.query()
    x = torch.cat([support.x, query.x], dim=1).mul(255).byte().cpu().numpy()
    y = torch.cat([support.y, query.y], dim=1).cpu().numpy()
    classes = [x[t][y[t] == label] for t in range(len(x)) for label in range(episode.way)]
    return mosaic([[tile(image) for image in images[:SHOWN]] for images in classes[:SHOWN]])
