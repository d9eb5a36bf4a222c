"""What a learner has to beat: the same test tasks, answered without meta-learning."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from umeta import seeds
from umeta.metalearners.maml import MAML
from umeta.parts import Model
from umeta.runtime import distributed
from umeta.tasks.clustering import kmeans
from umeta.tasks.partition import PartitionTasks
from umeta.types import EpisodeSpec


def nearest_neighbour(tasks: PartitionTasks, episode: EpisodeSpec, count: int, seed: int) -> np.ndarray:
    """1-nearest neighbour (Euclidean) in the items' own space. Returns accuracy per task [count]."""
    batch = tasks.sample(np.arange(count), episode=episode, seed=seed)
    right = []
    for i in distributed.shard(range(count)):
        support = batch.items[batch.support_index[i]].float().flatten(1)
        query = batch.items[batch.query_index[i]].float().flatten(1)
        nearest = torch.cdist(query, support).argmin(1)
        right.append((batch.support_label[i][nearest] == batch.query_label[i]).float().mean().item())
    return np.array(distributed.gather(right))


def linear(tasks: PartitionTasks, episode: EpisodeSpec, count: int, seed: int, c: float = 1.0) -> np.ndarray:
    """Logistic regression with L2 penalty on the items' vectors, with C = 1 CACTUs' baseline. Returns [count]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    batch = tasks.sample(np.arange(count), episode=episode, seed=seed)
    items = batch.items.numpy().reshape(len(batch.items), -1)
    right = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for i in distributed.shard(range(count)):
            model = LogisticRegression(C=c, max_iter=200)
            model.fit(items[batch.support_index[i]], batch.support_label[i].numpy())
            right.append(model.score(items[batch.query_index[i]], batch.query_label[i].numpy()))
    return np.array(distributed.gather(right))


def mlp(tasks: PartitionTasks, episode: EpisodeSpec, count: int, seed: int) -> np.ndarray:
    """Classify by a hidden layer of 128 ReLUs with dropout of one half on the items' vectors (CACTUs): [count].

    60 steps of Adam on the support alone, always: CACTUs stops early on the query set, which is a leak. Vectors are
    brought to mean 0 and variance 1 over the support and its dimensions together, so that one step size suits any.
    """
    hidden, steps, chunk = 128, 60, 8
    batch = tasks.sample(np.arange(count), episode=episode, seed=seed)
    items = batch.items.float().flatten(1)
    right = []
    # tasks at a time, so that their weights stay in the processor's cache
    for start in distributed.shard(range(0, count, chunk)):
        chosen = slice(start, start + chunk)
        support, query = items[batch.support_index[chosen]], items[batch.query_index[chosen]]  # [T, N, d]
        label = batch.support_label[chosen]
        mean = support.mean(1, keepdim=True)
        scale = (support - mean).square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-8)
        support, query = (support - mean) / scale, (query - mean) / scale
        draw = seeds.generator(seed, "mlp", start)
        sizes = [(support.shape[2], hidden), (hidden, episode.way)]
        weights = [torch.randn(len(label), *size, generator=draw) * (2 / size[0]) ** 0.5 for size in sizes]
        biases = [torch.zeros(len(label), 1, size[1]) for size in sizes]
        parameters = [value.requires_grad_() for value in (*weights, *biases)]
        optimiser = torch.optim.Adam(parameters, lr=1e-2, fused=True)
        for _ in range(steps):
            active = torch.baddbmm(biases[0], support, weights[0]).relu()
            active = active * (torch.rand(active.shape, generator=draw) < 0.5) * 2
            logits = torch.baddbmm(biases[1], active, weights[1])
            # tasks do not interact, so that each gets the gradient of its own mean
            loss = cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="sum") / label.shape[1]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            logits = torch.baddbmm(biases[1], torch.baddbmm(biases[0], query, weights[0]).relu(), weights[1])
        right.append((logits.argmax(-1) == batch.query_label[chosen]).float().mean(1))
    return torch.cat(distributed.gather(right)).numpy()


def centroids(training: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return the means [at most k, d] of k-means clusters of the training images' vectors [n, d]."""
    labels, _ = kmeans(training, k, 20, seed)
    sums = np.zeros((k, training.shape[1]))
    np.add.at(sums, labels, training)
    sizes = np.bincount(labels, minlength=k)
    return (sums[sizes > 0] / sizes[sizes > 0, None]).astype(np.float32)


def cluster_matching(
    tasks: PartitionTasks, means: np.ndarray, episode: EpisodeSpec, count: int, seed: int
) -> np.ndarray:
    """CACTUs' baseline without any learning: clusters of the training images, named by the support. Returns [count].

    The cluster of a support example gets the label that most of the support examples in it have; a query gets the
    label of the nearest cluster that has one.
    """
    batch = tasks.sample(np.arange(count), episode=episode, seed=seed)
    distances = torch.cdist(batch.items.float().flatten(1), torch.from_numpy(means))  # [n, k]
    cluster = distances.argmin(1)
    right = []
    for i in distributed.shard(range(count)):
        votes = torch.zeros(len(means), episode.way)
        votes.index_put_((cluster[batch.support_index[i]], batch.support_label[i]), torch.tensor(1.0), accumulate=True)
        named = votes.sum(1).nonzero()[:, 0]
        nearest = named[distances[batch.query_index[i]][:, named].argmin(1)]
        # of labels with equally many the first one, which is any, as label ids are random
        right.append((votes[nearest].argmax(1) == batch.query_label[i]).float().mean().item())
    return np.array(distributed.gather(right))


def from_scratch(model: Model, lr: float, steps: int) -> MAML:
    """Gradient descent on the support alone, from random weights: MAML that never meta-trained.

    lr: for a loss `way` times the mean, as CACTUs' (Hsu et al. 2019) 0.1 is.
    """
    return MAML(model, inner_lr=lr, steps=steps, scale_by_way=True, head="fixed", normalisation="support")
