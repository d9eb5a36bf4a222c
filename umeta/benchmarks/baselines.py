"""What a learner has to beat: the same test tasks, answered without meta-learning."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from umeta.metalearners.maml import MAML
from umeta.tasks.partition import PartitionTasks
from umeta.types import EpisodeSpec, Model


def nearest_neighbour(tasks: PartitionTasks, episode: EpisodeSpec, count: int, seed: int) -> np.ndarray:
    """1-nearest neighbour (Euclidean) in the items' own space. Returns accuracy per task [count]."""
    batch = tasks.sample(np.arange(count), episode=episode, seed=seed)
    right = []
    for i in range(count):
        support = batch.items[batch.support_index[i]].float().flatten(1)
        query = batch.items[batch.query_index[i]].float().flatten(1)
        nearest = torch.cdist(query, support).argmin(1)
        right.append((batch.support_label[i][nearest] == batch.query_label[i]).float().mean().item())
    return np.array(right)


def linear(tasks: PartitionTasks, episode: EpisodeSpec, count: int, seed: int) -> np.ndarray:
    """Logistic regression with L2 penalty, C = 1, on the items' vectors (CACTUs' baseline). Returns [count]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    batch = tasks.sample(np.arange(count), episode=episode, seed=seed)
    items = batch.items.numpy().reshape(len(batch.items), -1)
    right = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for i in range(count):
            model = LogisticRegression(C=1.0, max_iter=200)
            model.fit(items[batch.support_index[i]], batch.support_label[i])
            right.append(model.score(items[batch.query_index[i]], batch.query_label[i]))
    return np.array(right)


def from_scratch(model: Model, lr: float, steps: int) -> MAML:
    """Gradient descent on the support alone, from random weights: MAML that never meta-trained.

    lr: for a loss `way` times the mean, as CACTUs' (Hsu et al. 2019) 0.1 is.
    """
    return MAML(model, inner_lr=lr, steps=steps, scale_by_way=True, head="fixed", normalisation="support")
