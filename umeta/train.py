"""Meta-training: sample tasks, adapt to their supports, step on the loss of their queries. The file to read second.

One meta-step is the same for images, environments and functions:

    batch = tasks.sample(...)                        # T tasks
    supports, query = ...                            # of images as they are; of an environment, rolled out in turn
    problem = BatchProblem(learner, theta, ...)      # the query loss after adapting to the supports, and its gradient
    outer.step(problem, progress)                    # Adam asks for the gradient once, TRPO and ProMP for more
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from umeta import seeds
from umeta.config.base import TrainConfig
from umeta.errors import UserError
from umeta.models.functional import average, draw
from umeta.objectives import MEASURES, fisher, kl, loss_of
from umeta.runtime import distributed
from umeta.runtime.checkpoints import State
from umeta.runtime.devices import read
from umeta.runtime.loop import RunContext
from umeta.types import (
    Act,
    Adapted,
    Batch,
    EpisodeSpec,
    MetaLearner,
    OwnMetaGradient,
    PolicyLearner,
    RecurrentLearner,
    Stats,
    TaskBatch,
    TaskDistribution,
    TaskSpec,
    Theta,
)

SMALL = 10_000_000  # weights, which are drawn in no time
LARGEST_ITEM = 1 << 21  # numbers in an item of a stored learner, such as an image of 3 x 836 x 836


def metatrain(
    learner: MetaLearner,
    tasks: TaskDistribution,
    config: TrainConfig,
    ctx: RunContext | None = None,
    start: Theta | None = None,
) -> Theta:
    """Run the outer loop for `config.steps` meta-steps; resumable through `ctx`, which gives seed and device.

    learner: built for `tasks.spec` and `config.episode`; start: weights to begin with, in place of those random weights
    that it has too.

    Raises:
        UserError: the tasks cannot give such episodes, `start` does not fit the learner, the loss stops being finite,
            there is nothing to learn, or there are more processes than tasks in a meta-batch.
    """
    ctx = ctx or RunContext()
    check_share(config)
    outer = copy.deepcopy(config.outer)
    if learner.program:
        ctx.note(learner.program)
    drawn = learner.init(seeds.integer(ctx.seed, "weights"))
    first = distributed.run_once(lambda: drawn)  # other processors may round otherwise
    given = select_shared(start, first, ctx) if start else {}
    params = {}
    for name, value in first.params.items():
        # rounding depends on the memory layout: here it is that of weights read from a file
        initial = given.get(name, value).detach().clone(memory_format=torch.contiguous_format)
        params[name] = initial.to(ctx.device).requires_grad_()
    if not params.keys() - learner.fixed:
        raise UserError("metalearner.model: it has no parameter that meta-training may move; leave some to be trained")
    outer.start({name: value for name, value in params.items() if name not in learner.fixed})
    running: Stats = {n: v.to(ctx.device) for n, v in (first.running or {}).items()}
    running |= dict(start.running or {}) if start else {}

    limit = None if config.minutes is None else 60 * config.minutes
    spent = ctx.watch()

    def progress(i: int) -> float:
        """Return the share of the loop that is over, by steps or time, whichever is more; the same in each process."""
        over = i / config.steps
        return over if limit is None else min(1.0, max(over, distributed.run_once(spent) / limit))

    def step(i: int) -> dict[str, float]:
        nonlocal running
        theta = Theta(params)
        indices = distributed.shard(np.arange(i * config.meta_batch, (i + 1) * config.meta_batch))
        share = len(indices) / config.meta_batch
        batch = tasks.sample(indices, episode=config.episode, seed=ctx.seed)
        if tasks.spec.interactive:
            supports, query = roll_out(learner, theta, batch, len(indices), config.rounds)
        else:
            supports, query = [batch.support()], batch.query()
        over = progress(i)
        problem = BatchProblem(learner.at(over), theta, tasks.spec, supports, query, config.task_chunk, share)
        with explain_size(supports[0].x.shape[2:], tasks.spec.item_shape):
            metrics = outer.step(problem, over)
        running = average(running, problem.stats)
        before = supports[0].score
        if before is not None:
            told = distributed.sum_numbers({"return before": before.mean().item() * share})
            metrics |= told | {"gain": metrics["return"] - told["return before"]}
        return metrics

    def save() -> State:
        return {
            **pack(Theta(params, running)),
            **{f"outer.{name}": value for name, value in outer.state_dict().items()},
        }

    def load(state: State) -> None:
        nonlocal running
        with torch.no_grad():
            for name, value in part(state, "params.").items():
                params[name].copy_(value)
        running = {name: value.to(ctx.device) for name, value in part(state, "running.").items()}
        outer.load_state_dict(part(state, "outer."))

    skip = config.not_a_number == "skip"
    ctx.loop("metatrain", config.steps, step, save, load, config.snapshots, skip, limit)
    return Theta({name: value.detach() for name, value in params.items()}, running)


def roll_out(
    learner: MetaLearner, theta: Theta, batch: TaskBatch, tasks: int, rounds: int
) -> tuple[list[Batch], Batch]:
    """Roll out fresh episodes: a support for each round, by the policy so far, and the query."""
    assert isinstance(learner, PolicyLearner)
    with torch.no_grad():
        adapted = learner.unadapted(theta, tasks)
        supports = []
        for r in range(rounds):
            supports.append(batch.support(policy_of(learner, theta, adapted), r))
            adapted = learner.adapt(theta, supports[-1], start=adapted)
        return supports, batch.query(policy_of(learner, theta, adapted))


def policy_of(learner: PolicyLearner, theta: Theta, adapted: Adapted) -> Act:
    """Return what acts for an episode of each task: the adapted learner."""
    if isinstance(learner, RecurrentLearner):
        return learner.act(theta, adapted)
    return partial(learner.predict, theta, adapted)


class BatchProblem:
    """The meta-loss of one meta-batch: the mean over tasks of the query loss after adapting to the supports in turn.

    Tasks are worked on in chunks with a backward pass each, so that memory is bounded by the chunk. Where several
    processes share the tasks out, each is given its own, which are this `share` of all, and the means are over all.
    Of a learner that goes on learning while it acts, the loss is that of supports and query as one trial.
    """

    def __init__(
        self,
        learner: MetaLearner,
        theta: Theta,
        spec: TaskSpec,
        supports: Sequence[Batch],
        query: Batch,
        chunk: int,
        share: float = 1.0,
    ) -> None:
        if isinstance(learner, RecurrentLearner) and supports:
            supports, query = [], learner.trial([*supports, query])
        self.learner, self.spec, self.supports, self.query = learner, spec, supports, query
        self.theta = replace(theta, running=None)  # normalise by the batch at hand
        self.chunk, self.share = chunk, share
        self.loss, self.measures = loss_of(spec), MEASURES.get(str(spec.objective), {})
        self.stats: Stats = {}  # the supports' normalisation statistics, averaged over the tasks
        self.before: list[Tensor] = []  # what the adapted policies put out when first asked, by chunk
        self.graphs: dict[int, Any] = {}  # what `fisher_vector` differentiates again and again, by chunk

    @property
    def params(self) -> dict[str, Tensor]:
        """What there is to learn."""
        return {name: value for name, value in self.theta.params.items() if name not in self.learner.fixed}

    def loss_and_grad(self, clip: float | None = None) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Return the query loss and other metrics (means over tasks), and the meta-gradient by name."""
        if clip is not None:
            self.check_policies()
        metrics: dict[str, Tensor] = {}
        sums = {f"gradient.{name}": torch.zeros_like(value) for name, value in self.params.items()}
        for i, (supports, query, share) in enumerate(self.chunks()):
            loss, grads, adapted, output = self.differentiate(supports, query, share, clip)
            if self.spec.interactive:
                self.keep_first(i, output)
            found = {name: measure(output, query).mean().double() * share for name, measure in self.measures.items()}
            for name, value in {"loss": loss.detach().double(), **found}.items():
                metrics[name] = metrics.get(name, torch.zeros_like(value)) + value
            for name, grad in grads.items():
                sums[f"gradient.{name}"] += grad
            for name, value in adapted.stats.items():
                sums[f"stats.{name}"] = sums.get(f"stats.{name}", 0) + value.detach().mean(0) * share
        sums = distributed.sum_tensors(sums)
        self.stats = part(sums, "stats.")
        return distributed.sum_numbers(read(metrics)), part(sums, "gradient.")

    def loss_and_kl(self) -> tuple[float, float]:
        """Return the loss, and the mean KL divergence of the adapted policies from what they were when first asked."""
        self.check_policies()
        total, apart = 0.0, 0.0
        for i, (supports, query, share) in enumerate(self.chunks()):
            with torch.no_grad():
                output = self.answer(supports, query)[1]
                total += self.loss(output, query).mean().item() * share
                self.keep_first(i, output)
                apart += kl(self.before[i], output, query).mean().item() * share
        found = distributed.sum_numbers({"loss": total, "kl": apart})
        return found["loss"], found["kl"]

    def keep_first(self, chunk: int, output: Tensor) -> None:
        """Keep the first output of a chunk's adapted policies, before any step has moved them."""
        if len(self.before) == chunk:
            self.before.append(output)

    def fisher_vector(self, vector: dict[str, Tensor], share: float = 1.0) -> dict[str, Tensor]:
        """Return the Gauss-Newton product `J' F J v` (Martens 2020), by parameter name.

        J is the query outputs' Jacobian through the adaptation, F the Fisher information of each output; on every
        `1 / share`-th state of the query, or on all where the learner is recurrent and steps cannot be left out. The
        supports stay whole: fewer would make other adapted policies. Neither the parameters nor `share` may change
        between calls: J is kept, of all chunks.
        """
        self.check_policies()
        leaves = list(self.params.values())
        found = [torch.zeros_like(leaf) for leaf in leaves]
        every = 1 if isinstance(self.learner, RecurrentLearner) else max(1, round(1 / share))
        for i, (supports, query, weight) in enumerate(self.chunks()):
            if i not in self.graphs:
                states = query.subsample(every)
                output = self.answer(supports, states)[1]
                # J' u is linear in u, so that its derivative in direction v is J v
                u = torch.zeros_like(output, requires_grad=True)
                pulled = torch.autograd.grad(output, leaves, u, create_graph=True, materialize_grads=True)
                self.graphs[i] = (output, u, pulled, states)
            output, u, pulled, states = self.graphs[i]
            pushed = torch.autograd.grad(pulled, u, list(vector.values()), retain_graph=True)[0]
            weights = (states.mask / states.mask.sum(1, keepdim=True).to(output))[..., None] * (weight / len(states))
            curved = fisher(output.detach(), pushed) * weights
            products = torch.autograd.grad(output, leaves, curved, retain_graph=True, materialize_grads=True)
            for total, product in zip(found, products, strict=True):
                total += product
        return distributed.sum_tensors(dict(zip(self.params, found, strict=True)))

    def differentiate(
        self, supports: Sequence[Batch], query: Batch, share: float, clip: float | None
    ) -> tuple[Tensor, dict[str, Tensor], Adapted, Tensor]:
        """Return a chunk's share of the loss and of what is descended, the adapted learner and its output."""
        params = self.params
        if isinstance(self.learner, OwnMetaGradient):
            adapted, own = self.learner.meta_gradient(self.theta, supports[-1], query)
            with torch.no_grad():
                output = self.learner.predict(self.theta, adapted, query.x)
                loss = self.loss(output, query).mean() * share
            return loss, {name: own[name] * share for name in params}, adapted, output
        adapted, output = self.answer(supports, query)
        loss = self.loss(output, query, **({} if clip is None else {"clip": clip})).mean() * share
        grads = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
        return loss, dict(zip(params, grads, strict=True)), adapted, output.detach()

    def answer(self, supports: Sequence[Batch], query: Batch) -> tuple[Adapted, Tensor]:
        """Adapt to the supports in turn; return the adapted learner and its output for the query."""
        adapted = None
        for support in supports:
            adapted = self.learner.adapt(self.theta, support, start=adapted)
        if isinstance(self.learner, RecurrentLearner):
            adapted = adapted or self.learner.unadapted(self.theta, len(query))
            return adapted, self.learner.replay(self.theta, adapted, query)
        assert adapted is not None
        return adapted, self.learner.predict(self.theta, adapted, query.x)

    def chunks(self) -> Iterator[tuple[list[Batch], Batch, float]]:
        """Yield the supports and queries of a few tasks at a time, and their share of all processes' tasks."""
        for start in range(0, len(self.query), self.chunk):
            supports = [batch.chunk(start, start + self.chunk) for batch in self.supports]
            query = self.query.chunk(start, start + self.chunk)
            yield supports, query, self.share * len(query) / len(self.query)

    def check_policies(self) -> None:
        """Raise UserError on images, where there is no policy to keep near the one that acted."""
        if not self.spec.interactive:
            raise UserError("train.outer: trpo and promp are for environments; on images use adam")


