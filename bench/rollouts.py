"""HalfCheetah: rollouts and meta-training beside the bare physics and gymnasium's vector environments.

The bare physics repeat the torques of a rollout, so that all of them go through the same states.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import gymnasium
import mujoco
import torch
from torch import Tensor

from umeta.config.build import load
from umeta.config.environments import Config
from umeta.envs.batched import quiet
from umeta.envs.half_cheetah import HalfCheetah
from umeta.rl.rollout import rollout
from umeta.runtime.loop import RunContext
from umeta.train import metatrain
from umeta.types import Act

TASKS, EPISODES, HIDDEN = 20, 20, 100
COPIES = 16  # of gymnasium's vector environment
SINGLE = 20  # copies whose episodes are repeated one by one
META_TRAINING, META_STEPS = "umeta, meta-training", 4  # a side, and how many of them a call takes
STEPS, FRAMES = HalfCheetah().horizon, HalfCheetah.model.frames
SIDES = {  # steps of a call
    "mujoco.batch, no policy": TASKS * EPISODES * STEPS,
    "mj_step, no policy, one thread": SINGLE * STEPS,
    "umeta": TASKS * EPISODES * STEPS,
    META_TRAINING: META_STEPS * 2 * 4 * 20 * STEPS,  # support and query of the config's four tasks
    f"gymnasium SyncVectorEnv({COPIES})": COPIES * STEPS,
}


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


def side(name: str) -> Callable[[], None]:
    """Return what takes the steps."""
    if name == META_TRAINING:
        return meta_training()
    env = HalfCheetah()
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

    def ours() -> None:
        rollout(simulation, act, noise, u)

    def batched() -> None:
        bodies.reset(u.flatten(0, 1))
        for torque in torques:
            bodies.ctrl[:] = torque
            bodies.batch.step(nstep=FRAMES)

    def single() -> None:
        for copy in range(SINGLE):
            mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:] = starts[copy]
            for torque in torques[:, copy]:
                data.ctrl[:] = torque
                mujoco.mj_step(model, data, nstep=FRAMES)

    @torch.no_grad()
    def gymnasiums() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # more are slower on 16 observations
        seen, _ = vector.reset(seed=0)
        for t in range(env.horizon):
            mean, log_std = one(torch.from_numpy(seen)[None].float())[0].chunk(2, -1)
            vector.step(env.torque(mean + log_std.exp() * noise[0, :COPIES, t]).numpy())
        torch.set_num_threads(threads)

    return dict(
        zip((side for side in SIDES if side != META_TRAINING), [batched, single, ours, gymnasiums], strict=True)
    )[name]


def meta_training() -> Callable[[], None]:
    """Return what takes meta-steps on true rewards by ProMP, with a gradient step of 0.5 nats."""
    config = load("cheetah_direction_oracle", [f"train.steps={META_STEPS}"])
    assert isinstance(config, Config)
    tasks = config.proposer.propose(config.env, RunContext())
    learner = config.metalearner.build(tasks.spec, config.train.episode)

    def learn() -> None:
        metatrain(learner, tasks, config.train)

    return learn
