"""True rewards worked by hand on a step or two, and the goals they are for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from umeta.benchmarks.goals import GoalOracle, goals
from umeta.config.registry import find_plugins
from umeta.envs.ant import Ant
from umeta.envs.gym import Gym
from umeta.envs.half_cheetah import HalfCheetah
from umeta.envs.hopper import Hopper
from umeta.envs.nav2d import Nav2D
from umeta.envs.walker2d import Walker2d
from umeta.errors import UserError
from umeta.parts import Environment
from umeta.rl.rollout import Paths
from umeta.runtime.loop import RunContext

PLACES = torch.tensor([[0.0, 0.0], [0.1, 0.3], [0.0, -0.1]])  # of two steps, a twentieth of a second each
VELOCITIES = [(2.0, 6.0), (-2.0, -8.0)]


def paths(env: Environment, action: Tensor, own: Tensor | None = None) -> Paths:
    """One task, one episode of two steps."""
    actions = action.expand(1, 1, 2, env.action)
    mask = torch.ones(1, 1, 2, dtype=torch.bool)
    return Paths(torch.zeros(1, 1, 3, env.observation), actions, torch.zeros(1, 1, 2), PLACES[None, None], mask, own)


def earned(benchmark: str, env: Environment, which: int, action: float = 0.0) -> tuple[list[float], list[float]]:
    """What the two steps earn under a goal, and the goal."""
    tasks = goals(benchmark, env, "test", 6, seed=0)
    rewards = tasks.rewards(paths(env, torch.tensor([action])), torch.tensor([which]))
    return rewards[0, 0].tolist(), tasks.rewards.goals[which].tolist()  # type: ignore[attr-defined]


@pytest.mark.parametrize("which", range(6))
def test_rewards_by_hand(which: int) -> None:
    found, (x, y) = earned("nav2d", Nav2D(), which)
    assert found == pytest.approx([-math.hypot(0.1 - x, 0.3 - y), -math.hypot(-x, -0.1 - y)], rel=1e-5)

    # a torque of 1 is the most that six (the ant: eight) motors get
    cheetah, ant = HalfCheetah(unit=0.5), Ant(unit=0.5)
    for action, torque in ((1.0, 0.5), (-6.0, -1.0)):
        found, (wanted,) = earned("cheetah_velocity", cheetah, which, action)
        effort = 0.05 * 6 * torque**2
        assert found == pytest.approx([-abs(v - wanted) - effort for v, _ in VELOCITIES], rel=1e-5)
        found, way = earned("cheetah_direction", cheetah, which, action)
        assert way == [1 - 2 * (which % 2), 0]
        assert found == pytest.approx([v * way[0] - effort for v, _ in VELOCITIES], rel=1e-5)
        for env in (Walker2d(unit=0.5), Hopper(unit=0.5)):  # whose steps are of 0.008 s
            effort, name = 0.001 * env.action * torque**2, type(env).__name__.lower()
            moved = [v * 0.05 / 0.008 for v, _ in VELOCITIES]
            found, (wanted,) = earned(f"{name}_velocity", env, which, action)
            assert found == pytest.approx([-abs(v - wanted) - effort for v in moved], rel=1e-5)
            found, way = earned(f"{name}_direction", env, which, action)
            assert way == [1 - 2 * (which % 2), 0]
            assert found == pytest.approx([v * way[0] - effort for v in moved], rel=1e-5)
        effort = 0.005 * 8 * torque**2
        found, (x, y) = earned("ant_direction", ant, which, action)
        assert found == pytest.approx([v * x + w * y - effort + 0.05 for v, w in VELOCITIES], rel=1e-4)
        found, (x, y) = earned("ant_position", ant, which, action)
        expected = [-abs(0.1 - x) - abs(0.3 - y) - effort, -abs(x) - abs(-0.1 - y) - effort]
        assert found == pytest.approx(expected, rel=1e-5)


def test_goals_fill_what_they_are_drawn_from() -> None:
    def drawn(benchmark: str, env: Environment) -> Tensor:
        return goals(benchmark, env, "train", 4000, seed=0).rewards.goals  # type: ignore[attr-defined]

    square = drawn("nav2d", Nav2D())
    assert square.shape == (4000, 2)
    assert square.abs().max() <= 0.5
    torch.testing.assert_close(square.mean(0), torch.zeros(2), atol=0.02, rtol=0)
    torch.testing.assert_close(square.var(0), torch.full((2,), 1 / 12), atol=5e-3, rtol=0)

    velocity = drawn("cheetah_velocity", HalfCheetah())
    assert velocity.shape == (4000, 1)
    assert 0 <= velocity.min() < 0.01
    assert 1.99 < velocity.max() <= 2

    circle = drawn("ant_direction", Ant())
    torch.testing.assert_close(circle.norm(dim=1), torch.ones(4000))
    torch.testing.assert_close(circle.mean(0), torch.zeros(2), atol=0.05, rtol=0)

    disc = drawn("ant_position", Ant())
    for radius in (1.0, 2.0, 3.0):  # as the area within
        assert (disc.norm(dim=1) <= radius).float().mean().item() == pytest.approx(radius**2 / 9, abs=0.03)
    torch.testing.assert_close(disc.mean(0), torch.zeros(2), atol=0.1, rtol=0)


def test_a_place_alone_tells_some_rewards_and_some_goals_are_places() -> None:
    tasks = {
        "nav2d": goals("nav2d", Nav2D(), "test", 3, 0),
        "cheetah_velocity": goals("cheetah_velocity", HalfCheetah(), "test", 3, 0),
        "ant_position": goals("ant_position", Ant(), "test", 3, 0),
        "own": goals("own", Gym("MountainCarContinuous-v0", horizon=5), "test", 3, 0),
    }
    rewards = {name: one.rewards for name, one in tasks.items()}
    assert {n for n, r in rewards.items() if r.places is not None} == {"nav2d", "ant_position"}  # type: ignore[attr-defined]
    assert {n for n, r in rewards.items() if not r.of_places} == {"own"}  # type: ignore[attr-defined]
    own = torch.tensor([[[1.5, -2.0]]])
    env = Gym("MountainCarContinuous-v0", horizon=5)
    assert torch.equal(rewards["own"](paths(env, torch.zeros(1), own), torch.tensor([2])), own)


def test_a_benchmark_of_another_name_or_environment_is_named() -> None:
    with pytest.raises(UserError, match="no benchmark of rewards is named 'nav2'; did you mean 'nav2d'"):
        goals("nav2", Nav2D(), "test", 3, 0)
    with pytest.raises(UserError, match="'ant_direction' is of Ant, the environment is Nav2D"):
        goals("ant_direction", Nav2D(), "test", 3, 0)


MINE = """
from umeta.benchmarks.goals import Benchmark