def check_share(config: TrainConfig) -> None:
    """Raise UserError where there are more processes than tasks in a meta-batch."""
    if config.meta_batch < distributed.size():
        raise UserError(
            f"train.meta_batch: {config.meta_batch} tasks are too few for {distributed.size()} processes; start "
            f"{config.meta_batch} at most, or set train.meta_batch={distributed.size()} or more"
        )


def select_shared(start: Theta, first: Theta, ctx: RunContext) -> dict[str, Tensor]:
    """Select the parameters of `start` that the learner has too.

    Raises:
        UserError: none is, or one has another shape.
    """
    shared = {name: value for name, value in start.params.items() if name in first.params}
    for name, value in shared.items():
        if value.shape != first.params[name].shape:
            raise UserError(
                f"start: its parameter '{name}' has shape {tuple(value.shape)}, the learner's has "
                f"{tuple(first.params[name].shape)}; start from a run with the same model"
            )
    if not shared:
        raise UserError("start: it has none of the learner's parameters; start from a run with the same model")
    if fresh := [name for name in first.params if name not in shared]:
        ctx.note(f"start: {len(shared)} parameters taken over; at random: {', '.join(fresh)}")
    return shared


@contextmanager
def explain_size(seen: tuple[int, ...], item_shape: tuple[int, ...]) -> Iterator[None]:
    """Raise UserError where a learner fails on items of another shape than those it was built for."""
    try:
        yield
    except RuntimeError as error:
        if seen == item_shape or isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            f"proposer.augment.side: the learner was built for items of shape {item_shape} and cannot take "
            f"views of {tuple(seen)}; leave it out, or choose a learner that compares features, such as protonet, and "
            "a network that takes any size, such as resnet9"
        ) from error


