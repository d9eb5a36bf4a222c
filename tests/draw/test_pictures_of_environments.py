"""Pictures of policies and rewards: what they show, the same bytes every time, and films that can be left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from umeta.benchmarks.goals import goals
from umeta.draw import curves, environments
from umeta.envs.gym import Gym
from umeta.envs.nav2d import Nav2D, Points
from umeta.errors import UserError
from umeta.rl.discriminator import Discriminator, SkillRewards
from umeta.rl.skills import SkillPolicy, act
from umeta.tasks.reward import RewardTasks
from umeta.types import EpisodeSpec

SKILLS = 3
EPISODE = EpisodeSpec(1, 2, 2)
GOALS = torch.tensor([[0.4, 0.3], [-0.4, 0.0], [0.1, -0.4]])


@dataclass(frozen=True)
class Lamp(Nav2D):
    """Navigation with a third number to observe. It ends after four steps, and cannot be drawn if it is dark."""

    dark: bool = False

    @property
    def observation(self) -> int:
        return 3

    def simulate(self, n: int) -> Points:
        return Lit(self, n)


class Lit(Points):
    def seen(self) -> Tensor:
        return torch.cat([self.place, torch.full((len(self.place), 1), float(self.time))], -1)

    def reset(self, u: Tensor) -> Tensor:
        self.time = 0
        super().reset(u)
        return self.seen()

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        self.time += 1
        super().step(actions)
        return self.seen(), torch.full((len(self.place),), self.time >= 4)

    def picture(self, copy: int = 0) -> np.ndarray:
        if self.env.dark:
            raise UserError("no rendering backend")
        return super().picture(copy)


def skills(env: Nav2D) -> dict[str, Tensor]:
    """Policies that go to GOALS and stay about there."""
    policy = SkillPolicy(env.observation, 2, SKILLS, 4)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        policy.first.weight[:2, :2] = -0.1 * torch.eye(2)
        policy.told.weight[:, :2] = 0.1 * GOALS
        policy.second.weight.copy_(torch.eye(4))
        policy.head.weight[:, :2] = 30 * torch.eye(2)
        policy.log_std.fill_(-2)
    return policy.policies()


def tasks(env: Nav2D, learnt: bool = True) -> RewardTasks:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rewards = SkillRewards(Discriminator(env.observation, SKILLS, 8))
    return RewardTasks(env, rewards, skills(env) if learnt else None)


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as animation:
        found = []
        for i in range(animation.n_frames):
            animation.seek(i)
            found.append(np.asarray(animation.convert("RGB")))
        return found


@pytest.mark.parametrize("learnt", [True, False])
@pytest.mark.parametrize("env", [Nav2D(horizon=12), Lamp(horizon=12, dark=True)])
def test_what_was_proposed_is_drawn_the_same_every_time(env, learnt):
    drawn = environments.draw_tasks(tasks(env, learnt), EPISODE)
    assert drawn.dtype == np.uint8
    assert drawn.shape[2] == 3
    assert drawn.shape[1] > 500
    assert drawn.std() > 10
    assert (environments.draw_tasks(tasks(env, learnt), EPISODE) == drawn).all()


def test_many_rewards_are_not_put_on_one_map():
    many = RewardTasks(Nav2D(horizon=12), SkillRewards(Discriminator(2, environments.LABELLED + 1, 8)))
    assert (
        environments.draw_tasks(many, EPISODE).shape[1]
        < environments.draw_tasks(tasks(Nav2D(horizon=12), learnt=False), EPISODE).shape[1]
    )


def test_an_environments_own_reward_is_drawn_along_episodes_where_its_states_are_a_plane():
    tasks = goals("own", Gym("MountainCarContinuous-v0", horizon=5), "train", 3, seed=0)
    assert environments.draw_tasks(tasks, EPISODE).shape[2] == 3


def test_skills_are_seen_to_go_where_they_go():
    paths = environments.explore(tasks(Nav2D(horizon=30)))
    assert paths.positions.shape == (SKILLS, environments.EPISODES, 31, 2)
    assert paths.positions[:, 0, -1].numpy() == pytest.approx(GOALS.numpy(), abs=0.01)
    assert len({colour for colour in curves.colours(50)}) == 50


def test_each_reward_is_shown_from_its_lowest_return_to_its_highest():
    """One reward to a column, one skill to a row."""
    proposed = tasks(Nav2D(horizon=12))
    paths, figure = environments.explore(proposed), Figure()
    environments.draw_returns(figure, proposed, paths)
    shown = figure.axes[0].images[0].get_array()
    for i in range(SKILLS):
        earned = [proposed.rewards(paths, torch.full((SKILLS,), i))[z].sum(-1).mean() for z in range(SKILLS)]
        low, high = min(earned), max(earned)
        assert shown[:, i].tolist() == pytest.approx([float((e - low) / (high - low)) for e in earned], abs=1e-4)


def test_a_map_is_the_reward_at_its_places():
    proposed = tasks(Nav2D(horizon=30))
    paths = environments.explore(proposed)
    rewards, (left, right, bottom, top) = environments.map_rewards(proposed, paths, SKILLS)
    assert rewards.shape == (SKILLS, environments.CELLS, environments.CELLS)
    assert left < GOALS[:, 0].min() < GOALS[:, 0].max() < right
    corners = torch.tensor([[left, bottom], [right, bottom], [left, top], [right, top]])
    expected = proposed.rewards.discriminator(corners).T + np.log(SKILLS)
    assert rewards[:, [0, 0, -1, -1], [0, -1, 0, -1]] == pytest.approx(expected.detach().numpy(), abs=1e-5)


def test_a_film_is_a_gif_of_the_episode(tmp_path):
    env = Nav2D(horizon=100)
    one = act({name: value[:1] for name, value in skills(env).items()})
    shown = environments.film(env, one, seed=1, steps=100)
    assert len(shown) == 51
    assert all(frame.shape == (128, 128, 3) and frame.dtype == np.uint8 for frame in shown)
    assert (shown[0] == env.simulate(1).picture()).all()
    assert environments.write_film(tmp_path / "before.gif", env, one, seed=1) is None
    read = frames(tmp_path / "before.gif")
    assert len(read) == len([1 for a, b in zip(shown, [None, *shown], strict=False) if b is None or (a != b).any()])
    assert np.abs(read[-1].astype(int) - shown[-1]).max() < 8
    before = (tmp_path / "before.gif").read_bytes()
    environments.write_film(tmp_path / "before.gif", env, one, seed=1)
    assert (tmp_path / "before.gif").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["before.gif"]


def test_a_film_ends_with_its_episode():
    env = Lamp(horizon=20)
    one = act({name: value[:1] for name, value in skills(env).items()})
    assert len(environments.film(env, one, seed=0, steps=20)) == 5


def test_all_skills_are_in_one_film(tmp_path):
    assert environments.film_skills(tasks(Nav2D(horizon=20)), tmp_path) == []
    moving = frames(tmp_path / "skills.gif")
    assert 30 < len(moving) <= environments.FRAMES
    assert moving[0].shape == (environments.SIDE, environments.SIDE, 3)
    assert (tmp_path / "skills.gif").stat().st_size < 300_000
    assert environments.film_skills(tasks(Lamp(horizon=20)), tmp_path) == []
    assert frames(tmp_path / "skills.gif")[0].shape == (160, 3 * 160, 3)


def test_no_skills_no_film(tmp_path):
    assert environments.film_skills(tasks(Nav2D(), learnt=False), tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_drawn_the_person_is_told(tmp_path):
    env = Lamp(horizon=20, dark=True)
    one = act({name: value[:1] for name, value in skills(env).items()})
    with pytest.raises(UserError, match="no rendering backend"):
        environments.film(env, one, seed=0, steps=20)
    assert (
        environments.write_film(tmp_path / "after.gif", env, one, seed=0) == "after.gif left out: no rendering backend"
    )
    assert environments.film_skills(tasks(env), tmp_path) == ["skills.gif left out: no rendering backend"]
    assert not list(tmp_path.iterdir())


def test_curves_and_behaviour_are_pictures(tmp_path):
    curve = {"x": [0, 1, 2], "mean": [-3.0, -2.0, -1.0], "interval": [0.1, 0.2, 0.3]}
    curves.plot_adaptation(tmp_path / "adaptation.png", {"one": curve, "other": curve}, "return")
    paths = environments.explore(tasks(Nav2D(horizon=12)))
    along = replace(paths, positions=paths.positions * torch.tensor([1.0, 0.0]))  # all on one line
    environments.draw_behaviour(tmp_path / "behaviour.png", {"before": paths, "after": paths}, Nav2D(), GOALS)
    environments.draw_behaviour(tmp_path / "line.png", {"before": along}, Gym("Pendulum-v1"))
    for name in ("adaptation", "behaviour", "line"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert np.asarray(picture).std() > 10
