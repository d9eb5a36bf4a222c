"""`python -m bench.stable_baselines CONFIG [KEY=VALUE ...] --record FILE`: PPO on true rewards, by stable-baselines3.

A baseline that owes this library nothing but the physics and the rewards (pip install stable-baselines3): on each test
goal of a config's evaluation its PPO, with its own defaults, learns from as many episodes a step as the library's rows.
A goal that is done is kept in FILE.goals: the same command goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO, __version__
from stable_baselines3.common.monitor import Monitor

from umeta.benchmarks.goals import goals
from umeta.config.build import load
from umeta.evaluation.environments import tabulate_returns, trace_returns
from umeta.evaluation.rows import Kept, find_commit, name_hardware, record_result
from umeta.rl.rollout import Paths
from umeta.tasks.reward import RewardTasks
from umeta.types import Theta

TITLE = "PPO on the true reward (stable-baselines3)"


class Goal(gymnasium.Env):
    """An episode of one copy of an environment at a time, with the true reward of a goal."""

    def __init__(self, tasks: RewardTasks, which: int) -> None:
        self.tasks, self.which, self.env = tasks, torch.tensor([which]), tasks.env
        self.simulation = self.env.simulate(1)
        self.random = torch.Generator().manual_seed(which)
        unbounded = partial(gymnasium.spaces.Box, -np.inf, np.inf, dtype=np.float32)
        self.observation_space = unbounded((self.env.observation,))
        self.action_space = gymnasium.spaces.Box(-10, 10, (self.env.action,), np.float32)  # what is beyond is clipped

    def reset(self, **_: Any) -> tuple[np.ndarray, dict]:
        self.seen = self.simulation.reset(torch.rand(1, self.env.randoms, generator=self.random))
        self.place, self.steps = self.simulation.positions(), 0
        return self.seen[0].numpy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        done = torch.from_numpy(action)[None]
        after, ended = self.simulation.step(done)
        place = self.simulation.positions()
        observed, places = (torch.stack(pair, 1)[None] for pair in ((self.seen, after), (self.place, place)))
        mask = torch.ones(1, 1, 1, dtype=torch.bool)
        step = Paths(observed, done.view(1, 1, 1, -1), torch.zeros(1, 1, 1), places, mask)
        reward = self.tasks.rewards(step, self.which).item()
        self.seen, self.place, self.steps = after, place, self.steps + 1
        return after[0].numpy(), reward, bool(ended[0]), self.steps == self.env.horizon, {}


def learn(tasks: RewardTasks, which: int, episodes: int, steps: int) -> list[float]:
    """Mean return of the episodes of each rollout, before the first update and after each of `steps`."""
    env = Monitor(Goal(tasks, which))
    each = episodes * tasks.env.horizon
    PPO("MlpPolicy", env, n_steps=each, batch_size=100, seed=which, device="cpu").learn((steps + 1) * each)
    return [float(np.mean(env.get_episode_rewards()[k * episodes :][:episodes])) for k in range(steps + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    config: Any = load(options.config, options.changes)
    s = config.evaluate
    tasks = goals(s.benchmark, config.env, "test", s.goals, s.seed)
    asked = {**asdict(s), "env": config.plain["env"], "stable-baselines3": __version__}
    kept = Kept(options.record.with_suffix(".goals"), asked)
    work = {str(i): partial(learn, tasks, i, s.episodes, s.steps) for i in range(s.goals)}
    returns = list(kept.compute_rows(work).values())
    row = {"returns": returns}
    protocol = {"name": s.benchmark, "split": "test", "proposed_with": "nothing", "goals": s.goals}
    record_result(
        options.record,
        {
            "domain": "env",
            "name": "stable_baselines3_ppo",
            "title": TITLE,
            "rows": {TITLE: tabulate_returns(torch.tensor(returns))},
            "adaptation": {TITLE: trace_returns(row, s.episodes * config.env.horizon)},
            "protocol": {**protocol, "episodes": s.episodes, "steps": s.steps, "seed": s.seed},
            "facts": [f"stable-baselines3 {__version__}, its defaults but for a rollout of {s.episodes} episodes"],
            "seed": 0,
            "hardware": name_hardware(Theta({"": torch.zeros(1)})),
            "umeta": "",
            "commit": find_commit(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "config": config.plain,
        },
    )


if __name__ == "__main__":
    main()
