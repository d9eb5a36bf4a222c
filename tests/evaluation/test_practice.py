"""Practice: rewards regressed on what earned them, and steps of the policy gradient under these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from umeta.envs.nav2d import Nav2D
from umeta.evaluation import practice
from umeta.evaluation.environments import measure_returns
from umeta.evaluation.practice import Network, RegressedRewards, add_practice, describe_steps, practise
from umeta.evaluation.steps import change_learner, stay
from umeta.metalearners.maml import MAML
from umeta.models.mlp import MLP
from umeta.rl.ridge import predict
from umeta.rl.rollout import Paths
from umeta.tasks.reward import RewardBatch, RewardTasks
from umeta.train import policy_of
from umeta.types import Adapted, Batch, EpisodeSpec

ENV = Nav2D(horizon=10)
LEARNER = change_learner(MAML(MLP([16])), ENV, inner_kl=0.3, schedule="constant")
THETA = LEARNER.init(0)


@dataclass(frozen=True)
class Near:
    """Each reward is how near a place of its own is after a step: minus the distance's square."""

    places: Tensor

    @property
    def count(self) -> int:
        return len(self.places)

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        return -(paths.after - self.places[which][:, None, None]).square().sum(-1) - 0.1 * paths.actions.square().sum(
            -1
        )

    def describe(self, states: Tensor) -> list[str]:
        return []


PLACES = torch.tensor([[0.3, 0.0], [-0.2, 0.2], [0.0, -0.4]])


def tasks(rewards: Any, episodes: int = 10) -> RewardBatch:
    return RewardTasks(ENV, rewards).sample(np.arange(3), episode=EpisodeSpec(1, episodes, episodes), seed=0)


def roll_out(batch: RewardBatch, adapted: Adapted, purpose: str) -> tuple[Paths, Batch]:
    with torch.no_grad():
        paths = batch.paths(policy_of(LEARNER, THETA, adapted), batch.episode.query, purpose)
    return paths, batch.batch(paths)


def test_rewards_are_regressed_on_the_steps_that_earned_them() -> None:
    """Squares of what is seen and done: ten episodes tell them as they are, and those of no other task."""
    batch = tasks(Near(PLACES))
    begin = LEARNER.unadapted(THETA, 3)
    seen = [roll_out(batch, begin, purpose)[1] for purpose in ("first", "second")]
    found = RegressedRewards.fit(seen)
    assert found.count == 3
    paths, _ = roll_out(batch, begin, "others")
    order = torch.tensor([2, 0, 1])
    true = Near(PLACES)(paths, batch.which[order])
    torch.testing.assert_close(found(paths, order), true, atol=2e-3, rtol=0)


class Straight(Near):
    """The distance itself, which no square of what is seen gives."""

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        return -(paths.after - self.places[which][:, None, None]).norm(dim=-1)


def test_what_squares_leave_of_a_reward_a_network_learns() -> None:
    batch = tasks(Straight(PLACES), 200)
    begin = LEARNER.unadapted(THETA, 3)
    found = RegressedRewards.fit([roll_out(batch, begin, "first")[1]])
    paths, _ = roll_out(batch, begin, "others")
    true, every = Straight(PLACES)(paths, batch.which), torch.arange(3)
    whole = (found(paths, every) - true).square().mean((1, 2))
    squares = predict(found.weights, describe_steps(paths.observations[:, :, :-1], paths.after, paths.actions)) - true
    assert (whole < 0.7 * squares.square().mean((1, 2))).all()


