"""The types every part speaks: read this file first.

A *task distribution* turns a seed and task numbers into support and query data. A *meta-learner* adapts on the support
and is scored on the query. Where the tasks come from (k-means over an embedding, a discriminator of skills, true
labels) and how the learner adapts (gradient steps, prototypes) never know of each other.

Shapes: T tasks in a meta-batch, N items in a task's support or query, C x H x W an image, d an embedding. For an
environment, E episodes of H steps: the items are its E * H steps, x what was observed, y what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
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


class Embedder(Protocol):
    """Turns images into vectors, trained (if at all) without labels. `state_dict` holds all that `embed` needs."""

    def fit(self, images: UnlabelledImages, ctx: RunContext) -> None: ...

    def embed(self, images: UnlabelledImages) -> Tensor: ...  # [n, d] float32

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Proposer(Protocol):
    """Makes a task distribution out of unlabelled data; one of regressions is made of nothing but its options.

    Rewards and functions that are a formula are proposed again wherever they are needed. Rewards that are learnt are an
    `nn.Module`, which is stored, and the proposer has a method `rewards(source)` that gives one to load the state into.
    """

    domain: ClassVar[Literal["image", "env", "regression"]]
    sees_labels: ClassVar[bool]  # True for oracles and hand-made tasks only, and stamped on every report

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


class Simulation(Protocol):
    """n copies of an environment, side by side. Tensors are float32 on the CPU, and the caller's own to keep."""

    def reset(self, u: Tensor) -> Tensor: ...  # [n, randoms] uniform numbers in [0, 1) -> observations [n, d]

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]: ...  # [n, a] -> observations [n, d], ended [n] bool

    def positions(self) -> Tensor: ...  # [n, 2]: where each copy is in the plane, in metres

    def picture(self, copy: int = 0) -> np.ndarray: ...  # [H, W, 3] uint8


@runtime_checkable
class Environment(Protocol):
    """Options of an environment. It has no reward: tasks and benchmarks compute theirs from what was seen and done.

    Actions are in the policy's units, in which its standard deviation starts at 1; the environment scales and clips.
    """

    @property
    def horizon(self) -> int: ...  # steps of an episode

    @property
    def discount(self) -> float: ...

    @property
    def observation(self) -> int: ...  # numbers in an observation

    @property
    def action(self) -> int: ...  # numbers in an action

    @property
    def randoms(self) -> int: ...  # uniform numbers a reset takes

    def simulate(self, n: int) -> Simulation: ...


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


class Problem(Protocol):
    """One meta-step's optimisation problem, as an outer step sees it; chunks of tasks are hidden in it.

    All is taken at the parameters as they are now. The last two are for policies alone.
    """

    def loss_and_grad(self, clip: float | None = None) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Metrics and d loss / d theta by name; `clip` bounds a policy's probability ratios (PPO)."""
        ...

    def loss_and_kl(self) -> tuple[float, float]:
        """The loss, and the mean KL divergence of the adapted policies from what they were at the first call."""
        ...

    def fisher_vector(self, vector: dict[str, Tensor], share: float = 1.0) -> dict[str, Tensor]:
        """The Fisher information of the adapted policies times a vector, on a share of the states."""
        ...


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
