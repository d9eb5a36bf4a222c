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

import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3 import PPO, __version__
from stable_baselines3.common.vec_env import VecEnv

from umeta.benchmarks.goals import goals
from umeta.config.build import load
from umeta.evaluation.environments import tabulate_returns, trace_returns
from umeta.evaluation.rows import Kept, find_commit, name_hardware, record_result
from umeta.rl.rollout import Paths
from umeta.tasks.reward import RewardTasks
from umeta.types import Theta

BATCH = 100  # which divides a rollout; 64 does not
TITLE = "PPO on the true reward (stable-baselines3)"


class Goal(VecEnv):
    """Copies of an environment side by side, with a goal's true reward; episodes end with the horizon."""

    def __init__(self, tasks: RewardTasks, which: int, copies: int) -> None:
        self.tasks, self.which, self.env = tasks, torch.tensor([which]), tasks.env
        self.simulation = self.env.simulate(copies)
        self.random = torch.Generator().manual_seed(which)
        self.returns: list[float] = []  # of each round of episodes, their mean
        actions = Box(-10, 10, (self.env.action,), np.float32)  # the environment clips them itself
        super().__init__(copies, Box(-np.inf, np.inf, (self.env.observation,), np.float32), actions)

    def reset(self) -> np.ndarray:
        self.seen = self.simulation.reset(torch.rand(self.num_envs, self.env.randoms, generator=self.random))
        self.place, self.steps, self.earned = self.simulation.positions(), 0, 0.0
        return self.seen.numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = torch.from_numpy(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        seen, _ = self.simulation.step(self.actions)
        place = self.simulation.positions()
        observed, places = (torch.stack(pair, 1)[None] for pair in ((self.seen, seen), (self.place, place)))
        there = torch.ones(1, self.num_envs, 1, dtype=torch.bool)
        step = Paths(observed, self.actions[None, :, None], torch.zeros(1, self.num_envs, 1), places, there)
        reward = self.tasks.rewards(step, self.which)[0, :, 0]
        self.seen, self.place, self.steps, self.earned = seen, place, self.steps + 1, self.earned + reward.mean().item()
        over = self.steps == self.env.horizon
        infos = [{"TimeLimit.truncated": over, "terminal_observation": last} for last in seen.numpy()]
        if over:
            self.returns.append(self.earned)
            self.reset()
        return self.seen.numpy(), reward.numpy(), np.full(self.num_envs, over), infos

    def close(self) -> None:
        pass

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs  # such as render_mode

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **options: Any) -> list[Any]:
        raise NotImplementedError


def learn(tasks: RewardTasks, which: int, episodes: int, steps: int) -> list[float]:
    """Mean return of the episodes of each rollout, before the first update and after each of `steps`."""
    goal, horizon = Goal(tasks, which, episodes), tasks.env.horizon
    model = PPO("MlpPolicy", goal, n_steps=horizon, batch_size=BATCH, seed=which, device="cpu")
    model.learn((steps + 1) * episodes * horizon)
    return goal.returns


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
            "facts": [f"stable-baselines3 {__version__}, its defaults but for the rollout and batches of {BATCH}"],
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
