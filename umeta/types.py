"""The types every part speaks: read this file first.

A *task distribution* turns a seed and task numbers into support and query data. A *meta-learner* adapts on the support
and is scored on the query. Where the tasks come from (k-means over an embedding, a discriminator of skills, true
labels) and how the learner adapts (gradient steps, prototypes) never know of each other.

Shapes: T tasks in a meta-batch, N items in a task's support or query, C x H x W an image, d an embedding. For an
environment, E episodes of H steps: the items are its E * H steps, x what was observed, y what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class EpisodeSpec:
    """One task's size: `way` classes, `shot` support and `query` query items of each class.

    On an environment: one class, and `shot` and `query` episodes. Of a function: one class, and so many points.
    """

    way: int
    shot: int
    query: int

    def __str__(self) -> str:
        return f"{self.way}-way {self.shot}-shot"


@dataclass(frozen=True)
class TaskSpec:
    """What the tasks of a distribution have in common; way and shot are the caller's choice and not here."""

    item_shape: tuple[int, ...]
    objective: Literal["categorical", "policy", "regression"] = "categorical"
    outputs: int = 0  # numbers to predict; 0 where they are the task's classes, one each
    free: int = 0  # further ones that depend on no item: a policy's log standard deviations

    @property
    def interactive(self) -> bool:
        """Whether what a task gives depends on how the learner acts."""
        return self.objective == "policy"


@dataclass(frozen=True)
class Batch:
    """The support or the query of T tasks with N items each."""

    x: Tensor  # [T, N, *item_shape] float
    y: Tensor  # [T, N] int64 class, below `way`; [T, N, outputs] float for a policy or a regression
    mask: Tensor  # [T, N] bool; False marks padding: no loss, metric or prototype sees it, statistics over a batch do
    way: int  # classes in each task; 1 where there are none
    w: Tensor | None = None  # [T, N] advantage
    logp: Tensor | None = None  # [T, N] log-probability of y when it was sampled
    score: Tensor | None = None  # [T] mean return of the episodes, for people to read
    reward: Tensor | None = None  # [T, N] of each step
    first: Tensor | None = None  # [T, N] bool; the first steps of episodes
    sequences: int = 1  # steps come in so many sequences of one length: episodes, or trials of several episodes

    def __len__(self) -> int:
        return self.x.shape[0]

    def chunk(self, start: int, stop: int) -> Batch:
        """Tasks `start` to `stop` alone."""
        return self.cut(lambda value: value[start:stop])

    def thinned(self, every: int) -> Batch:
        """With one in so many items of each task alone, at uneven distances: episodes follow each other in a task."""
        items = torch.arange(0, self.y.shape[1], every)
        items = (items + items // every % every).clamp(max=self.y.shape[1] - 1).to(self.y.device)
        return self.cut(lambda value: value[:, items] if value.dim() > 1 else value)

    def cut(self, part: Callable[[Tensor], Tensor]) -> Batch:
        """With each tensor exchanged for a part of it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        parts: dict[str, Any] = {name: part(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **parts)


Act = Callable[[Tensor], Tensor]  # what a policy answers to observations [T, E, ...]: [T, E, outputs + free]


@runtime_checkable
class RecurrentAct(Protocol):
    """A policy that remembers: it is asked once for each step of an episode, and told after each what came of it."""

    def __call__(self, x: Tensor) -> Tensor: ...  # as `Act`

    def told(self, action: Tensor, reward: Tensor) -> None: ...  # [T, E, action] and [T, E]


class TaskBatch(Protocol):
    """T sampled tasks. Images hold their data; an environment rolls the policy `act` out to get it."""

    def support(self, act: Act | None = None, round: int = 0) -> Batch: ...

    def query(self, act: Act | None = None) -> Batch: ...


class TaskDistribution(Protocol):
    """Task i depends on (seed, i) alone, so any number of processes sees the same tasks and none is stored."""

    @property
    def spec(self) -> TaskSpec: ...

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> TaskBatch: ...

    def to(self, device: torch.device | str) -> TaskDistribution: ...

    def describe(self, episode: EpisodeSpec) -> list[str]: ...  # what there is to draw such episodes from, in numbers

    def save(self, folder: Path, name: str) -> dict[str, Any]: ...  # writes arrays, returns a description (umeta.tasks)


Stats = dict[str, Tensor]  # normalisation statistics by layer: "<layer>.mean", "<layer>.var"


@dataclass(frozen=True)
class Theta:
    """What meta-training learns: parameters, and the running normalisation statistics gathered on the way.

    `running=None` (as in meta-training) lets the learner normalise by the batch at hand.
    """

    params: dict[str, Tensor]
    running: Stats | None = None


@dataclass(frozen=True)
class Adapted:
    """A learner adapted to T tasks: fast weights or prototypes [T, ...], and the support's statistics [T, channels]."""

    params: dict[str, Tensor]
    stats: Stats = field(default_factory=dict)
    steps: int = 0  # inner steps taken so far


class MetaLearner(Protocol):
    """Adapts on a support set; neither method changes `theta` or anything else."""

    def init(self, spec: TaskSpec, episode: EpisodeSpec, seed: int) -> Theta: ...

    def adapt(
        self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None
    ) -> Adapted: ...

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor: ...  # [T, N, way] log-odds, or outputs


@runtime_checkable
class PolicyLearner(MetaLearner, Protocol):
    """A meta-learner that can act before it has adapted, which tasks on an environment need."""

    def unadapted(self, theta: Theta, tasks: int) -> Adapted: ...


@runtime_checkable
class RecurrentLearner(PolicyLearner, Protocol):
    """A policy learner that goes on learning while it acts: its answer depends on the episode so far.

    Its meta-loss is that of all episodes of a task, in turn one trial, whereas other learners are scored on the query.
    """

    def act(self, theta: Theta, adapted: Adapted) -> RecurrentAct: ...  # for one episode

    def replay(self, theta: Theta, adapted: Adapted, steps: Batch) -> Tensor: ...  # its answers [T, N, outputs + free]

    def trial(self, rounds: Sequence[Batch]) -> Batch: ...  # the supports and the query, one after the other


@runtime_checkable
class OwnMetaGradient(MetaLearner, Protocol):
    """A meta-learner whose outer step does not descend the query loss through its adaptation, such as Reptile."""

    def meta_gradient(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, dict[str, Tensor]]:
        """Adapted, and what the outer step descends instead, by parameter name: the mean over the tasks."""
        ...