def check_fits(
    params: Mapping[str, Tensor], learner: MetaLearner, spec: TaskSpec, episode: EpisodeSpec, place: Any
) -> None:
    """Check stored parameters against those the learner would have, without taking the memory for them.

    Raises:
        UserError: items that are no images or vectors, or parameters that are missing or of another type or shape.
    """
    shape = spec.item_shape
    if not all(isinstance(n, int) and n > 0 for n in shape) or not 0 < math.prod(shape) <= LARGEST_ITEM:
        raise UserError(f"{place}: items of shape {shape}, expected 1 to {LARGEST_ITEM:,} numbers")
    most = min(SMALL, sum(value.numel() for value in params.values()))
    try:
        with nullcontext() if is_small(learner, shape, most) else torch.device("meta"):
            expected = learner.build(spec, episode).init(seed=0).params
    except Exception:  # a network that reads what it computes needs content
        expected = learner.build(spec, episode).init(seed=0).params
    for name, value in expected.items():
        if name not in params or (params[name].shape, params[name].dtype) != (value.shape, value.dtype):
            found = f"{params[name].dtype} {tuple(params[name].shape)}" if name in params else "missing"
            raise UserError(
                f"{place}: weights that do not fit its configuration: '{name}' is {found}, expected {value.dtype} "
                f"{tuple(value.shape)}"
            )


