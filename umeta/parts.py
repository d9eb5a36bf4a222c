"""The contracts of plug-ins: what each kind of part must offer, and what else it may say about itself.

What a part must offer is a protocol, such as `Proposer`. What it may say beyond that has a default and is declared in a
class of traits beside it, such as `ProposerTraits`. A plug-in need not inherit from either: it has the methods of the
protocol, and attributes, options or properties for those of its traits that differ from the defaults. Code that needs a
trait reads `ProposerTraits.of(proposer).partitions`, never `getattr` with a default of its own.

Meta-learners are the exception: they inherit from `umeta.types.MetaLearner`, which declares all that they may say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from umeta.types import MetaLearner, TaskDistribution, Theta

State = dict[str, Tensor]


@dataclass(frozen=True)
class Traits:
    """What a part may say about itself: a field with a default for each, as the subclasses declare them."""

    @classmethod
    def of(cls, part: object) -> Self:
        """Read the traits of a part, with the defaults for those that it does not have."""
        return cls(**{f.name: getattr(part, f.name) for f in fields(cls) if hasattr(part, f.name)})


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
        seconds: float | None = None,
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

    def floats(
        self, index: slice | np.ndarray | Tensor, device: torch.device | str = "cpu"
    ) -> Tensor: ...  # [m, C, H, W]


@dataclass(frozen=True)
class SourceTraits(Traits):
    """What a source of images (`data`) may say about itself."""

    rule: Any = None
    """how it makes items of picture files (`umeta.data.decode.Rule`), so that other files can become the same"""


class Embedder(Protocol):
    """Turns images into vectors, trained (if at all) without labels. `state_dict` holds all that `embed` needs."""

    def fit(self, images: Images, ctx: Context) -> None: ...

    def embed(self, images: Images) -> Tensor: ...  # [n, d] float32

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Trained(Protocol):
    """A finished run, loaded: what `umeta.load_run` gives."""

    @property
    def learner(self) -> MetaLearner: ...

    @property
    def theta(self) -> Theta: ...

    @property
    def true_labels(self) -> bool: ...

    @property
    def pretrained(self) -> str: ...

    @property
    def item_shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class EmbedderTraits(Traits):
    """What an embedder may say about itself."""

    shared_fit: bool = False
    """several processes call `fit` together and share the work; else the first trains, and the others get its state"""
    pretrained: str = ""
    """what it had learnt from before it saw these images, such as `ImageNet with labels`"""
    trained: Trained | None = None
    """the run that it embeds with, where it is one"""


@runtime_checkable
class EmbedderOfRun(Embedder, Protocol):
    """Embeds with what a finished run has learnt, which it is given before `fit` and `load_state_dict`."""

    run: str  # the run's folder

    def receive(self, trained: Trained) -> None: ...


class Proposer(Protocol):
    """Makes a task distribution out of unlabelled data; one of regressions is made of nothing but its options.

    Rewards and functions that are a formula are proposed again wherever they are needed. Rewards that are learnt are an
    `nn.Module`, which is stored, and the proposer has a method `rewards(source)` that gives one to load the state into.
    """

    domain: ClassVar[Literal["image", "env", "regression"]]
    sees_labels: ClassVar[bool]  # True for oracles and hand-made tasks only, and stamped on every report

    def propose(self, source: Any, ctx: Context, embedder: Embedder | None = None) -> TaskDistribution: ...


@dataclass(frozen=True)
class ProposerTraits(Traits):
    """What a proposer may say about itself."""

    k: int | None = None
    """clusters in a partition, as its option says; None where there are none"""
    partitions: int = 1
    """how many partitions of the images it makes, which bounds the memory that they take"""
    unlabelled: bool = False
    """whether supports hold items of label -1, which not every learner can make use of"""
    demonstrates: bool = False
    """whether its tasks on an environment show what to do, in place of a reward"""
    test: Callable[[], TaskDistribution] | None = None
    """(): give the functions to test on, of a proposer on one's own; None where those of another seed are new"""


@dataclass(frozen=True)
class WithProposer:
    """Options of a proposer that does something with the tasks of another; it says of itself what that one does."""

    proposer: Any
    """the other one, a name or a mapping"""

    @property
    def sees_labels(self) -> bool:
        """Whether its proposer does."""
        return self.proposer.sees_labels

    @property
    def unlabelled(self) -> bool:
        """Whether its proposer's supports hold items without a label."""
        return ProposerTraits.of(self.proposer).unlabelled


@dataclass(frozen=True)
class TaskTraits(Traits):
    """What a task distribution may say about itself."""

    partitions: np.ndarray | None = None
    """[P, n] int32: the class of each image in each partition, -1 for none"""
    skills: dict[str, Tensor] | None = None
    """parameters of the skills' policies by name, stacked [skills, ...]: `start: skills` begins with their mean"""
    updates: int = 1
    """of a sequence: how many tasks of meta-training are for each new one"""
    coming: Callable[[int], TaskDistribution] | None = None
    """(met): give those of a sequence that are still to come when so many have been met"""
    x: tuple[float, float] | None = None
    """of waves: from where to where they are looked at"""
    image: tuple[int, ...] | None = None
    """(C, H, W) of images to be completed"""


