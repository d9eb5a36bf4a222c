"""The contracts of plug-ins: what each kind of part must offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from umeta.types import TaskDistribution

State = dict[str, Tensor]


class Context(Protocol):
    """What surrounds long work; `umeta.RunContext` is the one there is."""

    seed: int
    device: torch.device | str

    def loop(
        self,
        name: str,
        steps: int,
        step: Callable[[int], dict[str, float]],
        save: Callable[[], State],
        load: Callable[[State], None],
        snapshots: int = 0,
        skip: bool = False,
    ) -> None: ...  # `step(0) ... step(steps - 1)`, with progress, checkpoints and resuming

    def part(self, i: int) -> Context: ...  # for the i-th of several parts: other names of loops, another seed

    def note(self, message: str) -> None: ...  # a line for people

    def watch(self) -> Callable[[], float]: ...  # a started stop-watch: seconds so far


class Images(Protocol):
    """Images without labels: `umeta.UnlabelledImages`."""

    @property
    def pixels(self) -> np.ndarray: ...  # [n, C, H, W] uint8

    @property
    def rows(self) -> np.ndarray: ...  # [n] position of each in its source's own order

    @property
    def fingerprint(self) -> str: ...  # hash of all pixels and their shape

    def __len__(self) -> int: ...

    @property
    def item_shape(self) -> tuple[int, ...]: ...  # (C, H, W)

    def floats(self, index: slice | np.ndarray, device: torch.device | str = "cpu") -> Tensor: ...  # [m, C, H, W]


class Embedder(Protocol):
    """Turns images into vectors, trained (if at all) without labels. `state_dict` holds all that `embed` needs."""

    def fit(self, images: Images, ctx: Context) -> None: ...

    def embed(self, images: Images) -> Tensor: ...  # [n, d] float32

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Proposer(Protocol):
    """Makes a task distribution out of unlabelled data; one of regressions is made of nothing but its options.

    Rewards and functions that are a formula are proposed again wherever they are needed. Rewards that are learnt are an
    `nn.Module`, which is stored, and the proposer has a method `rewards(source)` that gives one to load the state into.
    """

    domain: ClassVar[Literal["image", "env", "regression"]]
    sees_labels: ClassVar[bool]  # True for oracles and hand-made tasks only, and stamped on every report

    def propose(self, source: Any, ctx: Context, embedder: Embedder | None = None) -> TaskDistribution: ...


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