def is_small(learner: MetaLearner, item_shape: tuple[int, ...], most: int) -> bool:
    """Tell whether a learner's network has at most `most` weights; the first one beyond ends its making.

    It is not counted on torch's meta device, as running a network there makes torch import for seconds.
    """
    count = 0

    def stop(module: nn.Module, name: str, weight: nn.Parameter) -> None:
        nonlocal count
        count += weight.numel()
        if count > most:
            raise MemoryError(f"more than {most} weights")  # before any of them has a value, which takes the memory

    model: Any = getattr(learner, "model", None)
    hook = register_module_parameter_registration_hook(stop)
    try:
        draw(lambda: model.build(item_shape), seed=0)
        return True
    except Exception:  # more, or code of anybody's
        return False
    finally:
        hook.remove()


def pack(theta: Theta) -> State:
    """Return what was learnt as tensors by name, for a file; `unpack` undoes it."""
    return {
        **{f"params.{name}": value.detach() for name, value in theta.params.items()},
        **{f"running.{name}": value for name, value in (theta.running or {}).items()},
    }


def unpack(state: State, device: torch.device | str = "cpu") -> Theta:
    """Return what was learnt, on a device, out of tensors by name; others among them are passed over."""
    params, running = ({n: v.to(device) for n, v in part(state, kind).items()} for kind in ("params.", "running."))
    return Theta(params, running or None)


def part(state: State, prefix: str) -> State:
    """Select the entries under a prefix, and leave it out of their names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
