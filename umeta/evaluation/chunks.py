"""Test tasks, adapted to some at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from umeta.runtime import distributed
from umeta.types import Adapted, EpisodeSpec, MetaLearner, TaskBatch, TaskDistribution, Theta

CHUNK = 8  # tasks adapted to at a time


def adapt_chunks(
    learner: MetaLearner,
    theta: Theta,
    tasks: TaskDistribution,
    episode: EpisodeSpec,
    count: int,
    seed: int,
    steps: int | None,
) -> Iterator[tuple[TaskBatch, Adapted]]:
    """Adapt to the supports of `count` tasks; give the tasks of each chunk and what was adapted.

    Several processes share the chunks out: each gives its own.
    """
    for start in distributed.shard(range(0, count, CHUNK)):
        with torch.no_grad():
            batch = tasks.sample(np.arange(start, min(start + CHUNK, count)), episode=episode, seed=seed)
            adapted = learner.adapt(theta, batch.support(), steps=steps)
        yield batch, adapted
