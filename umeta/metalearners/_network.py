"""What learners share that see items through one network: building it, its random weights, its features."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from umeta import seeds
from umeta.errors import UserError
from umeta.models.check import build_module, choose_program
from umeta.models.functional import Normalisation, Pure, draw, preset_statistics
from umeta.models.precision import Precision, autocast
from umeta.types import EpisodeSpec, FeatureLearner, TaskSpec, Theta


@dataclass(frozen=True)
class Built:
    """What `build` adds to a learner's options: its network, and the tasks it is for."""

    spec: TaskSpec
    episode: EpisodeSpec
    network: Pure
    features: int  # numbers that the network gives for an item
    module: nn.Module | None  # the learner's own, behind the network


class NetworkLearner(FeatureLearner):
    """A learner with one network and perhaps a module of its own behind it; a subclass is a dataclass of its options.

    Features are compared by `distance`, cosines times a learnt factor that starts at `scale`, and the network's pass
    over them is computed in `precision`.
    """

    normalisation: Normalisation
    precision: Precision = "float32"
    scale: float = 10.0
    _built: Built | None = None

    def build(self, spec: TaskSpec, episode: EpisodeSpec) -> Self:
        """Return a copy with the network for such tasks.

        Raises:
            UserError: the model cannot take such items.
        """
        network = draw(lambda: Pure(build_module(self.model, spec.item_shape), self.normalisation), seed=0)
        # the library's own networks are held against plain loops by its tests, which need not be done again
        known = type(self.model).__module__.startswith("umeta.models.")
        features = network.features(spec.item_shape) if known else choose_program(network, spec.item_shape)
        learner = copy.copy(self)
        learner.fixed = network.fixed
        runs = [f"runs {network.program}"] if self.task_by_task else []
        if said := [*runs, *network.remarks]:
            learner.program = f"the network {'; '.join(said)}" if runs else f"the network: {'; '.join(said)}"
        module = draw(lambda: self._make_module(spec, episode, features), seed=0)
        learner._built = Built(spec, episode, network, features, module)
        return learner

    @property
    def built(self) -> Built:
        """What `build` made.

        Raises:
            UserError: these are options, which have not been built.
        """
        if self._built is None:
            name = type(self).__name__
            raise UserError(f"{name}: it has no network yet; use what its build(spec, episode) returns")
        return self._built

    @property
    def task_by_task(self) -> bool:
        """Whether each task has weights or statistics of its own in the network."""
        return False

    @property
    def transductive(self) -> bool:
        """Whether the answer to one query depends on the others."""
        return self.normalisation == "batch"

    def init(self, seed: int) -> Theta:
        """Draw random weights from `seed`.

        Raises:
            UserError: the model has a parameter of the name of one of the learner's own.
        """
        shape = self.built.spec.item_shape
        module = draw(lambda: build_module(self.model, shape), seed)
        weights = initial(module)
        own = self._make_parameters(weights, seed)
        if shared := [name for name in weights if name in own]:
            raise UserError(f"model: its parameter '{shared[0]}' has the name of one of the learner's own; rename it")
        # a running average that the model comes with is where that of meta-training begins
        known = preset_statistics(module) if self.normalisation in ("running", "support") else {}
        layers = self.built.network.layers
        kept = {name: value for name, value in known.items() if name.rpartition(".")[0] in layers}
        return Theta({**weights, **own}, kept or None)

    def features(self, theta: Theta, x: Tensor) -> Tensor:
        """Return the features [n, features] of x [n, ...], not adapted, by the running statistics."""
        with autocast(x.device, self.precision):
            z, _ = self.built.network.shared(theta.params, x, theta.running)
        return for_distance(z, self.distance)

    def _make_parameters(self, weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        """Make the parameters beside the network's weights: those of the learner's own module."""
        built = self.built
        module = draw(lambda: self._make_module(built.spec, built.episode, built.features), seeds.integer(seed, "own"))
        return {} if module is None else {self._own(name): value for name, value in initial(module).items()}

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module | None:
        """Make the learner's own module for `features` features; its name for a parameter follows the learner's."""
        return None

    def _own(self, name: str) -> str:
        """Name a parameter of the learner's own module as theta does."""
        return f"{type(self).__name__.lower()}.{name}"

    def _run_module(self, theta: Theta, *inputs: Any) -> Any:
        """Run the learner's own module on the inputs."""
        module = self.built.module
        assert module is not None
        params = {name: theta.params[self._own(name)] for name, _ in module.named_parameters()}
        return functional_call(module, params, inputs)


def initial(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters by name, detached."""
    return {name: value.detach() for name, value in module.named_parameters()}


def for_distance(z: Tensor, distance: str) -> Tensor:
    """Prepare features for the distance: of length 1 for cosines, and in float32 at least."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    return F.normalize(z, dim=-1) if distance == "cosine" else z