@dataclass(frozen=True)
class RewardTraits(Traits):
    """What the rewards of tasks may say about themselves."""

    of_places: bool = True
    """whether they depend on the observation alone, so that a map of them can be drawn"""
    places: Tensor | None = None
    """[tasks, 2] their goals, where those are places in the plane"""


@runtime_checkable
class Model(Protocol):
    """Options of a feature extractor: `build((C, H, W))` gives a module from [n, C, H, W] to [n, features]."""

    def build(self, item_shape: tuple[int, ...]) -> nn.Module: ...


@dataclass(frozen=True)
class ModelTraits(Traits):
    """What a model may say about itself."""

    pretrained: str = ""
    """what its weights were learnt from before meta-training, such as `ImageNet with labels`"""
    trained: Any = None
    """the model that meta-training and baselines see, where that is not all of it"""
    complete: Callable[[Images, Callable[[Tensor], Tensor], int], tuple[Any, State]] | None = None
    """(images, network's features, seed): when meta-training is over, give the options of the whole, and
    the parameters of what was fitted beside the network"""
    fitted: bool = False
    """whether that was done"""
    untrained: Any = None
    """the options of the whole without what meta-training taught"""
    averages: bool = False
    """whether features are means over all places, which say nothing of where things are"""


@runtime_checkable
class Augment(Protocol):
    """Makes views of images: a pure function of [m, C, H, W] in [0, 1] and of [m, randoms] uniform numbers."""

    @property
    def randoms(self) -> int: ...

    def __call__(self, x: Tensor, u: Tensor) -> Tensor: ...


def keep(observations: Tensor) -> Tensor:
    """Return observations as they are."""
    return observations


@dataclass(frozen=True)
class EnvironmentTraits(Traits):
    """What an environment may say about itself."""

    axes: tuple[str, str] = ("x (m)", "y (m)")
    """names of the two numbers that `Simulation.positions` gives, for pictures"""
    lam: float = 1.0
    """lambda of generalised advantage estimation: how far an advantage looks past the baseline's estimates"""
    show: Callable[[Tensor], Tensor] = keep
    """what it shows of its own observations [..., d]"""
    restore: Callable[[Tensor], Tensor] = keep
    """its own observations of those that it shows, for true rewards to look at"""


class Simulation(Protocol):
    """n copies of an environment, side by side. Tensors are float32 on the CPU, and the caller's own to keep."""

    def reset(self, u: Tensor) -> Tensor: ...  # [n, randoms] uniform numbers in [0, 1) -> observations [n, d]

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]: ...  # [n, a] -> observations [n, d], ended [n] bool

    def positions(self) -> Tensor: ...  # [n, 2]: where each copy is in the plane, in metres

    def picture(self, copy: int = 0) -> np.ndarray: ...  # [H, W, 3] uint8


@dataclass(frozen=True)
class SimulationTraits(Traits):
    """What a simulation may say about itself."""

    last_reward: Tensor | None = None
    """[n] the environment's own reward of the last step, which no task but its own benchmark reads"""


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
        """Return metrics and d loss / d theta by name; `clip` bounds a policy's probability ratios (PPO)."""
        ...

    def loss_and_kl(self) -> tuple[float, float]:
        """Return the loss, and the mean KL divergence of the adapted policies from what they were when first asked.

        That is the first call of this or of `loss_and_grad`.
        """
        ...

    def fisher_vector(self, vector: dict[str, Tensor], share: float = 1.0) -> dict[str, Tensor]:
        """Return the Fisher information of the adapted policies times a vector, on a share of the states."""
        ...


@runtime_checkable
class Outer(Protocol):
    """Takes the outer loop's step. It changes the parameters it was started with in place."""

    def start(self, params: dict[str, Tensor]) -> None: ...

    def step(self, problem: Problem, progress: float) -> dict[str, float]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class OuterTraits(Traits):
    """What an outer step may say about itself."""

    for_policies: bool = False
    """whether it needs the part of `Problem` that policies alone have"""
    second_order: bool = False
    """whether it differentiates the inner loop twice"""


class Tracker(Protocol):
    """Takes what a run measures to where a person looks at it. Each stage starts it, and closes it at its end."""

    def start(self, folder: Path) -> None: ...  # the stage's folder, `tasks/NAME` or `runs/NAME`

    def scalars(self, loop: str, step: int, metrics: Mapping[str, float]) -> None: ...  # steps rise, but for a resume

    def picture(self, name: str, pixels: np.ndarray) -> None: ...  # [H, W, 3] uint8

    def close(self) -> None: ...
