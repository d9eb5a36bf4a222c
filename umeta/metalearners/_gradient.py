"""What learners share that adapt by gradient steps: a network with a linear head, and the inner loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from umeta.errors import UserError
from umeta.metalearners._embedding import prototype_layer, prototypes, scaled
from umeta.models.functional import Normalisation, Pure
from umeta.models.kernels import channels_last
from umeta.models.precision import Precision, autocast
from umeta.objectives import OBJECTIVES
from umeta.parts import Model
from umeta.types import Adapted, Batch, EpisodeSpec, Stats, TaskSpec, Theta

Answer = Callable[[dict[str, Tensor]], tuple[Tensor, Stats]]
Step = Callable[..., dict[str, Tensor]]
HEAD = ("head.weight", "head.bias")


class GradientLearner:
    """What learners share that adapt by gradient steps: a network with a linear head, and the inner loop.

    A subclass is a dataclass with at least the options that have no value here; `MAML` says what each of them is.
    """

    regresses: ClassVar[bool] = True
    model: Model
    inner_lr: float
    steps: int
    schedule: Literal["constant", "harmonic"] = "constant"
    first_order: bool = False
    recompute: bool = False
    scale_by_way: bool = False
    head: Literal["shared", "fixed", "prototypes"]
    distance: Literal["euclidean", "cosine"] = "euclidean"
    normalisation: Normalisation
    precision: Precision = "float32"
    _net: Pure
    _outputs: int = 0

    def init(self, spec: TaskSpec, episode: EpisodeSpec, seed: int) -> Theta:
        """Random weights, drawn from `seed`."""
        self._net = Pure.build(self.model, spec.item_shape, self.normalisation, seed)
        self._loss = OBJECTIVES[spec.objective]
        self._outputs = spec.outputs
        width = self._net.features(spec.item_shape)
        rows = spec.outputs or (episode.way if self.head == "fixed" else 1)
        weight = torch.empty(rows, width).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed)) / width**0.5
        head = {"head.weight": weight, "head.bias": torch.zeros(rows), "head.free": torch.zeros(spec.free)}
        head = {name: value for name, value in head.items() if len(value)}
        own = self._own(self._net.params(head))
        if self._from_prototypes:
            head = {"scale": torch.tensor(10.0)} if self.distance == "cosine" else {}
        return Theta(self._net.params({**head, **own}))

    @property
    def transductive(self) -> bool:
        """Whether the answer to one query depends on the others."""
        return self.normalisation == "batch"

    @property
    def one_way(self) -> bool:
        """Whether it can do the way of its meta-training alone."""
        return self.head == "fixed"

    @property
    def program(self) -> str:
        """How the network runs at the tasks' own weights, for the log."""
        return f"the network runs {self._net.program}"

    def features(self, theta: Theta, x: Tensor) -> Tensor:
        """What the network, not adapted, gives its linear head: [n, features] of x [n, ...]."""
        return scaled(self._net.shared(theta.params, x, theta.running)[0], self.distance)

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Fast weights [T, ...] after `steps` inner steps, from theta or from `start`.

        Differentiable with respect to theta where autograd is on.
        """
        lr = self.inner_lr * (support.way if self.scale_by_way else 1)
        frozen = theta.running if self.normalisation == "running" else None
        begun = self._begin(theta, support)
        fast = start.params if start else begun
        taken = start.steps if start else 0
        moving = [name for name in fast if self._adapts(name)]
        answer = self._answering(fast, support.x, frozen)
        differentiable = torch.is_grad_enabled() and any(value.requires_grad for value in fast.values())

        def stepped(fast: dict[str, Tensor], size: float, keep: bool) -> dict[str, Tensor]:
            logits, _ = answer(fast)
            loss = self._loss(logits, support).sum()  # tasks do not interact, so each gets its own gradient
            grads = torch.autograd.grad(
                loss, [fast[name] for name in moving], create_graph=keep, materialize_grads=True
            )
            moves = self._moves(theta, begun, fast, dict(zip(moving, grads, strict=True)), size)
            return {name: value - moves[name] if name in moves else value for name, value in fast.items()}

        with torch.enable_grad():
            for _ in range(self.steps if steps is None else steps):
                taken += 1
                size = lr / taken if self.schedule == "harmonic" else lr
                if not differentiable:
                    fast = {name: value.detach().requires_grad_(name in moving) for name, value in fast.items()}
                second_order = differentiable and not self.first_order
                if second_order and self.recompute:
                    new = Recomputed.apply(partial(stepped, size=size), list(fast), *fast.values())
                    fast = dict(zip(fast, new, strict=True))
                else:
                    fast = stepped(fast, size, second_order)
        if not differentiable:
            fast = {name: value.detach() for name, value in fast.items()}
        if self.normalisation in ("batch", "group") or not self._net.layers:
            return Adapted(fast, steps=taken)
        return Adapted(fast, frozen or answer(fast)[1], taken)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Logits [T, N, way] of x [T, N, ...]; what the tasks ask to predict, where that is not classes."""
        # In meta-training `running` is normalised by the batch at hand, which for queries is the query batch.
        stats = None if self.normalisation == "running" and theta.running is None else adapted.stats or None
        with autocast(x.device, self.precision):
            features, _ = self._net.per_task(adapted.params, x, stats)
        return self._linear(adapted.params, features)

    def unadapted(self, theta: Theta, tasks: int) -> Adapted:
        """The initialisation itself, for so many tasks: what acts before anything is known of them."""
        return Adapted(self._expand(theta, tasks, 1))

    def _own(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """What theta holds beside the weights: parameters of the inner loop itself."""
        return {}

    def _adapts(self, name: str) -> bool:
        """Whether the inner loop moves the weight of this name."""
        return True

    def _moves(
        self, theta: Theta, begun: dict[str, Tensor], fast: dict[str, Tensor], grads: dict[str, Tensor], size: float
    ) -> dict[str, Tensor]:
        """What one inner step of this size takes off the fast weights, which began as `begun`."""
        return {name: size * grad for name, grad in grads.items()}

    def _answering(self, fast: dict[str, Tensor], x: Tensor, stats: Stats | None) -> Answer:
        """The output for x, and the statistics used, as a function of the fast weights on their way from `fast`."""
        return lambda fast: self._forward(fast, x, stats)

    @property
    def _from_prototypes(self) -> bool:
        return self.head == "prototypes" and not self._outputs

    def _begin(self, theta: Theta, support: Batch) -> dict[str, Tensor]:
        """The weights [T, ...] that the inner loop starts from."""
        fast = self._expand(theta, len(support), support.way)
        if self._from_prototypes:
            frozen = theta.running if self.normalisation == "running" else None
            # Other copies of the weights: an inner step holds the layer that the prototypes were for what it is.
            apart = self._expand(theta, len(support), support.way)
            z, _ = self._net.per_task(apart, support.x, frozen)
            means, _ = prototypes(scaled(z, self.distance), support)
            weight, bias = prototype_layer(means, self.distance, theta)
            fast["head.weight"] = weight
            fast["head.bias"] = bias if bias.requires_grad else bias.requires_grad_(weight.requires_grad)
        return fast

    def _pulled(self, theta: Theta, support: Batch, apart: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradient, mean over tasks, for theta that one [T, ...] for what the inner loop begins from is."""
        with torch.enable_grad():
            begun = self._begin(theta, support)
            grads = torch.autograd.grad(
                list(begun.values()), list(theta.params.values()), [apart[n] for n in begun], materialize_grads=True
            )
        return {name: grad / len(support) for name, grad in zip(theta.params, grads, strict=True)}

    def _expand(self, theta: Theta, tasks: int, way: int) -> dict[str, Tensor]:
        params = {n: p for n, p in theta.params.items() if n in self._net.names or n.startswith("head.")}
        params = {n: channels_last(p) for n, p in params.items()}  # once, and not at each inner step
        if self.head == "prototypes" or self._outputs:
            return {name: value.expand(tasks, *value.shape) for name, value in params.items()}
        rows = params["head.bias"].shape[0]
        if self.head == "fixed" and rows != way:
            raise UserError(f"maml: its head was meta-trained for {rows} ways, not {way}; meta-train with head: shared")
        shape = {n: (way, *p.shape[1:]) if n in HEAD else p.shape for n, p in params.items()}
        return {name: value.expand(tasks, *shape[name]) for name, value in params.items()}

    def _forward(self, fast: dict[str, Tensor], x: Tensor, stats: Stats | None) -> tuple[Tensor, Stats]:
        features, used = self._net.per_task(fast, x, stats)
        return self._linear(fast, features), used

    def _linear(self, fast: dict[str, Tensor], features: Tensor) -> Tensor:
        out = torch.baddbmm(fast["head.bias"][:, None], scaled(features, self.distance), fast["head.weight"].mT)
        if "head.free" in fast:
            out = torch.cat([out, fast["head.free"][:, None].expand(*out.shape[:2], -1)], -1)
        return out


class Recomputed(torch.autograd.Function):
    """An inner step that keeps nothing but its weights; its vector-Jacobian product does the step again."""

    @staticmethod
    def forward(ctx: Any, step: Step, names: list[str], *values: Tensor) -> tuple[Tensor, ...]:
        ctx.step, ctx.names = step, names
        ctx.save_for_backward(*values)
        return tuple(value.detach() for value in Recomputed.run(ctx, values, keep=False)[1])

    @staticmethod
    def run(ctx: Any, values: tuple[Tensor, ...], keep: bool) -> tuple[list[Tensor], list[Tensor]]:
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in values]
            return leaves, list(ctx.step(dict(zip(ctx.names, leaves, strict=True)), keep=keep).values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:
        leaves, new = Recomputed.run(ctx, ctx.saved_tensors, keep=True)
        return None, None, *torch.autograd.grad(new, leaves, cotangents, materialize_grads=True)
