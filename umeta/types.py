"""The types every part speaks: read this file first.

A *task distribution* turns a seed and task numbers into support and query data. A *meta-learner* adapts on the support
and is scored on the query. Where the tasks come from (k-means over an embedding, a discriminator of skills, true
labels) and how the learner adapts (gradient steps, prototypes) never know of each other.

Shapes: T tasks in a meta-batch, N items in a task's support or query, C x H x W an image, d an embedding. For an
environment, E episodes of H steps: the items are its E * H steps, x what was observed, y what was done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class EpisodeSpec:
    """One task's size: `way` classes, `shot` support and `query` query items of each class.

    On an environment: one class, and `shot` and `query` episodes. Of a function: one class, `shot` and `query` points.
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
    objective: Literal["categorical", "policy", "regression"] | Loss = "categorical"
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
    after: Tensor | None = None  # [T, N, *item_shape] what was observed after each step
    first: Tensor | None = None  # [T, N] bool; the first steps of episodes
    sequences: int = 1  # of equal length, which the steps form: episodes, or trials of several episodes

    def __len__(self) -> int:
        return self.x.shape[0]

    def chunk(self, start: int, stop: int) -> Batch:
        """Select the tasks `start` to `stop`."""
        return self.map_tensors(lambda value: value[start:stop])

    def subsample(self, every: int) -> Batch:
        """Keep one in `every` items of each task, at uneven distances: episodes follow each other in a task."""
        items = torch.arange(0, self.y.shape[1], every)
        items = (items + items // every % every).clamp(max=self.y.shape[1] - 1).to(self.y.device)
        return self.map_tensors(lambda value: value[:, items] if value.dim() > 1 else value)

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Change every tensor."""
        new: dict[str, Any] = {name: change(value) for name, value in self.tensors().items()}
        return replace(self, **new)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, without those that are None."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


Loss = Callable[[Tensor, Batch], Tensor]  # of a learner's output [T, N, ...] and what was asked: [T], one for each task
Act = Callable[[Tensor], Tensor]  # what a policy answers to observations [T, E, ...]: [T, E, outputs + free]


@runtime_checkable
class RecurrentAct(Protocol):
    """A policy that remembers: it is asked once for each step of an episode, and told after each what came of it."""

    def __call__(self, x: Tensor) -> Tensor: ...  # as `Act`

    def observe(self, action: Tensor, reward: Tensor) -> None: ...  # [T, E, action] and [T, E]


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

    @property
    def device(self) -> torch.device:
        """Where all of it lies."""
        return next(iter(self.params.values())).device


@dataclass(frozen=True)
class Adapted:
    """A learner adapted to T tasks: fast weights or prototypes [T, ...], and the support's statistics [T, channels]."""

    params: dict[str, Tensor]
    stats: Stats = field(default_factory=dict)
    steps: int = 0  # inner steps taken so far


Step = Callable[[Adapted, Batch], Adapted]  # one step of a policy's learning from episodes


def along(each: Tensor, value: Tensor) -> Tensor:
    """Shape a number for each task, or one for all, so that it broadcasts over the tasks' values [T, ...]."""
    return each.view(-1, *[1] * (value.dim() - 1))


class MetaLearner(ABC):
    """A method that adapts to tasks by their supports and is scored on their queries: the base of every one.

    One class is two things: the options, as a config has them, and what `build` makes of them for tasks of one kind,
    which all other methods need. None of them changes the learner, `theta` or a batch. What is declared here with a
    value is what the library asks of a learner; a method for which it is otherwise says so.
    """

    family: ClassVar[str] = ""
    """how it adapts, in lists of methods"""
    regresses: ClassVar[bool] = False
    """whether it can predict numbers, and not only tell classes apart"""
    unlabelled: ClassVar[bool] = False
    """whether a support may hold items whose label is not told, -1"""
    steps: int | None = None
    """inner steps of `adapt` in meta-training; None for a method that takes none"""
    test_steps: int | None = None
    """inner steps at evaluation; None for those of meta-training"""
    recompute: bool = False
    """whether the inner loop is computed again in the backward pass, and can then be differentiated only once"""
    normalisation: str = "none"
    """what its network's normalisation layers normalise by, for reports"""
    program: str = ""
    """how its network runs, for the log"""
    fixed: frozenset[str] = frozenset()
    """parameters that meta-training leaves as they are"""

    @property
    def transductive(self) -> bool:
        """Whether the answer to one query depends on the others."""
        return False

    @property
    def one_way(self) -> bool:
        """Whether it can do the way of its meta-training alone."""
        return False

    def at(self, progress: float) -> Self:
        """Return the learner as meta-training has it when this share of it, 0 to 1, is over: by default always so."""
        return self

    @abstractmethod
    def build(self, spec: TaskSpec, episode: EpisodeSpec) -> Self:
        """Return a copy that is ready for such tasks, in episodes of this size; the options stay as they are.

        Raises:
            UserError: it cannot do such tasks.
        """

    @abstractmethod
    def init(self, seed: int) -> Theta:
        """Draw what meta-training starts from."""

    @abstractmethod
    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Adapt to each of the T tasks, from theta or further from `start`, differentiably where autograd is on.

        steps: inner steps, where the method takes any; by default its own.
        """

    @abstractmethod
    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Answer x [T, N, ...]: log-odds of the classes [T, N, way], or the task's outputs [T, N, outputs + free]."""

    def predict_each(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Return the S answers that `predict` mixes: [T, S, N, ...]; by default there is one."""
        return self.predict(theta, adapted, x)[:, None]


class FeatureLearner(MetaLearner):
    """A meta-learner that sees items through one network, whose features serve as an embedding or are exported."""

    model: Any  # the network's options, a `umeta.parts.Model`
    distance: str = "euclidean"
    """`cosine` where features have length 1"""

    @abstractmethod
    def features(self, theta: Theta, x: Tensor) -> Tensor:
        """Return the features [n, features] of x [n, ...] by the network, not adapted."""


class PolicyLearner(MetaLearner):
    """A meta-learner that can act before it has adapted, which tasks on an environment need."""

    policies_only: ClassVar[bool] = False
    """whether it is for environments alone, and not for classes or numbers"""
    explores: ClassVar[bool] = False
    """whether episodes before it has adapted are of many policies, from which only a step of its own can learn"""

    @abstractmethod
    def unadapted(self, theta: Theta, tasks: int) -> Adapted:
        """Return the policy of `tasks` tasks before anything is known of them."""

    def start_from(self, skills: dict[str, Tensor]) -> Theta:
        """Make what meta-training starts from out of skills' policies [K, ...]: their mean."""
        return Theta({name: value.mean(0) for name, value in skills.items()})


class RecurrentLearner(PolicyLearner):
    """A policy learner that goes on learning while it acts: its answer depends on the episode so far.

    Its meta-loss is that of all episodes of a task, in turn one trial, whereas other learners are scored on the query.
    """

    policies_only: ClassVar[bool] = True

    @abstractmethod
    def act(self, theta: Theta, adapted: Adapted) -> RecurrentAct:
        """Begin an episode: what acts in it, and remembers."""

    @abstractmethod
    def replay(self, theta: Theta, adapted: Adapted, steps: Batch) -> Tensor:
        """Answer each step [T, N, outputs + free] as it would be in an episode, after those before it."""

    @abstractmethod
    def trial(self, rounds: Sequence[Batch]) -> Batch:
        """Join the supports and the query, one after the other."""


class OwnMetaGradient(MetaLearner):
    """A meta-learner whose outer step does not descend the query loss through its adaptation, such as Reptile."""

    @abstractmethod
    def meta_gradient(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, dict[str, Tensor]]:
        """Adapt; return the direction that the outer step descends instead, by parameter name: the mean over tasks."""


class OwnMetaLoss(OwnMetaGradient):
    """A meta-learner whose outer step descends a loss of its own, and not that of its answers to the query alone."""

    @abstractmethod
    def meta_loss(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, Tensor]:
        """Adapt; return each task's loss [T], differentiable with respect to theta."""

    def meta_gradient(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, dict[str, Tensor]]:
        """Adapt; return the gradient of the loss."""
        adapted, loss = self.meta_loss(theta, support, query)
        params = {name: value for name, value in theta.params.items() if name not in self.fixed}
        grads = torch.autograd.grad(loss.mean(), list(params.values()), materialize_grads=True)
        return adapted, dict(zip(params, grads, strict=True))
