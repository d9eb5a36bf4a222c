"""Meta-training: sample tasks, adapt on their support, step on the loss of their query."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.config import TrainConfig
from umeta.context import RunContext, State
from umeta.errors import UserError
from umeta.models.pure import average
from umeta.objectives import OBJECTIVES, accuracy
from umeta.types import Batch, MetaLearner, Stats, TaskDistribution, TaskSpec, Theta


class BatchProblem:
    """The meta-loss of one meta-batch: the mean over tasks of the query loss after adapting on the support.

    Tasks are worked on in chunks with a backward pass each, so that memory is bounded by the chunk.
    """

    def __init__(
        self, learner: MetaLearner, theta: Theta, spec: TaskSpec, support: Batch, query: Batch, chunk: int
    ) -> None:
        self.learner, self.theta, self.support, self.query, self.chunk = learner, theta, support, query, chunk
        self.loss = OBJECTIVES[spec.objective]
        self.stats: Stats = {}  # the supports' normalisation statistics, averaged over the tasks

    def loss_and_grad(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Query loss and accuracy (means over tasks), and the meta-gradient by parameter name."""
        names, leaves = list(self.theta.params), list(self.theta.params.values())
        grads = [torch.zeros_like(leaf) for leaf in leaves]
        total, right = 0.0, 0.0
        stats: Stats = {}
        in_training = replace(self.theta, running=None)  # normalise by the batch at hand
        for start in range(0, len(self.support), self.chunk):
            support, query = (b.chunk(start, start + self.chunk) for b in (self.support, self.query))
            share = len(support) / len(self.support)
            adapted = self.learner.adapt(in_training, support)
            output = self.learner.predict(in_training, adapted, query.x)
            loss = self.loss(output, query).mean() * share
            for total_grad, grad in zip(grads, torch.autograd.grad(loss, leaves, materialize_grads=True), strict=True):
                total_grad += grad
            total += loss.item()
            right += accuracy(output.detach(), query).mean().item() * share
            for name, value in adapted.stats.items():
                stats[name] = stats.get(name, 0) + value.detach().mean(0) * share
        self.stats = stats
        return {"loss": total, "accuracy": right}, dict(zip(names, grads, strict=True))


def metatrain(
    learner: MetaLearner,
    tasks: TaskDistribution,
    config: TrainConfig,
    ctx: RunContext | None = None,
    start: Theta | None = None,
) -> Theta:
    """Runs the outer loop for `config.steps` meta-steps; resumable through `ctx`, which gives seed and device.

    start: weights to begin with; those of the learner's parameters that it lacks begin at random.

    Raises:
        UserError: the tasks cannot give such episodes, `start` does not fit the learner, or the loss stops being a
            number.
    """
    ctx = ctx or RunContext()
    outer = copy.deepcopy(config.outer)
    first = learner.init(tasks.spec, config.episode, seeds.integer(ctx.seed, "weights"))
    given = fitting(start, first, ctx) if start else {}
    params = {n: given.get(n, v).detach().clone().to(ctx.device).requires_grad_() for n, v in first.params.items()}
    outer.start(params)
    running: Stats = dict(start.running or {}) if start else {}

    def step(i: int) -> dict[str, float]:
        nonlocal running
        indices = np.arange(i * config.meta_batch, (i + 1) * config.meta_batch)
        batch = tasks.sample(indices, episode=config.episode, seed=ctx.seed)
        problem = BatchProblem(learner, Theta(params), tasks.spec, batch.support(), batch.query(), config.task_chunk)
        metrics = outer.step(problem, i / config.steps)
        running = average(running, problem.stats)
        return metrics

    def save() -> State:
        return {
            **packed(Theta(params, running)),
            **{f"outer.{name}": value for name, value in outer.state_dict().items()},
        }

    def load(state: State) -> None:
        nonlocal running
        with torch.no_grad():
            for name, value in part(state, "params.").items():
                params[name].copy_(value)
        running = {name: value.to(ctx.device) for name, value in part(state, "running.").items()}
        outer.load_state_dict(part(state, "outer."))

    ctx.loop("metatrain", config.steps, step, save, load, config.snapshots)
    return Theta({name: value.detach() for name, value in params.items()}, running)


def fitting(start: Theta, first: Theta, ctx: RunContext) -> dict[str, Tensor]:
    """The parameters of `start` that the learner has too.

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


def packed(theta: Theta) -> State:
    """What was learnt as tensors by name, for a file; `unpacked` undoes it."""
    return {
        **{f"params.{name}": value.detach() for name, value in theta.params.items()},
        **{f"running.{name}": value for name, value in (theta.running or {}).items()},
    }


def unpacked(state: State, device: torch.device | str = "cpu") -> Theta:
    """What was learnt, on a device, out of tensors by name; others among them are passed over."""
    params, running = ({n: v.to(device) for n, v in part(state, kind).items()} for kind in ("params.", "running."))
    return Theta(params, running or None)


def part(state: State, prefix: str) -> State:
    """The entries under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