def test_a_network_that_helps_no_other_episodes_gives_nothing() -> None:
    """Noise of ten episodes, which ten others have nothing of."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 10, 20, 30, generator=random)
    y = torch.randn(2, 10, 20, generator=random)
    mask = torch.ones(2, 10, 20, dtype=torch.bool)
    found = Network.fit(x, y, mask)(x, torch.arange(2))
    assert found.square().mean() < 0.05


def test_steps_after_an_episodes_end_tell_nothing() -> None:
    batch = tasks(Near(PLACES))
    one = roll_out(batch, LEARNER.unadapted(THETA, 3), "first")[1]
    ended = (torch.arange(10) >= 7).repeat(10)
    assert one.reward is not None
    wrong = replace(one, mask=one.mask & ~ended, reward=one.reward.masked_fill(ended, 1e6))
    right = replace(one, mask=one.mask & ~ended)
    one, other = (RegressedRewards.fit([batch]) for batch in (wrong, right))
    assert torch.equal(one.weights, other.weights)
    for layer, same in zip(one.network.layers, other.network.layers, strict=True):
        assert all(torch.equal(*pair) for pair in zip(layer, same, strict=True))


class AtTheEnd(Near):
    """How near the place an episode ends, and nothing before."""

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        return super().__call__(paths, which) * (torch.arange(ENV.horizon) == ENV.horizon - 1)


def test_what_the_last_step_pays_is_seen() -> None:
    batch = tasks(AtTheEnd(PLACES), 100)
    found = RegressedRewards.fit([roll_out(batch, LEARNER.unadapted(THETA, 3), "first")[1]])
    paths, _ = roll_out(batch, LEARNER.unadapted(THETA, 3), "others")
    last = found(paths, torch.arange(3))[:, :, -1]
    true = AtTheEnd(PLACES)(paths, batch.which)[:, :, -1]
    assert ((last - true).square().mean(1) < 0.3 * true.square().mean(1)).all()


def test_episodes_of_one_step_are_enough() -> None:
    short = replace(ENV, horizon=1)
    batch = replace(tasks(Near(PLACES)), tasks=RewardTasks(short, Near(PLACES)))
    begin = LEARNER.unadapted(THETA, 3)
    before = roll_out(batch, begin, "first")[1]
    after = roll_out(batch, practise(LEARNER, THETA, begin, [before], batch, 3), "afterwards")[1]
    assert before.score is not None
    assert after.score is not None
    assert after.score.isfinite().all()


def test_a_task_practises_alike_whatever_others_there_are() -> None:
    batch = tasks(Near(PLACES))
    begin = LEARNER.unadapted(THETA, 3)
    before = roll_out(batch, begin, "first")[1]
    every = practise(LEARNER, THETA, begin, [before], batch, 2)
    first = replace(batch, which=batch.which[:1], indices=batch.indices[:1])
    alone = practise(LEARNER, THETA, LEARNER.unadapted(THETA, 1), [before.chunk(0, 1)], first, 2)
    for name, value in alone.params.items():
        torch.testing.assert_close(value[0], every.params[name][0], atol=1e-4, rtol=1e-3)


def test_where_practice_did_harm_the_next_begins_where_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Practice is made to do harm once: the policy runs away from all places."""
    batch = tasks(Near(PLACES))
    begun: list[Adapted] = []

    def run_away(learner: Any, theta: Any, adapted: Adapted, *rest: Any) -> Adapted:
        begun.append(adapted)
        away = {**adapted.params, "head.bias": adapted.params["head.bias"] + 100 * (len(begun) == 1)}
        return replace(adapted, params=away)

    monkeypatch.setattr(practice, "practise", run_away)
    step = add_practice(stay, LEARNER, THETA, batch, 2)
    measure_returns(LEARNER, THETA, LEARNER.unadapted(THETA, 3), step, batch, 3)
    for later in begun[1:]:
        assert all(torch.equal(value, begun[0].params[name]) for name, value in later.params.items())


class Refused(Near):
    """Rewards that must not be asked for."""

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        raise AssertionError("a true reward was asked for")


def test_practice_earns_more_and_asks_for_no_reward() -> None:
    batch = tasks(Near(PLACES), 20)
    begin = LEARNER.unadapted(THETA, 3)
    before = roll_out(batch, begin, "first")[1]
    unrewarded = replace(batch, tasks=replace(batch.tasks, rewards=Refused(PLACES)))
    after = practise(LEARNER, THETA, begin, [before], unrewarded, 10)
    earned = roll_out(batch, after, "afterwards")[1].score
    assert earned is not None
    assert before.score is not None
    assert (earned > 0.6 * before.score).all()  # both are negative
    assert after.steps == begin.steps  # which schedules of later steps count


@pytest.mark.parametrize("constant", [0.0, -1.0, 1e4])
def test_where_every_step_earns_the_same_practice_changes_nothing(constant: float) -> None:
    batch = tasks(Near(PLACES))
    begin = LEARNER.unadapted(THETA, 3)
    one = roll_out(batch, begin, "first")[1]
    assert one.reward is not None
    after = practise(LEARNER, THETA, begin, [replace(one, reward=torch.full_like(one.reward, constant))], batch, 5)
    for name, value in after.params.items():
        assert torch.equal(value, begin.params[name])


def test_practice_after_each_step_has_all_rewards_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, known = tasks(Near(PLACES)), []
    fit = RegressedRewards.fit

    def note_and_fit(seen: Sequence[Batch]) -> RegressedRewards:
        known.append(len(seen))
        return fit(seen)

    monkeypatch.setattr(RegressedRewards, "fit", note_and_fit)
    step = add_practice(stay, LEARNER, THETA, batch, 2)
    found, _ = measure_returns(LEARNER, THETA, LEARNER.unadapted(THETA, 3), step, batch, 3)
    assert known == [1, 2, 3]
    assert (found[:, -1] > found[:, 0]).all()
