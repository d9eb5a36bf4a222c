"""Test tasks with more queries of one class than of another, as they come in practice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from umeta import seeds
from umeta.errors import UserError
from umeta.tasks.partition import Episodes, PartitionTasks
from umeta.types import EpisodeSpec


class Unbalanced(PartitionTasks):
    """Tasks with as many queries as those they are made of, which the classes have unequal shares in.

    They are of a Dirichlet distribution with the same concentration for each class (Veilleux, Boudiaf, Piantanida,
    Ben Ayed 2021, arXiv 2204.11181, section 3); the lower it is, the more unequal they are.
    """

    def __init__(self, tasks: PartitionTasks, concentration: float) -> None:
        vars(self).update(vars(tasks))
        self.concentration = concentration

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> Episodes:
        """Return the tasks of these numbers; task i depends on (seed, i) only.

        Raises:
            UserError: too few items, as all queries of a task may be of one class.
        """
        total = episode.way * episode.query
        try:
            batch = super().sample(indices, episode=replace(episode, query=total), seed=seed)
        except UserError as error:
            raise UserError(f"evaluate.dirichlet: all {total} queries may be of one class: {error}") from error
        keys = seeds.key(seed, "shares", np.asarray(indices)[:, None], range(episode.way))
        counts = torch.from_numpy(draw_counts(keys, self.concentration, total))
        rank = F.one_hot(batch.query_label, episode.way).cumsum(1).gather(2, batch.query_label[..., None])[..., 0]
        kept = rank <= counts.gather(1, batch.query_label)
        index, label = (value[kept].unflatten(0, (-1, total)) for value in (batch.query_index, batch.query_label))
        return replace(batch, query_index=index, query_label=label)


def draw_counts(keys: np.ndarray, concentration: float, total: int) -> np.ndarray:
    """Deal `total` out by shares of a Dirichlet distribution, one for each key [T, way]: [T, way] int64.

    What rounding down leaves goes to the largest remainders.
    """
    from scipy.special import gammaincinv

    quantile = seeds.uniform(keys).astype(float) + 2**-25
    drawn = gammaincinv(concentration, quantile)  # gamma variables
    exact = total * drawn / drawn.sum(1, keepdims=True)
    counts = np.floor(exact).astype(np.int64)
    rank = np.argsort(np.argsort(counts - exact, axis=1), axis=1)
    return counts + (rank < total - counts.sum(1, keepdims=True))
