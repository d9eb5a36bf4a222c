"""A context found by regression, where the best one is known, and policies that are told it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from umeta.benchmarks.goals import goals
from umeta.config.environments import TrainConfig
from umeta.envs.nav2d import Nav2D
from umeta.errors import UserError
from umeta.metalearners.context import KNOWN, OWN, TOLD, Context, expect
from umeta.metalearners.maml import MAML
from umeta.models.mlp import MLP
from umeta.outer.promp import ProMP
from umeta.rl.skills import SpacePolicy
from umeta.tasks.reward import RewardTasks, policy_spec
from umeta.train import metatrain, policy_of
from umeta.types import Adapted, EpisodeSpec, TaskSpec, Theta

ENV = Nav2D(horizon=8)
EPISODES, KNOWS, GOALS = 12, 30, 6
EPISODE = EpisodeSpec(1, EPISODES, EPISODES)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def walkers() -> dict[str, Tensor]:
    """Skills whose steps are their numbers, anywhere: what a skill adds to the bias is what it does, nearly."""
    policy = SpacePolicy(2, 2, 2, 4)
    with torch.no_grad():
        for layer in (policy.first, policy.told, policy.second, policy.head):
            for value in layer.parameters():
                value.zero_()
        policy.told.weight[:2] = 0.1 * torch.eye(2)  # small, where tanh is a line
        policy.second.weight.copy_(torch.eye(4))
        policy.head.weight[:, :2] = 10 * torch.eye(2)
        policy.log_std.fill_(-3)
    skills = policy.policies(draw(KNOWS, 2))
    return skills | {"head.free": skills["head.free"] + 0.3 * draw(KNOWS, 2, seed=1)}


def learner(**options: object) -> Context:
    return Context(MLP([4, 4]), **{"contexts": KNOWS, **options}).build(policy_spec(ENV), EPISODE)  # type: ignore[arg-type]


def tasks() -> RewardTasks:
    return goals("nav2d", ENV, "test", GOALS, 0)


def test_the_regression_is_that_of_scikit_learn() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    tried, known = draw(20, 2).double(), draw(9, 2, seed=1).double()
    returns = torch.stack([-(tried - goal).norm(dim=1) for goal in draw(3, 2, seed=2)])
    found = expect(tried, returns, known)
    for task, y in enumerate(returns):
        y = ((y - y.mean()) / y.std()).numpy()
        fits = [
            GaussianProcessRegressor(RBF(length) + WhiteKernel(noise), optimizer=None, alpha=0.0).fit(tried, y)
            for length in (0.25, 0.5, 1.0, 2.0)
            for noise in (0.03, 0.1, 0.3, 1.0)
        ]
        best = max(fits, key=lambda fit: fit.log_marginal_likelihood_value_)
        assert found[task].numpy() == pytest.approx(best.predict(known), abs=1e-4)


def test_contexts_are_the_skills() -> None:
    skills, one = walkers(), learner()
    theta = one.start_from(skills)
    rebuilt = theta.params["1.bias"] + theta.params[KNOWN] @ theta.params[TOLD]
    torch.testing.assert_close(rebuilt, skills["1.bias"])
    torch.testing.assert_close(theta.params["head.free"] + theta.params[OWN], skills["head.free"])
    assert theta.params[KNOWN].std(0, correction=0).max().item() == pytest.approx(1, abs=0.05)
    assert set(theta.params) == set(one.init(0).params)


def test_each_episode_is_told_a_context_of_its_own_before_the_first_step() -> None:
    skills, one = walkers(), learner()
    theta = one.start_from(skills)
    x = draw(2, KNOWS + 1, 2)
    found = one.predict(theta, one.unadapted(theta, 2), x)
    plain = MAML(MLP([4, 4])).build(policy_spec(ENV), EPISODE)
    for e in (0, 7, KNOWS):
        of_skill = Adapted({name: value[[e % KNOWS] * 2] for name, value in skills.items()})
        torch.testing.assert_close(found[:, e : e + 1], plain.predict(Theta({}), of_skill, x[:, e : e + 1]))


def test_the_first_step_takes_nearly_the_best_skill() -> None:
    """Of 30 skills that go each its own way 12 are tried; the truth is what every one of them earns."""
    skills, one = walkers(), learner()
    theta = one.start_from(skills)
    batch = tasks().sample(np.arange(GOALS), episode=EPISODE, seed=0)
    support = batch.support(policy_of(one, theta, one.unadapted(theta, GOALS)))
    adapted = one.adapt(theta, support)
    assert not {TOLD, OWN} & adapted.params.keys()
    spreads = [(adapted.params["head.free"][g] - skills["head.free"]).abs().amax(1).min() for g in range(GOALS)]
    assert max(spreads) < 1e-5  # each is that of a skill, as it was taken
    assert adapted.steps == 1
    taken = batch.query(policy_of(one, theta, adapted)).score
    plain = MAML(MLP([4, 4])).build(policy_spec(ENV), EPISODE)
    each = []
    for k in range(KNOWS):
        of_skill = Adapted({name: value[[k] * GOALS] for name, value in skills.items()})
        each.append(batch.query(policy_of(plain, Theta({}), of_skill)).score)
    earned = torch.stack(each, 1)  # type: ignore[arg-type]
    rank = (earned > taken[:, None] + 1e-3).sum(1)  # type: ignore[index]
    assert rank.float().mean() < 3  # by chance 14.5; the best of the tried ones alone would be at 1.4
    assert (taken > earned.mean(1)).all()  # type: ignore[operator]


def test_meta_training_moves_what_is_told_and_keeps_the_contexts() -> None:
    one = learner()
    start = one.start_from(walkers())
    theta = metatrain(one, tasks(), TrainConfig(outer=ProMP(), steps=2, meta_batch=3, episodes=EPISODES), None, start)
    assert torch.equal(theta.params[KNOWN], start.params[KNOWN])
    assert torch.equal(theta.params[OWN], start.params[OWN])
    assert not torch.equal(theta.params[TOLD], start.params[TOLD])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"metalearner\.contexts: 7, but the proposer has 30 skills"):
        learner(contexts=7).start_from(walkers())
    with pytest.raises(UserError, match="on an environment"):
        Context(MLP([4])).build(TaskSpec((2,)), EpisodeSpec(2, 1, 1))
