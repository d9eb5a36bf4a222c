"""`python -m bench.stable_baselines CONFIG [KEY=VALUE ...] --record FILE`: PPO or SAC on true rewards.

A baseline that owes this library nothing but the physics and the rewards (pip install stable-baselines3): on each test
goal of a config's evaluation its PPO, or with `--algorithm sac` its SAC, with its own defaults, learns from as many
episodes a step as the library's rows. A goal that is done is kept in FILE.goals: the same command goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3 import PPO, SAC, __version__
from stable_baselines3.common.vec_env import VecEnv

from umeta.benchmarks.goals import goals
from umeta.config.build import load
from umeta.envs.nav2d import FARTHEST
from umeta.evaluation.environments import round_returns, tabulate_returns, trace_returns
from umeta.evaluation.rows import Kept, find_origin, record_result
from umeta.parts import SimulationTraits
from umeta.rl.rollout import Paths
from umeta.tasks.reward import RewardTasks

BATCH = 100  # which divides a rollout; 64 does not
CHANGED = {  # of the defaults
    "ppo": f"the rollout and batches of {BATCH}",
    "sac": "a rollout of all episodes of a step before as many updates as it has steps",
}


class Goal(VecEnv):
    """Copies of an environment side by side, with a goal's true reward; episodes end with the horizon.

    A copy whose own episode ends before that stays as it is, and earns nothing.
    """

    def __init__(self, tasks: RewardTasks, which: int, copies: int) -> None:
        self.tasks, self.which, self.env = tasks, torch.tensor([which]), tasks.env
        self.simulation = self.env.simulate(copies)
        self.random = torch.Generator().manual_seed(which)
        self.returns: list[float] = []  # of each round of episodes, their mean
        most = (FARTHEST if self.env.id.startswith("Nav2D") else 1) / self.env.unit  # beyond it all are clipped
        actions = Box(-most, most, (self.env.action,), np.float32)
        super().__init__(copies, Box(-np.inf, np.inf, (self.env.observation,), np.float32), actions)

    def reset(self) -> np.ndarray:
        self.seen = self.simulation.reset(torch.rand(self.num_envs, self.env.randoms, generator=self.random))
        self.place, self.steps, self.earned = self.simulation.positions(), 0, 0.0
        self.living = torch.ones(self.num_envs, dtype=torch.bool)
        return self.seen.numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = torch.from_numpy(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        seen, ended = self.simulation.step(self.actions)
        place, own = self.simulation.positions(), SimulationTraits.of(self.simulation).last_reward
        observed, places = (torch.stack(pair, 1)[None] for pair in ((self.seen, seen), (self.place, place)))
        step = Paths(
            observed,
            self.actions[None, :, None],
            torch.zeros(1, self.num_envs, 1),
            places,
            self.living[None, :, None],
            None if own is None else own[None, :, None],
        )
        reward = self.tasks.rewards(step, self.which)[0, :, 0] * self.living
        self.seen, self.place, self.living = seen, place, self.living & ~ended
        self.steps, self.earned = self.steps + 1, self.earned + reward.mean().item()
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


def learn(algorithm: str, tasks: RewardTasks, which: int, episodes: int, steps: int) -> list[float]:
    """Mean return of the episodes of each rollout, before the first update and after each of `steps`."""
    goal, horizon = Goal(tasks, which, episodes), tasks.env.horizon
    total = (steps + 1) * episodes * horizon
    common: Any = {"policy": "MlpPolicy", "env": goal, "seed": which, "device": "cpu"}
    if algorithm == "ppo":
        model: Any = PPO(n_steps=horizon, batch_size=BATCH, **common)
    else:
        every = {"train_freq": horizon, "gradient_steps": -1}  # by default, too, an update for each step
        model = SAC(learning_starts=0, buffer_size=total, **every, **common)
    model.learn(total)
    return goal.returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--algorithm", choices=list(CHANGED), default="ppo")
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    config: Any = load(options.config, options.changes)
    s, algorithm = config.evaluate, options.algorithm
    if algorithm == "sac" and getattr(config.env, "chooses", False):
        parser.error(f"SAC needs continuous actions, and those of {config.env.id} are choices; use --algorithm ppo")
    tasks = goals(s.benchmark, config.env, "test", s.goals, s.seed)
    asked = {**asdict(s), "env": config.plain["env"], "stable-baselines3": __version__}
    kept = Kept(options.record.with_suffix(".goals"), asked)
    of = "" if algorithm == "ppo" else f"{algorithm} "  # one file keeps the goals of both
    work = {f"{of}{i}": partial(learn, algorithm, tasks, i, s.episodes, s.steps) for i in range(s.goals)}
    returns = list(kept.compute_rows(work).values())
    title = f"{algorithm.upper()} on the true reward (stable-baselines3)"
    protocol = {"name": s.benchmark, "split": "test", "proposed_with": "nothing", "goals": s.goals}
    record_result(
        options.record,
        {
            "domain": "env",
            "name": f"stable_baselines3_{algorithm}",
            "title": title,
            "rows": {title: tabulate_returns(torch.tensor(returns))},
            "adaptation": {title: trace_returns({"returns": returns}, s.episodes * config.env.horizon)},
            "returns": {title: round_returns(returns)},
            "protocol": {**protocol, "episodes": s.episodes, "steps": s.steps, "seed": s.seed},
            "facts": [f"stable-baselines3 {__version__}, its defaults but for {CHANGED[algorithm]}"],
            **find_origin(),
            "seed": 0,
            "umeta": "",
            "config": config.plain,
        },
    )


if __name__ == "__main__":
    main()
