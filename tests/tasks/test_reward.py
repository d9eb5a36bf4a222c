"""Tasks on an environment: which reward each has, and its episodes as items, by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from umeta.envs.nav2d import Nav2D
from umeta.parts import EnvironmentTraits
from umeta.rl.advantage import normalise, returns
from umeta.rl.ridge import crossfit, features
from umeta.rl.rollout import Paths
from umeta.rl.skills import SkillPolicy
from umeta.tasks.reward import RewardTasks
from umeta.types import EpisodeSpec

EPISODES, STEPS, TASKS = 2, 3, 5
ENV = Nav2D(horizon=STEPS)


@dataclass(frozen=True)
class Numbers:
    """Reward z pays z for each step, and a hundredth for each metre to the right."""

    count: int = 4

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        return which[:, None, None] + 0.01 * paths.positions[:, :, 1:, 0]

    def describe(self, states: Tensor) -> list[str]:
        return [f"{self.count} numbers"]


def still(x: Tensor) -> Tensor:
    """A policy without a preference, of a standard deviation of one."""
    return torch.zeros(*x.shape[:-1], 4)


def test_of_each_count_tasks_in_a_row_every_reward_has_one() -> None:
    which = RewardTasks(ENV, Numbers()).sample(np.arange(1200), episode=EpisodeSpec(1, 1, 1), seed=0).which
    rows = which.view(300, 4)
    assert torch.equal(rows.sort(1).values, torch.arange(4).expand(300, 4))
    assert len({tuple(row) for row in rows.tolist()}) == 24  # in any order
    some = RewardTasks(ENV, Numbers()).sample(np.array([7, 1111]), episode=EpisodeSpec(1, 1, 1), seed=0).which
    assert torch.equal(some, which[[7, 1111]])


def test_items_are_the_steps_of_the_episodes() -> None:
    tasks = RewardTasks(ENV, Numbers()).sample(np.arange(TASKS), episode=EpisodeSpec(1, EPISODES, 1), seed=0)
    paths = tasks.paths(still, EPISODES, "support 0")
    batch = tasks.support(still)
    assert (batch.way, batch.sequences) == (1, EPISODES)
    assert tasks.query(still).sequences == 1
    for t in range(TASKS):
        total = 0.0
        for e in range(EPISODES):
            for h in range(STEPS):
                item = e * STEPS + h
                assert torch.equal(batch.x[t, item], paths.observations[t, e, h])
                assert torch.equal(batch.y[t, item], paths.actions[t, e, h])
                assert batch.logp is not None
                assert batch.logp[t, item] == paths.logp[t, e, h]
                assert batch.first is not None
                assert batch.first[t, item].item() == (h == 0)
                assert batch.mask[t, item]
                reward = tasks.which[t].item() + 0.01 * paths.positions[t, e, h + 1, 0].item()
                assert batch.reward is not None
                assert batch.reward[t, item].item() == pytest.approx(reward)
                total += reward
        assert batch.score is not None
        assert batch.score[t].item() == pytest.approx(total / EPISODES)
    assert batch.x.shape == (TASKS, EPISODES * STEPS, 2)


def test_episodes_are_apart_by_round_by_purpose_and_by_task_alone() -> None:
    def first(numbers: list[int], seed: int = 0) -> list[Tensor]:
        spec = EpisodeSpec(1, EPISODES, EPISODES)
        tasks = RewardTasks(ENV, Numbers()).sample(np.array(numbers), episode=spec, seed=seed)
        return [batch.y[-1] for batch in (tasks.support(still), tasks.support(still, 1), tasks.query(still))]

    drawn = [*first([0, 3]), *first([0, 4]), *first([0, 3], seed=1)]
    assert len({tuple(actions.flatten().tolist()) for actions in drawn}) == len(drawn)
    for alone, together in zip(first([3]), first([0, 3]), strict=True):
        assert torch.equal(alone, together)


class Rightwards(Numbers):
    """Reward z pays for each metre to the right, and z for each step."""

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        return which[:, None, None] + paths.positions[:, :, 1:, 0]


def test_lambda_is_an_option_of_the_environment_and_1_where_it_has_none() -> None:
    """Ends of `gae`: at 1 what came after a step, at 0 the step's own reward and the baseline's difference."""

    def told(**options: float) -> Tensor:
        env = Nav2D(horizon=STEPS, discount=0.9, **options)
        tasks = RewardTasks(env, Rightwards()).sample(np.arange(TASKS), episode=EpisodeSpec(1, 6, 1), seed=0)
        w, paths = tasks.support(still).w, tasks.paths(still, 6, "support 0")
        assert w is not None
        rewards = Rightwards()(paths, tasks.which)
        values = crossfit(features(paths.observations[:, :, :-1]), returns(rewards, paths.mask, 0.9), paths.mask)
        following = torch.cat([values[..., 1:], torch.zeros(TASKS, 6, 1)], -1)
        ends = {1.0: returns(rewards, paths.mask, 0.9) - values, 0.0: rewards + 0.9 * following - values}
        torch.testing.assert_close(w, normalise(ends[options.get("lam", 1.0)], paths.mask).flatten(1))
        return w

    assert torch.equal(told(), told(lam=1.0))
    assert not torch.allclose(told(), told(lam=0.0), atol=0.1)
    assert EnvironmentTraits.of(object()).lam == 1


def test_rewards_are_described() -> None:
    said = RewardTasks(ENV, Numbers()).describe(EpisodeSpec(1, 1, 1))
    assert said == ["tasks: 4 rewards, episodes of 3 steps", "4 numbers"]


class Ways(Numbers):
    """Reward z pays for each 10 cm its way: right, up, left, down. The last two are in another unit, from elsewhere."""

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        paid = (paths.positions[:, :, 1:].round(decimals=1) * WAYS[which][:, None, None]).sum(-1)
        return torch.where((which > 1)[:, None, None], 0.001 * paid - 0.5, paid)


WAYS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


@pytest.mark.parametrize(("go", "share"), [([0, 1, 2, 3], "100%"), ([0, 0, 0, 0], "25%"), ([0, 1, 1, 3], "75%")])
def test_it_is_said_how_many_skills_earn_most_by_their_own_reward(go: list[int], share: str) -> None:
    skills = SkillPolicy(2, 2, 4, 8).policies()
    skills["head.bias"], skills["head.free"] = 100 * WAYS[go], torch.full((4, 2), -9.0)
    skills["head.weight"].zero_()  # they go straight
    said = RewardTasks(ENV, Ways(), skills).describe(EpisodeSpec(1, 1, 1))[-1]
    assert said.startswith(f"{share} of the skills' episodes earn most by their own reward, 25% by chance")
    assert ("little can be expected" in said) == (share == "25%")
