"""The types every part speaks: read this file first.

A *task distribution* turns a seed and task numbers into support and query data. A *meta-learner* adapts on the support
and is scored on the query. Where the tasks come from (k-means over an embedding, true labels) and how the learner
adapts (gradient steps, prototypes) never know of each other.

Shapes: T tasks in a meta-batch, N items in a task's support or query, C x H x W an image, d an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from umeta.context import RunContext
    from umeta.data.images import UnlabelledImages


@dataclass(frozen=True)
class EpisodeSpec:
    """One task's size: `way` classes, `shot` support and `query` query items of each class."""

    way: int
    shot: int
    query: int

    def __str__(self) -> str:
        return f"{self.way}-way {self.shot}-shot"


@dataclass(frozen=True)
class TaskSpec:
    """What the tasks of a distribution have in common; way and shot are the caller's choice and not here."""

    item_shape: tuple[int, ...]
    objective: Literal["categorical"] = "categorical"


@dataclass(frozen=True)
class Batch:
    """The support or the query of T tasks with N items each."""

    x: Tensor  # [T, N, *item_shape] float
    y: Tensor  # [T, N] int64 class, below `way`
    mask: Tensor  # [T, N] bool; False marks padding: no loss, metric or prototype sees it, statistics over a batch do
    way: int  # classes in each task

    def __len__(self) -> int:
        return self.x.shape[0]

    def chunk(self, start: int, stop: int) -> Batch:
        """Tasks `start` to `stop` alone."""
        return replace(self, x=self.x[start:stop], y=self.y[start:stop], mask=self.mask[start:stop])


class TaskBatch(Protocol):
    """T sampled tasks. Images hold their data; an environment rolls the policy `act` out to get it."""

    def support(self, act: Callable | None = None, round: int = 0) -> Batch: ...

    def query(self, act: Callable | None = None) -> Batch: ...


class TaskDistribution(Protocol):
    """Task i depends on (seed, i) alone, so any number of processes sees the same tasks and none is stored."""

    @property
    def spec(self) -> TaskSpec: ...

    def sample(self, indices: Tensor | np.ndarray, *, episode: EpisodeSpec, seed: int) -> TaskBatch: ...

    def to(self, device: torch.device | str) -> TaskDistribution: ...

    def describe(self, episode: EpisodeSpec) -> list[str]: ...  # what there is to draw such episodes from, in numbers


class Embedder(Protocol):
    """Turns images into vectors, trained (if at all) without labels. `state_dict` holds all that `embed` needs."""

    def fit(self, images: UnlabelledImages, ctx: RunContext) -> None: ...

    def embed(self, images: UnlabelledImages) -> Tensor: ...  # [n, d] float32

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Proposer(Protocol):
    """Makes a task distribution out of unlabelled data."""

    domain: ClassVar[Literal["image", "env"]]
    sees_labels: ClassVar[bool]  # True for oracles only, and stamped on every report

    def propose(self, source: Any, ctx: RunContext, embedder: Embedder | None = None) -> TaskDistribution: ...


@runtime_checkable
class Model(Protocol):
    """Options of a feature extractor: `build((C, H, W))` gives a module from [n, C, H, W] to [n, features]."""

    def build(self, item_shape: tuple[int, ...]) -> nn.Module: ...


@runtime_checkable
class Augment(Protocol):
    """Makes views of images: a pure function of [m, C, H, W] in [0, 1] and of [m, randoms] uniform numbers."""

    @property
    def randoms(self) -> int: ...

    def __call__(self, x: Tensor, u: Tensor) -> Tensor: ...


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


class MetaLearner(Protocol):
    """Adapts on a support set; neither method changes `theta` or anything else."""

    def init(self, spec: TaskSpec, episode: EpisodeSpec, seed: int) -> Theta: ...

    def adapt(
        self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None
    ) -> Adapted: ...

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor: ...  # [T, N, way] log-odds


class Problem(Protocol):
    """One meta-step's optimisation problem, as an outer step sees it; chunks of tasks are hidden in it."""

    def loss_and_grad(self) -> tuple[dict[str, float], dict[str, Tensor]]: ...  # metrics, d loss / d theta by name


@runtime_checkable
class Outer(Protocol):
    """Takes the outer loop's step. It changes the parameters it was started with in place."""

    def start(self, params: dict[str, Tensor]) -> None: ...

    def step(self, problem: Problem, progress: float) -> dict[str, float]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Sink(Protocol):
    """Passes what a run measures on to a tracker. Each stage starts it, and closes it however the stage ends."""

    def start(self, folder: Path) -> None: ...  # the stage's folder, `tasks/NAME` or `runs/NAME`

    def scalars(self, loop: str, step: int, metrics: Mapping[str, float]) -> None: ...  # steps rise, but for a resume

    def picture(self, name: str, pixels: np.ndarray) -> None: ...  # [H, W, 3] uint8

    def close(self) -> None: ...


def to_device(spec: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1` as a torch device.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    from umeta.errors import UserError

    if spec == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(spec)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{spec}': expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device '{spec}': this machine has {torch.cuda.device_count()} usable GPUs; use --device cpu")
    return device
