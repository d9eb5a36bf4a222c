"""Prototypical networks: a class is the mean of its support embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call

from umeta import seeds
from umeta.models.functional import Normalisation, Pure
from umeta.models.precision import Precision, autocast
from umeta.objectives import categorical
from umeta.parts import Model
from umeta.types import Adapted, Batch, EpisodeSpec, Stats, TaskSpec, Theta


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


@dataclass
class ProtoNet(EmbeddingLearner):
    """Prototypical networks (ProtoNet, Snell, Swersky, Zemel 2017, arXiv 1703.05175, equations 1 and 2).

    A prototype is the mean embedding of a class's support; the logits of a query are minus its squared Euclidean
    distances to the prototypes, or its cosines with them times a learnt scale (without which cosines in [-1, 1] cannot
    fit 20 ways). Either is a linear layer on the embedding, from which `steps` of `adapt` can go on.
    """

    model: Model
    """the embedding network"""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """squared Euclidean distance, or cosine with a learnt scale that starts at 10"""
    normalisation: Normalisation = "running"
    """what batch normalisation normalises by (umeta/models/pure.py); `batch` is transductive"""
    precision: Precision = "float32"
    """of the embedding network; `auto` is bfloat16 where the hardware computes with it, which is faster"""
    test_steps: Annotated[int, Ge(0)] = 0
    """steps of Adam at evaluation on the support loss of the linear layer that starts at the prototypes, the embedding
    kept (ProtoTune of ProtoTransfer, Medina, Devos, Grossglauser 2020)"""
    tune_lr: Annotated[float, Gt(0)] = 0.05
    """step size of those steps, relative to the size of the layer's weights"""
    refine: Annotated[int, Ge(0)] = 0
    """steps of soft k-means that move the prototypes towards the queries (Ren et al. 2018, equation 3): transductive"""

    def init(self, spec: TaskSpec, episode: EpisodeSpec, seed: int) -> Theta:
        """Random weights, drawn from `seed`."""
        return self._drawn(spec, seed, None, **({"scale": 10.0} if self.distance == "cosine" else {}))

    @property
    def transductive(self) -> bool:
        """Whether the answer to one query depends on the others."""
        return self.normalisation == "batch" or self.refine > 0

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Prototypes [T, way, features] and how many items each stands for [T, way].

        With `steps` also the linear layer (`weight`, `bias`) that so many steps of Adam reach from them.
        """
        z, stats = self._embed(theta, support.x)
        means, counts = prototypes(z, support)
        adapted = {"prototypes": means, "counts": counts}
        if steps:
            weight, bias = self.layer(theta, adapted["prototypes"])
            adapted["weight"], adapted["bias"] = tuned(weight, bias, z, support, steps, self.tune_lr)
        return Adapted(adapted, stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]."""
        z = self._embed_queries(theta, adapted, x)
        prototypes, counts = adapted.params["prototypes"], adapted.params["counts"]
        if "weight" in adapted.params:
            return linear(z, adapted.params["weight"], adapted.params["bias"])
        moved = prototypes
        for _ in range(self.refine):
            share = linear(z, *self.layer(theta, moved)).softmax(-1)  # [T, N, way]
            total = counts[..., None] * prototypes + share.mT @ z
            moved = total / (counts + share.sum(1))[..., None].clamp(min=torch.finfo(total.dtype).tiny)
        return linear(z, *self.layer(theta, moved))

    def layer(self, theta: Theta, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """The linear layer that prototypes [T, way, features] are: weight of the same shape, bias [T, way]."""
        return prototype_layer(prototypes, self.distance, theta)


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


def tuned(weight: Tensor, bias: Tensor, z: Tensor, support: Batch, steps: int, lr: float) -> tuple[Tensor, Tensor]:
    """A linear layer per task, weight [T, way, d] and bias [T, way], after `steps` of Adam on z [T, N, d]."""
    # Adam's steps do not shrink with the gradient, so they are taken relative to the size of each task's layer.
    size = weight.detach().square().mean((1, 2), keepdim=True).sqrt()
    moves = [torch.zeros_like(weight, requires_grad=True), torch.zeros_like(bias, requires_grad=True)]
    optimiser = torch.optim.Adam(moves, lr=lr)

    def layer() -> tuple[Tensor, Tensor]:
        return weight.detach() + size * moves[0], bias.detach() + size[..., 0] * moves[1]

    with torch.enable_grad():
        for _ in range(steps):
            loss = categorical(linear(z.detach(), *layer()), support).sum()
            for move, grad in zip(moves, torch.autograd.grad(loss, moves), strict=True):
                move.grad = grad
            optimiser.step()
    weight, bias = layer()
    return weight.detach(), bias.detach()