def reward(env, paths, goal):
    return goal[..., 0] - env.torque(paths.actions).sum(-1)

mine = Benchmark("HalfCheetah", reward, goals=lambda u: 5 + u[:, :1])
other = 3
"""


def test_a_persons_own_rewards_are_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(MINE)
    found, goal = earned("my.py:mine", HalfCheetah(unit=0.5), 2, action=0.4)
    assert 5 < goal[0] < 6
    assert found == pytest.approx([goal[0] - 6 * 0.5 * 0.4] * 2)
    with pytest.raises(UserError, match=r"'my\.py:mine' is of HalfCheetah, the environment is Ant"):
        goals("my.py:mine", Ant(), "test", 1, 0)
    with pytest.raises(UserError, match=r"'my\.py:other' is no umeta\.benchmarks\.goals\.Benchmark"):
        goals("my.py:other", Ant(), "test", 1, 0)
    with pytest.raises(UserError, match=r"plug-in file 'your\.py' does not exist"):
        goals("your.py:mine", Ant(), "test", 1, 0)
    assert find_plugins({"evaluate": {"benchmark": "my.py:mine"}}) == {"my.py:mine"}
    assert find_plugins({"evaluate": {"benchmark": "cheetah_velocity"}}) == set()


def test_a_reward_looks_at_what_an_environment_says_and_not_at_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(
        "from umeta.benchmarks.goals import Benchmark\n"
        'fast = Benchmark("Gym", lambda env, paths, goal: paths.after[..., 2], lambda u: u)\n'
    )
    env = Gym("Pendulum-v1", symlog=True)
    seen = replace(paths(env, torch.zeros(1)), observations=torch.tensor([0, 0, math.log(9)]).expand(1, 1, 3, 3))
    rewards = goals("my.py:fast", env, "test", 1, seed=0).rewards(seen, torch.tensor([0]))
    assert rewards[0, 0].tolist() == pytest.approx([8, 8])


def test_tasks_of_true_rewards_are_stamped_as_such() -> None:
    assert GoalOracle.sees_labels
    tasks = GoalOracle("nav2d", goals=5).propose(Nav2D(), RunContext())
    expected = goals("nav2d", Nav2D(), "train", 5, seed=RunContext().seed)
    assert torch.equal(tasks.rewards.goals, expected.rewards.goals)  # type: ignore[attr-defined]
