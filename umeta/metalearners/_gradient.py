"""What learners share that adapt by gradient steps: a network with a linear head, and the inner loop's machinery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import Gt
from torch import Tensor
from torch.autograd.function import once_differentiable

from umeta.errors import UserError
from umeta.metalearners._embedding import prototype_layer, prototypes
from umeta.metalearners._network import NetworkLearner, for_distance
from umeta.models.functional import Normalisation
from umeta.models.kernels import channels_last
from umeta.models.precision import autocast
from umeta.objectives import kl, loss_of
from umeta.parts import Model
from umeta.types import Adapted, Batch, EpisodeSpec, PolicyLearner, Stats, TaskSpec, Theta, along

Weights = dict[str, Tensor]  # by name, [T, ...]: those of each task
HEAD = ("head.weight", "head.bias")
TRIES = 5  # sizes of a step on the way to the one that moves a policy by `inner_kl` nats
ENOUGH = 500  # states of a task that tell how far a step moves its policy
FIRST = 0.5  # the length of the first step that is tried, in the space of the weights


@dataclass
class GradientLearner(NetworkLearner):
    """A learner that takes gradient steps on the support: plain ones, where a subclass writes no other `adapt`.

    The network ends in a linear head. The weights of all tasks stand side by side, and one pass does all of them.
    """

    model: Model
    """the network below the linear head"""
    inner_lr: Annotated[float, Gt(0)] = 0.5
    """inner step size, for the mean loss"""
    steps: Annotated[int, Gt(0)] = 5
    """inner steps in meta-training"""
    test_steps: Annotated[int, Gt(0)] | None = None
    """inner steps at evaluation; by default those of meta-training"""
    schedule: Literal["constant", "harmonic"] = "constant"
    """`harmonic` divides the inner step size by the number of the step, counted on over rounds and at test: needed
    where the loss does not shrink by itself near the goal, as with normalised advantages"""
    head: Literal["shared", "fixed", "prototypes"] = "shared"
    """`shared`: one learnt row, copied to every class, so any way can be asked for (UNICORN-MAML, Ye and Chao 2022);
    `fixed`: a row per class, for tasks of the way it was meta-trained on; `prototypes`: nothing learnt, the inner loop
    starts at the layer that the support's prototypes are (ProtoMAML, Triantafillou et al. 2020), for any way"""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """`cosine` gives the head features of length 1; prototypes then make a layer of cosines times a learnt scale that
    starts at 10, as in `protonet`"""
    normalisation: Normalisation = "support"
    """what batch normalisation normalises by (umeta/models/functional.py); `batch` is transductive"""

    family: ClassVar[str] = "by gradient steps"
    regresses: ClassVar[bool] = True
    first_order = False

    def build(self, spec: TaskSpec, episode: EpisodeSpec) -> Self:
        """Return a copy with the network for such tasks.

        Raises:
            UserError: the model cannot take such items.
        """
        if spec.interactive and self.distance == "cosine":
            raise UserError("metalearner.distance: cosines are between images; on an environment leave it at euclidean")
        learner = super().build(spec, episode)
        network = learner.built.network
        if self.twice and network.once:
            name = type(network.module).__name__
            raise UserError(
                f"metalearner.model: torch cannot differentiate {name} twice ({network.once}); set "
                "metalearner.first_order: true where the learner has it, or take metalearner: reptile or protonet"
            )
        return learner

    @property
    def task_by_task(self) -> bool:
        """Whether each task has weights or statistics of its own in the network."""
        return True

    @property
    def twice(self) -> bool:
        """Whether meta-training takes second derivatives of the network."""
        return False

    @property
    def one_way(self) -> bool:
        """Whether it can do the way of its meta-training alone."""
        return self.head == "fixed"

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]; what the tasks ask to predict, where that is not classes."""
        # In meta-training `running` is normalised by the batch at hand, which for queries is the query batch.
        stats = None if self.normalisation == "running" and theta.running is None else adapted.stats or None
        with autocast(x.device, self.precision):
            features, _ = self.built.network.per_task(adapted.params, x, stats)
        return self._answer(adapted.params, features)

    def begin(self, theta: Theta, support: Batch) -> Weights:
        """Return the weights with which each task's inner loop begins."""
        phi = self._expand(theta, len(support), support.way)
        if self._from_prototypes:
            # Other copies of the weights: an inner step holds the layer that the prototypes were for what it is.
            apart = self._expand(theta, len(support), support.way)
            z, _ = self.built.network.per_task(apart, support.x, self.frozen(theta))
            means, _ = prototypes(for_distance(z, self.distance), support)
            weight, bias = prototype_layer(means, self.distance, theta)
            phi["head.weight"] = weight
            phi["head.bias"] = bias if bias.requires_grad else bias.requires_grad_(weight.requires_grad)
        return phi

    def pull_back(self, theta: Theta, support: Batch, gradient: Weights) -> dict[str, Tensor]:
        """Pull a gradient with respect to the inner loop's starting weights back to theta, as a mean over tasks."""
        with torch.enable_grad():
            begun = self.begin(theta, support)
            grads = torch.autograd.grad(
                list(begun.values()), list(theta.params.values()), [gradient[n] for n in begun], materialize_grads=True
            )
        return {name: grad / len(support) for name, grad in zip(theta.params, grads, strict=True)}

    def frozen(self, theta: Theta) -> Stats | None:
        """Return the fixed statistics that normalise support and queries alike; None where each task has its own."""
        return theta.running if self.normalisation == "running" else None

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Adapt each task's weights [T, ...] by gradient descent."""
        return InnerLoop(self, theta, support, start).descend(self.inner_lr, steps)

    def adapts_weight(self, name: str) -> bool:
        """Whether the inner loop moves the weight of this name."""
        return True

    def inner_loss(self, theta: Theta, output: Tensor, support: Batch) -> Tensor:
        """Return what the inner loop descends [T], by default the tasks' own loss of the support's output."""
        return loss_of(self.built.spec)(output, support)

    def _make_parameters(self, weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        """Make the head, what the inner loop itself has to learn, and the learner's own module."""
        spec, width = self.built.spec, self.built.features
        rows = spec.outputs or (self.built.episode.way if self.head == "fixed" else 1)
        weight = torch.empty(rows, width).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed)) / width**0.5
        head = {"head.weight": weight, "head.bias": torch.zeros(rows), "head.free": torch.zeros(spec.free)}
        head = {name: value for name, value in head.items() if len(value)}
        moved = {name: value for name, value in weights.items() if name not in self.fixed}
        inner = self._make_inner({**moved, **head})
        if self._from_prototypes:
            head = {"scale": torch.tensor(self.scale)} if self.distance == "cosine" else {}
        return {**head, **inner, **super()._make_parameters(weights, seed)}

    def _make_inner(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make the parameters of the inner loop itself, for these weights."""
        return {}

    @property
    def _from_prototypes(self) -> bool:
        return self.head == "prototypes" and not self.built.spec.outputs

    def _expand(self, theta: Theta, tasks: int, way: int) -> Weights:
        """Copy theta's weights for each task, and the head's shared row for each class."""
        names = self.built.network.names
        params = {n: p for n, p in theta.params.items() if n in names or n.startswith("head.")}
        if self.built.network.batched:  # as its program wants them: once, and not at each inner step
            params = {n: channels_last(p) for n, p in params.items()}
        if self.head == "prototypes" or self.built.spec.outputs:
            return {name: value.expand(tasks, *value.shape) for name, value in params.items()}
        rows = params["head.bias"].shape[0]
        if self.head == "fixed" and rows != way:
            raise UserError(f"maml: its head was meta-trained for {rows} ways, not {way}; meta-train with head: shared")
        shape = {n: (way, *p.shape[1:]) if n in HEAD else p.shape for n, p in params.items()}
        return {name: value.expand(tasks, *shape[name]) for name, value in params.items()}

    def _answer(self, phi: Weights, features: Tensor) -> Tensor:
        """Return the head's output [T, N, ...] for features [T, N, d]."""
        out = torch.baddbmm(phi["head.bias"][:, None], for_distance(features, self.distance), phi["head.weight"].mT)
        if "head.free" in phi:
            out = torch.cat([out, phi["head.free"][:, None].expand(*out.shape[:2], -1)], -1)
        return out


@dataclass
class UnrolledLearner(GradientLearner, PolicyLearner):
    """A gradient learner whose outer step differentiates through the steps of its inner loop."""

    first_order: bool = False
    """leave out second derivatives"""

    @property
    def twice(self) -> bool:
        """Whether meta-training takes second derivatives of the network."""
        return not self.first_order

    def unadapted(self, theta: Theta, tasks: int) -> Adapted:
        """Return the initialisation for `tasks` tasks: what acts before anything is known of them."""
        return Adapted(self._expand(theta, tasks, 1))


class InnerLoop:
    """The inner loops of T tasks, side by side: where they begin, their gradients, and what they end in.

    Differentiable with respect to theta where autograd is on; where it is off no step remembers the one before.
    """

    def __init__(self, learner: GradientLearner, theta: Theta, support: Batch, start: Adapted | None) -> None:
        self.learner, self.theta, self.support = learner, theta, support
        self.start = start.params if start else self.begun  # the weights that they begin with
        self.taken = start.steps if start else 0
        self.moving = [n for n in self.start if learner.adapts_weight(n) and n not in learner.fixed]
        self.stats = learner.frozen(theta)
        self.differentiable = torch.is_grad_enabled() and any(value.requires_grad for value in self.start.values())
        self.second_order = self.differentiable and not learner.first_order
        self.loss = support.x.new_zeros(len(support))  # of each task's support, where the last gradient was taken
        self.seen: tuple[Tensor, Stats] | None = None
        if not learner.recompute and all(name.startswith("head.") for name in self.moving):
            self.seen = self._see(self.start)  # the network stays as it is: once for all steps

    @cached_property
    def begun(self) -> Weights:
        """The weights that theta has them begin with, for which `prototypes` takes a pass over the support."""
        return self.learner.begin(self.theta, self.support)

    def sizes(self, lr: float, steps: int | None) -> Iterator[float]:
        """Return the size of each step, by the learner's schedule, and count the steps."""
        for _ in range(self.learner.steps if steps is None else steps):
            self.taken += 1
            yield lr / self.taken if self.learner.schedule == "harmonic" else lr

    def gradient(self, phi: Weights) -> Weights:
        """Return the gradient of each task's support loss at phi, for the weights that the loop moves."""
        if not self.second_order:
            phi = {name: value.detach().requires_grad_(name in self.moving) for name, value in phi.items()}
        if self.second_order and self.learner.recompute:
            grads = Recomputed.apply(self._differentiate, list(phi), *phi.values())
        else:
            grads = self._differentiate(phi, self.second_order)
        return dict(zip(self.moving, grads, strict=True))

    def descend(self, rate: float, steps: int | None) -> Adapted:
        """Take all steps of plain gradient descent; return the adapted learner."""
        phi = self.start
        for size in self.sizes(rate, steps):
            phi = self.move(phi, self.gradient(phi), size)
        return self.finish(phi)

    def move(self, phi: Weights, gradient: Weights, size: Tensor | float) -> Weights:
        """Step down the gradient; size: a number, or one for each task [T]."""
        return phi | {
            name: phi[name] - (along(size, g) if isinstance(size, Tensor) else size) * g for name, g in gradient.items()
        }

    def move_by(self, phi: Weights, gradient: Weights, nats: float) -> Weights:
        """Step down the gradient until the policy's mean KL divergence on the support is `nats`, in each task.

        The divergence grows about as the square of the size. A gradient of zero moves nothing.
        """
        with torch.no_grad():
            every = max(1, int(self.support.mask.sum(1).min()) // ENOUGH)
            few = InnerLoop(self.learner, self.theta, self.support.subsample(every), Adapted(phi))
            before = few.answer(phi)
            length = torch.stack([g.flatten(1).norm(dim=1) for g in gradient.values()]).norm(dim=0)
            size = FIRST / length.clamp(min=1e-30)  # of no gradient it stays finite through all tries
            for _ in range(TRIES):
                apart = kl(before, few.answer(self.move(phi, gradient, size)), few.support)
                size = size * (nats / apart).sqrt().clamp(0.1, 10)
        return self.move(phi, gradient, size)

    def answer(self, phi: Weights) -> Tensor:
        """Return the output for the support."""
        return self.learner._answer(phi, self._see(phi)[0])

    def finish(self, phi: Weights) -> Adapted:
        """Return the adapted learner: the weights phi, and the support's statistics at them."""
        if not self.differentiable:
            phi = {name: value.detach() for name, value in phi.items()}
        if self.learner.normalisation in ("batch", "group") or not self.learner.built.network.layers:
            return Adapted(phi, steps=self.taken)
        return Adapted(phi, self.stats or self._see(phi)[1], self.taken)

    def _differentiate(self, phi: Weights, keep: bool) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            loss = self.learner.inner_loss(self.theta, self.answer(phi), self.support)
            self.loss = loss.detach()
            leaves = [phi[name] for name in self.moving]
            # tasks do not interact, so each gets its own gradient
            return torch.autograd.grad(loss.sum(), leaves, create_graph=keep, materialize_grads=True)

    def _see(self, phi: Weights) -> tuple[Tensor, Stats]:
        """Return the support's features and the statistics they were normalised by."""
        return self.seen or self.learner.built.network.per_task(phi, self.support.x, self.stats)


class Recomputed(torch.autograd.Function):
    """A gradient that keeps nothing but the weights it was taken at; its vector-Jacobian product takes it again."""

    @staticmethod
    def forward(ctx: Any, differentiate: Callable[..., tuple], names: list[str], *values: Tensor) -> tuple[Tensor, ...]:
        ctx.differentiate, ctx.names = differentiate, names
        ctx.save_for_backward(*values)
        return tuple(Recomputed.run(ctx, values, keep=False)[1])

    @staticmethod
    def run(ctx: Any, values: tuple[Tensor, ...], keep: bool) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        leaves = [value.detach().requires_grad_() for value in values]
        return leaves, ctx.differentiate(dict(zip(ctx.names, leaves, strict=True)), keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:
        leaves, grads = Recomputed.run(ctx, ctx.saved_tensors, keep=True)
        return None, None, *torch.autograd.grad(grads, leaves, cotangents, materialize_grads=True)
