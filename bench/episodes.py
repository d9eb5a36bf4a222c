"""Sampling tasks: images and labels of a meta-batch, ready to train on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from bench.maml import package
from umeta.tasks.partition import PartitionTasks
from umeta.types import EpisodeSpec

META_BATCH = 8


def drawn(images: int, classes: int, pixels: int) -> tuple[Tensor, np.ndarray]:
    """Noise and class numbers: [images, 1, pixels, pixels] uint8 and [images]."""
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (images, 1, pixels, pixels), dtype=torch.uint8, generator=random)
    return x, torch.randint(0, classes, (images,), generator=random).numpy()


def umeta(
    images: int, classes: int, partitions: int, way: int, shot: int, query: int, tasks: int, pixels: int = 28
) -> Callable[[], None]:
    """From as many partitions of the images as asked for, all random."""
    x, labels = drawn(images, classes, pixels)
    shift = np.random.default_rng(0)
    found = np.stack([labels, *(shift.permutation(labels) for _ in range(partitions - 1))]).astype(np.int32)
    distribution = PartitionTasks(x, found)
    episode = EpisodeSpec(way, shot, query)
    numbers = count()

    def run() -> None:
        for _ in range(tasks // META_BATCH):
            batch = distribution.sample(np.arange(META_BATCH) + META_BATCH * next(numbers), episode=episode, seed=0)
            batch.support(), batch.query()

    return run


def index(images: int, classes: int, partitions: int) -> Callable[[], None]:
    """Return what `PartitionTasks` does before the first task."""
    x, labels = drawn(images, classes, 1)
    shift = np.random.default_rng(0)
    found = np.stack([shift.permutation(labels) for _ in range(partitions)]).astype(np.int32)

    def run() -> None:
        PartitionTasks(x, found)

    return run


def learn2learn(images: int, classes: int, way: int, shot: int, query: int, tasks: int) -> Callable[[], None]:
    """`TaskDataset` with the fused transform, the fastest it has, and `partition_task`, as its examples use them.

    It holds one partition, and keeps every task it made unless told otherwise.
    """
    l2l: Any = package("learn2learn", "utils", "data", "data.transforms")
    x, labels = drawn(images, classes, 28)
    data = l2l.data.MetaDataset(TensorDataset(x.float().div_(255), torch.from_numpy(labels)))
    transforms = [
        l2l.data.transforms.FusedNWaysKShots(data, n=way, k=shot + query),
        l2l.data.transforms.LoadData(data),
        l2l.data.transforms.RemapLabels(data),
        l2l.data.transforms.ConsecutiveLabels(data),
    ]
    sampled = l2l.data.TaskDataset(data, task_transforms=transforms, num_tasks=-1)

    def run() -> None:
        for _ in range(tasks):
            l2l.data.partition_task(*sampled.sample(), shots=shot)

    return run
