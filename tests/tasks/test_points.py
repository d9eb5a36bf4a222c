"""Functions of one's own to regress, and a loss of one's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from umeta.config.regression import TrainConfig
from umeta.errors import UserError
from umeta.metalearners.imaml import IMAML
from umeta.metalearners.maml import MAML
from umeta.models.mlp import MLP
from umeta.objectives import squared_error
from umeta.outer.adam import Adam
from umeta.tasks.points import PointTasks
from umeta.testing import sampled
from umeta.train import BatchProblem, metatrain
from umeta.types import Batch, EpisodeSpec, MetaLearner

EPISODE = EpisodeSpec(1, 3, 4)


def functions(sizes: tuple[int, ...] = (7, 12, 30)) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of the i-th function x is i and a number, y twice and three times the number."""
    return [(np.stack([np.full(n, i), np.arange(n)], 1), np.arange(n)[:, None] * [2, 3]) for i, n in enumerate(sizes)]


def weighted(output: Tensor, batch: Batch) -> Tensor:
    return 7 * squared_error(output, batch)


def test_support_and_query_are_different_points_of_one_function() -> None:
    tasks = PointTasks(functions())
    support, query = sampled(tasks, np.arange(300), EPISODE, 0)
    x, y = torch.cat([support.x, query.x], 1), torch.cat([support.y, query.y], 1)
    assert (x.shape, y.shape, tasks.spec.outputs) == ((300, 7, 2), (300, 7, 2), 2)
    assert (x[..., 0] == x[:, :1, 0]).all()
    assert set(x[:, 0, 0].tolist()) == {0, 1, 2}
    assert torch.equal(y, x[..., 1:] * torch.tensor([2.0, 3.0]))
    assert all(len(set(points)) == 7 for points in x[..., 1].tolist())
    assert set(x[x[..., 0] == 2][:, 1].tolist()) == set(range(30))
    alone = sampled(tasks, np.array([5]), EPISODE, 0)
    assert torch.equal(alone[0].x[0], support.x[5])
    larger = sampled(tasks, np.arange(50), EpisodeSpec(1, 5, 5), 0)[0]
    assert set(larger.x[:, 0, 0].tolist()) == {1, 2}  # the first has too few points


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "there are none"),
        ([(np.zeros(3), np.zeros((3, 1)))], r"functions\[0\]: x \(3,\) and y \(3, 1\)"),
        ([*functions(), (np.zeros((3, 2)), np.zeros((4, 2)))], r"functions\[3\]: x \(3, 2\) and y \(4, 2\)"),
        ([(np.full((3, 2), np.nan), np.zeros((3, 2)))], r"functions\[0\]: a value is not finite"),
    ],
)
def test_points_of_another_form_are_refused(given: list, says: str) -> None:
    with pytest.raises(UserError, match=says):
        PointTasks(given)


def test_too_few_points_are_named() -> None:
    with pytest.raises(UserError, match=r"tasks of 40 points .* none has more than 30"):
        PointTasks(functions()).sample(np.arange(2), episode=EpisodeSpec(1, 20, 20), seed=0)


@pytest.mark.parametrize("learner", [MAML(MLP((8,)), steps=2, inner_lr=0.01), IMAML(MLP((8,)), steps=2, inner_lr=0.01)])
def test_a_loss_of_ones_own_is_that_of_the_inner_and_the_outer_loop(learner: MetaLearner) -> None:
    """Seven times the squared error, by a seventh of the inner step size, adapts alike; its loss is seven times."""
    plain, own = PointTasks(functions()), PointTasks(functions(), loss=weighted)
    changed = {"inner_lr": 0.01 / 7}
    if isinstance(learner, IMAML):
        changed["proximal"] = 7 * learner.proximal
    one, other = learner.build(plain.spec, EPISODE), replace(learner, **changed).build(own.spec, EPISODE)
    theta = one.init(0)
    theta = replace(theta, params={name: p.double().requires_grad_() for name, p in theta.params.items()})
    support, query = (
        b.map_tensors(lambda v: v.double() / 30 if v.is_floating_point() else v)
        for b in sampled(plain, np.arange(4), EPISODE, 0)
    )
    found = [
        BatchProblem(made, theta, tasks.spec, [support], query, 4).loss_and_grad()
        for made, tasks in ((one, plain), (other, own))
    ]
    assert found[1][0]["loss"] == pytest.approx(7 * found[0][0]["loss"])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], 7 * gradient, rtol=1e-5, atol=1e-7)
    config = TrainConfig(Adam(), steps=2, meta_batch=2, shot=3, query=4)
    assert metatrain(other, own, config).params.keys() == theta.params.keys()
