"""E-MAML against its formula, episode by episode, and what it asks of a config."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.toys import Corners
from torch import Tensor
from torch.distributions import Normal

from umeta.config.build import load
from umeta.config.environments import TrainConfig
from umeta.envs.nav2d import Nav2D
from umeta.errors import UserError
from umeta.metalearners.emaml import EMAML
from umeta.metalearners.maml import MAML
from umeta.models.mlp import MLP
from umeta.outer.adam import Adam
from umeta.runtime.loop import RunContext
from umeta.tasks.reward import RewardTasks
from umeta.train import BatchProblem, metatrain, roll_out
from umeta.types import Batch, EpisodeSpec, Theta

EPISODE = EpisodeSpec(1, 3, 3)
TASKS = RewardTasks(Nav2D(horizon=5), Corners())


def rolled(learner: EMAML, theta: Theta) -> tuple[Batch, Batch]:
    batch = TASKS.sample(np.arange(4), episode=EPISODE, seed=0)
    (support,), query = roll_out(learner, theta, batch, 4, 1)
    return support, query


def answer(p: dict[str, Tensor], x: Tensor) -> Normal:
    mean = (x @ p["1.weight"].T + p["1.bias"]).tanh() @ p["head.weight"].T + p["head.bias"]
    return Normal(mean, p["head.free"].exp().expand_as(mean))


def test_meta_gradient_is_mamls_and_what_exploring_was_worth() -> None:
    learner, maml = (kind(MLP([4]), 0.3, 1).build(TASKS.spec, EPISODE) for kind in (EMAML, MAML))
    theta = Theta({name: value.clone().requires_grad_() for name, value in learner.init(0).params.items()})
    support, query = rolled(learner, theta)
    total = 0
    for t in range(4):
        returns = support.reward[t].view(3, 5).sum(1)
        for e in range(3):
            steps = slice(5 * e, 5 * e + 5)
            said = answer(theta.params, support.x[t, steps]).log_prob(support.y[t, steps]).sum()
            others = torch.cat([returns[:e], returns[e + 1 :]]).mean()
            total = total - (query.score[t] - others) / returns.std() * said / 15 / 4
    explored = torch.autograd.grad(total, list(theta.params.values()))
    _, plain = BatchProblem(maml, theta, TASKS.spec, [support], query, 3).loss_and_grad()
    _, found = BatchProblem(learner, theta, TASKS.spec, [support], query, 3).loss_and_grad()
    for (name, one), other, more in zip(found.items(), plain.values(), explored, strict=True):
        assert more.norm() > 1e-3, name
        torch.testing.assert_close(one, other + more, rtol=1e-4, atol=1e-5)


def test_it_meta_trains() -> None:
    learner = EMAML(MLP([8]), 0.3, 1).build(TASKS.spec, EPISODE)
    config = TrainConfig(Adam(lr=0.01), steps=2, meta_batch=4, episodes=3)
    assert all(value.isfinite().all() for value in metatrain(learner, TASKS, config, RunContext()).params.values())


@pytest.mark.parametrize(
    ("change", "said"), [("train.rounds=2", "set it to 1"), ("train.outer=promp", "use adam")], ids=["rounds", "outer"]
)
def test_what_does_not_go_with_it_is_refused(change: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load("nav2d_emaml", [change])


def test_pictures_are_refused() -> None:
    with pytest.raises(UserError, match="emaml is for policies"):
        load("omniglot_instances_maml", ["rounds=[]", "metalearner={name: emaml, model: conv4}"])
