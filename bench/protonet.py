"""A step of prototypical networks by umeta and by the loop that everybody writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F

from bench.maml import OUTER_LR, Case
from umeta.metalearners.protonet import ProtoNet
from umeta.models.conv4 import Conv4
from umeta.outer.adam import Adam
from umeta.train import BatchProblem
from umeta.types import EpisodeSpec, TaskSpec, Theta


def umeta(
    precision: Literal["float32", "bfloat16"], down: Literal["pool", "pool_first"] = "pool", **options: Any
) -> Callable[[], None]:
    """As `umeta metatrain` takes it. `pool_first` is another network, as accurate (umeta/models/conv4.py)."""
    meta = problem(precision, down, **options)
    outer = Adam(lr=OUTER_LR)
    outer.start(meta.theta.params)

    def step() -> None:
        outer.step(meta, 0.0)

    return step


def problem(
    precision: Literal["float32", "bfloat16"], down: Literal["pool", "pool_first"] = "pool", **options: Any
) -> BatchProblem:
    case = Case(**options)
    support, query = case.batches()
    spec, episode = TaskSpec(tuple(support.x.shape[2:])), EpisodeSpec(case.way, case.shot, case.query)
    learner = ProtoNet(Conv4(case.filters, down=down), precision=precision).build(spec, episode)
    theta = learner.init(seed=0)
    theta = Theta({name: value.to(case.device).requires_grad_() for name, value in theta.params.items()})
    return BatchProblem(learner, theta, spec, [support], query, case.tasks)


def plain(**options: Any) -> Callable[[], None]:
    """PyTorch as it comes: an `nn.Sequential` in training mode, `cdist`, Adam."""
    case = Case(**options)
    net = case.network()[:-1]  # without the head
    optimiser = torch.optim.Adam(net.parameters(), lr=OUTER_LR)
    tasks = case.each()

    def step() -> None:
        optimiser.zero_grad()
        for x, _, query_x, query_y in tasks:
            z = net(torch.cat([x, query_x]))
            prototypes = z[: len(x)].unflatten(0, (case.way, case.shot)).mean(1)
            logits = -torch.cdist(z[len(x) :], prototypes).square()
            (F.cross_entropy(logits, query_y) / len(tasks)).backward()
        optimiser.step()

    return step
