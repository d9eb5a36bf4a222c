"""What the tests of meta-learners share: an embedding without a network, small batches, and tasks learnt in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from umeta.config.images import TrainConfig
from umeta.objectives import accuracy
from umeta.outer.adam import Adam
from umeta.rl.rollout import Paths
from umeta.tasks.partition import PartitionTasks
from umeta.train import metatrain
from umeta.types import Batch, EpisodeSpec, MetaLearner, TaskSpec, Theta


@dataclass(frozen=True)
class Itself:
    """Items are their own embedding, times a learnt matrix that starts as the identity."""

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        layer = nn.Linear(item_shape[0], item_shape[0], bias=False)
        nn.init.eye_(layer.weight)
        return layer


@dataclass(frozen=True)
class Corners:
    """Minus the distance to one corner of a square, after the move."""

    count: int = 4

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        corners = torch.tensor([[0.4, 0.4], [-0.4, 0.4], [0.4, -0.4], [-0.4, -0.4]])
        return -(paths.positions[:, :, 1:] - corners[which][:, None, None]).norm(dim=-1)

    def describe(self, states: Tensor) -> list[str]:
        return []


@contextmanager
def step_sizes() -> Iterator[list[float]]:
    """Within the block each step of Adam adds its size to the list."""
    sizes: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        step = torch.optim.Adam.step

        def spy(self: torch.optim.Adam, *arguments: Any) -> Any:
            sizes.append(self.param_groups[0]["lr"])
            return step(self, *arguments)

        patch.setattr(torch.optim.Adam, "step", spy)
        yield sizes


def batch(x: Tensor, y: list[list[int]], way: int, mask: Tensor | None = None) -> Batch:
    label = torch.tensor(y)
    return Batch(x, label, torch.ones(label.shape, dtype=torch.bool) if mask is None else mask, way)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def answers(learner: MetaLearner, theta: Theta, support: Batch, x: Tensor) -> Tensor:
    with torch.no_grad():
        return learner.predict(theta, learner.adapt(theta, support), x)


def learnt(
    learner: MetaLearner, *, lr: float = 0.03, steps: int = 100, way: int = 5, shot: int = 1
) -> tuple[float, float]:
    """Accuracy before and after meta-training: the class is in the signs of 4 coordinates, the other 12 are noise."""

    def tasks(seed: int) -> PartitionTasks:
        draw = np.random.default_rng(seed)
        labels = np.arange(16).repeat(30)
        corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 4), axis=-1).reshape(16, 4)
        x = np.concatenate([corners[labels], 2 * draw.standard_normal((480, 12))], axis=1)
        return PartitionTasks(x.astype(np.float32), labels)

    config = TrainConfig(Adam(lr=lr), steps=steps, way=way, shot=shot, query=5, meta_batch=4)
    test = tasks(1).sample(np.arange(100), episode=config.episode, seed=1)

    def right(theta: Theta) -> float:
        return accuracy(answers(learner, theta, test.support(), test.query().x), test.query()).mean().item()

    learner = learner.build(TaskSpec((16,)), config.episode)
    trained = metatrain(learner, tasks(0), config)
    return right(learner.init(0)), right(trained)


def padded(support: Batch, at: int, y: Any = 0) -> Batch:
    """With one more item in each task, at this place, that the mask leaves out."""

    def with_one(value: Tensor, new: Any) -> Tensor:
        return torch.cat([value[:, :at], torch.full_like(value[:, :1], new), value[:, at:]], 1)

    return Batch(with_one(support.x, 99), with_one(support.y, y), with_one(support.mask, False), support.way)


def check_padding_and_labels(learner: MetaLearner) -> None:
    """A learner of vectors of three numbers: padding counts for nothing, and permuted labels permute the answers."""
    learner = learner.build(TaskSpec((3,)), EpisodeSpec(2, 2, 1))
    theta = learner.init(0)
    support, query = batch(rand(2, 6, 3), [[0, 0, 1, 1, 2, 2]] * 2, 3), rand(2, 4, 3, seed=1)
    logits = answers(learner, theta, support, query)
    torch.testing.assert_close(answers(learner, theta, padded(support, 3), query), logits)
    order = torch.tensor([2, 0, 1])
    permuted = answers(learner, theta, replace(support, y=order[support.y]), query)
    torch.testing.assert_close(permuted[..., order], logits)


def check_padding_and_order(learner: MetaLearner, order: list[int], seed: int = 0) -> None:
    """Padding counts for nothing, wherever it stands, nor does this other order of the four items of two classes."""
    theta = learner.init(seed)
    support, query = batch(rand(2, 4, 3), [[0, 1, 0, 1]] * 2, 2), rand(2, 3, 3, seed=1)
    logits = answers(learner, theta, support, query)
    for at, label in ((0, 1), (2, 0), (4, 1)):
        torch.testing.assert_close(answers(learner, theta, padded(support, at, label), query), logits)
    other = support.map_tensors(lambda value: value[:, order])
    torch.testing.assert_close(answers(learner, theta, other, query), logits)
