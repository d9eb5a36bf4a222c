"""What learners share that embed items by one network and compare them there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from umeta import seeds
from umeta.models.functional import Normalisation, Pure
from umeta.models.precision import Precision, autocast
from umeta.parts import Model
from umeta.types import Adapted, Batch, Stats, TaskSpec, Theta


class EmbeddingLearner:
    """What learners share that see items through one embedding network: that, and a module of their own behind it.

    A subclass is a dataclass with the options `model` and `normalisation`.
    """

    model: Model
    normalisation: Normalisation
    distance: str = "euclidean"  # with cosine the embeddings have length 1
    precision: Precision = "float32"
    _net: Pure
    _own: nn.Module

    @property
    def transductive(self) -> bool:
        """Whether the answer to one query depends on the others."""
        return self.normalisation == "batch"

    def features(self, theta: Theta, x: Tensor) -> Tensor:
        """Embeddings [n, features] of x [n, ...], of length 1 for the cosine distance; by the running statistics."""
        with autocast(x.device, self.precision):
            return scaled(self._net.shared(theta.params, x, theta.running)[0], self.distance)

    def _drawn(
        self, spec: TaskSpec, seed: int, own: Callable[[int], nn.Module] | None = None, **scalars: float
    ) -> Theta:
        """Random weights, drawn from `seed`: the network's, those of `own(number of features)`, and single numbers."""
        self._net = Pure.build(self.model, spec.item_shape, self.normalisation, seed)
        params = {name: torch.tensor(value) for name, value in scalars.items()}
        if own is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeds.integer(seed, "own"))
                self._own = own(self._net.features(spec.item_shape))
            params |= {self._named(name): value.detach().clone() for name, value in self._own.named_parameters()}
        return Theta(self._net.params(params))

    def _named(self, name: str) -> str:
        """A parameter of the learner's own module, as theta names it."""
        return f"{type(self).__name__.lower()}.{name}"

    def _apply(self, theta: Theta, *inputs: Tensor) -> Any:
        """What the learner's own module makes of the inputs."""
        own = {name: theta.params[self._named(name)] for name, _ in self._own.named_parameters()}
        return functional_call(self._own, own, inputs)

    def _embed(self, theta: Theta, x: Tensor, stats: Stats | None = None) -> tuple[Tensor, Stats]:
        """Embeddings [T, N, features] of x [T, N, ...] and the statistics they were normalised by."""
        with autocast(x.device, self.precision):
            z, used = self._forward(theta, x, stats)
        return scaled(z, self.distance), used

    def _embed_queries(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        return self._embed(theta, x, adapted.stats if self.normalisation == "support" else None)[0]

    def _forward(self, theta: Theta, x: Tensor, stats: Stats | None) -> tuple[Tensor, Stats]:
        # Statistics are each task's own, so that what a task gives does not depend on the tasks beside it.
        if self.normalisation in ("batch", "support"):
            params = {name: value.expand(x.shape[0], *value.shape) for name, value in theta.params.items()}
            return self._net.per_task(params, x, stats)
        if self.normalisation == "running" and theta.running is None:
            tasks = [self._net.shared(theta.params, task) for task in x]
            stacked = {name: torch.stack([used[name] for _, used in tasks]) for name in tasks[0][1]}
            return torch.stack([z for z, _ in tasks]), stacked
        z, used = self._net.shared(theta.params, x.flatten(0, 1), theta.running)
        return z.unflatten(0, x.shape[:2]), used


class WeightedSum(nn.Linear):
    """One number of x [..., n]. Spelt out, as the rounding of a product with a single row varies with its address."""

    def __init__(self, n: int) -> None:
        super().__init__(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight[0]).sum(-1) + self.bias


def members(support: Batch) -> Tensor:
    """Which items are of which class [T, N, way] bool; padding is of none."""
    return F.one_hot(support.y, support.way).bool() & support.mask[..., None]


def prototypes(z: Tensor, support: Batch) -> tuple[Tensor, Tensor]:
    """Each class's mean of z [T, N, d], and how many items it is of: [T, way, d] and [T, way]. Equation 1."""
    member = members(support).to(z.dtype)
    counts = member.sum(1)
    return member.mT @ z / counts[..., None].clamp(min=1), counts


def prototype_layer(prototypes: Tensor, distance: str, theta: Theta) -> tuple[Tensor, Tensor]:
    """The linear layer that prototypes [T, way, d] are: weight [T, way, d], bias [T, way].

    It answers with minus the squared distances to them, but for |z|^2, which is the same for every class (equation 8);
    for the cosine distance with theta's scale times the cosines, of embeddings that have length 1.
    """
    if distance == "cosine":
        weight = theta.params["scale"] * F.normalize(prototypes, dim=-1)
        return weight, torch.zeros_like(weight[..., 0])
    return 2 * prototypes, -prototypes.square().sum(-1)


def scaled(z: Tensor, distance: str) -> Tensor:
    """Embeddings as the distance takes them: of length 1 for cosines, and in float32 at least."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    return F.normalize(z, dim=-1) if distance == "cosine" else z


def linear(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[T, N, way] of z [T, N, d], weight [T, way, d] and bias [T, way]."""
    return z @ weight.mT + bias[:, None]


def by_class(scores: Tensor, member: Tensor) -> Tensor:
    """Log of the sum of exp(scores [T, N, items]) over each class's items, by `member` [T, items, way]: [T, N, way]."""
    least = torch.finfo(scores.dtype).min  # of a class without items, and not -inf, whose gradient is no number
    return scores[..., None].masked_fill(~member[:, None], least).logsumexp(2)
