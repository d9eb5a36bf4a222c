"""HalfCheetah, environment steps a second: rollouts beside the bare physics and gymnasium's vector environments.

    python bench/rollouts.py

All are measured in turn, several times over, and the medians are printed and added to results/rollouts.json. The bare
physics repeat the torques of a rollout, so that all of them go through the same states.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date
from itertools import pairwise
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import torch
from torch import Tensor

from umeta import artifacts
from umeta.envs.batched import FRAMES, quiet
from umeta.envs.half_cheetah import HalfCheetah
from umeta.evaluation import commit, hardware
from umeta.rl.rollout import rollout
from umeta.types import Act, Theta

TASKS, EPISODES, HIDDEN, ROUNDS = 20, 20, 100, 7
COPIES = 16  # of gymnasium's vector environment
SINGLE = 20  # copies whose episodes are repeated one by one
RAW = "mujoco.batch, no policy"
RESULTS = Path(__file__).parent.parent / "results" / "rollouts.json"


def policies(env: HalfCheetah, tasks: int) -> Act:
    """2 x 100 tanh with weights of their own: mean and log standard deviation of an action, in the policy's units."""
    random = torch.Generator().manual_seed(0)
    sizes = [env.observation, HIDDEN, HIDDEN, 2 * env.action]
    shapes = list(pairwise(sizes))
    weights = [torch.randn(tasks, i, o, generator=random) / i**0.5 for i, o in shapes]
    weights[-1][:, :, env.action :] = 0
    biases = [torch.zeros(tasks, 1, o) for _, o in shapes]

    def act(x: Tensor) -> Tensor:
        x = torch.baddbmm(biases[0], x, weights[0])
        for bias, weight in zip(biases[1:], weights[1:], strict=True):
            x = torch.baddbmm(bias, x.tanh(), weight)
        return x

    return act


def contestants(env: HalfCheetah) -> dict[str, Callable[[], int]]:
    """What is measured: each takes steps and says how many."""
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(TASKS, EPISODES, env.horizon, env.action, generator=random)
    u = torch.rand(TASKS, EPISODES, env.randoms, generator=random)
    act, one = policies(env, TASKS), policies(env, 1)
    simulation, bodies = env.simulate(TASKS * EPISODES), env.simulate(TASKS * EPISODES)
    actions = rollout(simulation, act, noise, u).actions
    torques = env.torque(actions).flatten(0, 1).transpose(0, 1).double().numpy()
    model, data = bodies.batch.model, mujoco.MjData(bodies.batch.model)
    bodies.reset(u.flatten(0, 1))
    starts = list(zip(bodies.qpos.copy(), bodies.qvel.copy(), strict=True))
    with quiet():
        vector = gymnasium.make_vec(env.id, COPIES, vectorization_mode="sync")

    def ours() -> int:
        return rollout(simulation, act, noise, u).mask.numel()

    def batched() -> int:
        bodies.reset(u.flatten(0, 1))
        for torque in torques:
            bodies.ctrl[:] = torque
            bodies.batch.step(nstep=FRAMES)
        return torques[..., 0].size

    def single() -> int:
        for copy in range(SINGLE):
            mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:] = starts[copy]
            for torque in torques[:, copy]:
                data.ctrl[:] = torque
                mujoco.mj_step(model, data, nstep=FRAMES)
        return SINGLE * len(torques)

    @torch.no_grad()
    def gymnasiums() -> int:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # more are slower on 16 observations
        seen, _ = vector.reset(seed=0)
        for t in range(env.horizon):
            mean, log_std = one(torch.from_numpy(seen)[None].float())[0].chunk(2, -1)
            vector.step(env.torque(mean + log_std.exp() * noise[0, :COPIES, t]).numpy())
        torch.set_num_threads(threads)
        return COPIES * env.horizon

    return {
        RAW: batched,
        "mj_step, no policy, one thread": single,
        "umeta": ours,
        f"gymnasium SyncVectorEnv({COPIES})": gymnasiums,
    }


def main() -> None:
    measured = contestants(HalfCheetah())
    speeds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(ROUNDS):
        for name, run in measured.items():
            start = time.perf_counter()
            steps = run()
            speeds[name].append(steps / (time.perf_counter() - start))
    rows = {
        name: {
            "steps a second": round(float(np.median(found))),
            "ratio": round(float(np.median(np.divide(found, speeds[RAW]))), 3),
        }
        for name, found in speeds.items()
    }
    print(f"{'HalfCheetah-v5':<34}{'steps a second':>16}{'ratio':>8}")
    for name, row in rows.items():
        print(f"{name:<34}{row['steps a second']:>16,}{row['ratio']:>8.2f}")
    result = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "hardware": hardware(Theta({"policy": torch.zeros(1)})),
        "mujoco": mujoco.__version__,
        "gymnasium": gymnasium.__version__,
        "tasks": TASKS,
        "episodes": EPISODES,
        "rounds": ROUNDS,
        "rows": rows,
    }
    artifacts.write_json(RESULTS, [*(artifacts.read_json(RESULTS) if RESULTS.exists() else []), result])


if __name__ == "__main__":
    main()
