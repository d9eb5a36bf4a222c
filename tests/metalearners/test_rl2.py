"""RL^2 against a GRU written out by hand, its memory step by step, and what it makes of a trial."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from helpers.toys import Itself
from test_rl import Corners, Fuse
from torch import Tensor

from umeta.benchmarks.goals import goals
from umeta.cli.main import main
from umeta.config.build import build
from umeta.config.environments import TrainConfig
from umeta.draw import environments, mosaic
from umeta.envs.gym import Gym
from umeta.envs.nav2d import Nav2D
from umeta.errors import UserError
from umeta.metalearners.maml import MAML
from umeta.metalearners.rl2 import RL2
from umeta.models.mlp import MLP
from umeta.objectives import log_probability
from umeta.outer.promp import ProMP
from umeta.outer.trpo import TRPO
from umeta.rl.advantage import normalise, trial_advantages
from umeta.rl.ridge import crossfit, features
from umeta.rl.rollout import Paths
from umeta.runtime import artifacts
from umeta.runtime.loop import RunContext
from umeta.tasks.reward import RewardTasks
from umeta.train import BatchProblem, metatrain, policy_of, roll_out
from umeta.types import Adapted, Batch, EpisodeSpec, RecurrentLearner, TaskSpec, Theta

TASKS, TRIALS, STEPS = 2, 3, 4
SPEC, EPISODE = TaskSpec((2,), "policy", 1, 1), EpisodeSpec(1, TRIALS, TRIALS)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def begun(hidden: int = 3) -> tuple[RL2, Theta]:
    """Random weights in float64, none of them small."""
    learner = RL2(Itself(), hidden=hidden).build(SPEC, EPISODE)
    theta = learner.init(0)
    params = {name: drawn(*value.shape, seed=i) for i, (name, value) in enumerate(sorted(theta.params.items()))}
    return learner, Theta(params)


def episodes(seed: int, lengths: list[int] | None = None) -> Batch:
    """An episode of each trial of each task; `lengths` are those of the trials."""
    shape = (TASKS, TRIALS, STEPS)
    mask = torch.arange(STEPS) < torch.tensor(lengths or [STEPS] * TRIALS)[:, None]
    first = torch.zeros(shape, dtype=torch.bool)
    first[..., 0] = True
    return Batch(
        x=drawn(*shape, 2, seed=seed).flatten(1, 2),
        y=drawn(*shape, 1, seed=seed + 50).flatten(1, 2),
        mask=mask.expand(shape).flatten(1),
        way=1,
        w=drawn(*shape, seed=seed + 100).flatten(1),
        logp=drawn(*shape, seed=seed + 150).flatten(1) - 3,
        score=drawn(TASKS, seed=seed),
        reward=(5 * drawn(*shape, seed=seed + 200) - 30).flatten(1),
        first=first.flatten(1),
        sequences=TRIALS,
    )


def rolled(
    learner: RL2, theta: Theta, tasks: RewardTasks, count: int = 4, rounds: int = 2
) -> tuple[list[Batch], Batch]:
    batch = tasks.sample(np.arange(count), episode=EPISODE, seed=0)
    return roll_out(learner, theta, batch, count, rounds)


def by_hand(theta: Theta, rounds: list[Batch], task: int, trial: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Answers at all steps of one trial, and the memory after them: numpy and the equations of the GRU."""
    p = {name.rpartition("rl2.")[2]: value.numpy() for name, value in theta.params.items()}
    h, came, rewards, out = np.zeros(3), [0.0, 0.0], [], []
    for r, batch in enumerate(rounds):
        for t in range(STEPS):
            item = trial * STEPS + t
            if not batch.mask[task, item]:
                continue
            flag = float(r > 0 and t == 0)
            x = p["weight"] @ np.array([*batch.x[task, item], *came, flag])
            gates = p["cell.weight_ih"] @ x + p["cell.bias_ih"]
            recurrent = p["cell.weight_hh"] @ h + p["cell.bias_hh"]
            reset, update = (1 / (1 + np.exp(-(gates + recurrent)[i : i + 3])) for i in (0, 3))
            h = (1 - update) * np.tanh(gates[6:] + reset * recurrent[6:]) + update * h
            out.append(p["answer.weight"] @ h + p["answer.bias"])
            rewards.append(batch.reward[task, item].item())
            spread = np.std(rewards)
            scaled = (rewards[-1] - np.mean(rewards)) / spread if spread else 0.0
            came = [batch.y[task, item, 0].item(), float(np.clip(scaled, -5, 5))]
    return out, h


@pytest.mark.parametrize("lengths", [None, [4, 2, 1]], ids=["whole", "ended"])
def test_a_trial_by_hand(lengths: list[int] | None) -> None:
    learner, theta = begun()
    rounds = [episodes(0), episodes(1, lengths), episodes(2)]
    trial = learner.trial(rounds)
    answers = learner.replay(theta, learner.unadapted(theta, TASKS), trial).unflatten(1, (TRIALS, -1))
    there = trial.mask.unflatten(1, (TRIALS, -1))
    adapted = None
    for batch in rounds:
        adapted = learner.adapt(theta, batch, start=adapted)
    assert adapted is not None
    for task in range(TASKS):
        for e in range(TRIALS):
            out, memory = by_hand(theta, rounds, task, e)
            np.testing.assert_allclose(answers[task, e][there[task, e]], out, rtol=1e-6)
            np.testing.assert_allclose(adapted.params["hidden"][task, e], memory, rtol=1e-6)


@dataclass(frozen=True)
class Far:
    """Reward z: how close the body is to z, less what was done."""

    count: int = 5

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        return -(paths.positions[:, :, 1:, 0] - which[:, None, None]).abs() - paths.actions.square().sum(-1)

    def describe(self, states: Tensor) -> list[str]:
        return []


ENVIRONMENTS: dict[str, Callable[[], RewardTasks]] = {
    "ends early": lambda: RewardTasks(Fuse(), Far()),
    "goes on": lambda: RewardTasks(Nav2D(horizon=6), Corners()),
    "has a reward of its own": lambda: goals("own", Gym("Pendulum-v1", horizon=6), "val", 4, 0),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_acted_step_by_step_is_what_is_replayed(name: str) -> None:
    """The probabilities that were noted when it acted are those of reading all of the trial at once."""
    tasks = ENVIRONMENTS[name]()
    learner = RL2(MLP([8]), hidden=8).build(tasks.spec, EPISODE)
    theta = learner.init(0)
    params = {name: 2 * value for name, value in theta.params.items()}
    params["rl2.answer.weight"] = 10 * params["rl2.answer.weight"]
    supports, query = rolled(learner, Theta(params), tasks)
    trial = learner.trial([*supports, query])
    logp = log_probability(learner.replay(Theta(params), learner.unadapted(Theta(params), 4), trial), trial.y)
    torch.testing.assert_close(logp[trial.mask], trial.logp[trial.mask], atol=1e-3, rtol=1e-3)
    forgetful = [learner.replay(Theta(params), learner.unadapted(Theta(params), 4), one) for one in (*supports, query)]
    assert (log_probability(forgetful[-1], query.y) - query.logp)[query.mask].abs().max() > 0.1


def test_the_order_of_episodes_matters_and_padding_does_not() -> None:
    learner, theta = begun()
    one, other, next_one = episodes(0, [4, 2, 1]), episodes(1), episodes(2)

    def after(*rounds: Batch) -> Adapted:
        adapted = learner.unadapted(theta, TASKS)
        for batch in rounds:
            adapted = learner.adapt(theta, batch, start=adapted)
        return adapted

    before = learner.replay(theta, after(one, other), next_one)
    assert (learner.replay(theta, after(other, one), next_one) - before).abs().min() > 1e-3
    noise = torch.where(one.mask, 0.0, 100.0)
    changed = replace(one, x=one.x + noise[..., None], y=one.y - noise[..., None], reward=one.reward + noise)
    torch.testing.assert_close(learner.replay(theta, after(changed, other), next_one), before)
    whole = learner.trial([one, other])
    assert whole.sequences == TRIALS
    torch.testing.assert_close(learner.replay(theta, learner.adapt(theta, whole), next_one), before)


def test_trials_and_tasks_know_nothing_of_each_other() -> None:
    learner, theta = begun()
    one, other = episodes(0), episodes(1)
    answers = learner.replay(theta, learner.adapt(theta, one), other)
    for t in range(TASKS):
        alone = learner.replay(theta, learner.adapt(theta, one.chunk(t, t + 1)), other.chunk(t, t + 1))
        torch.testing.assert_close(alone, answers[t : t + 1])
    for e in range(TRIALS):
        items = slice(e * STEPS, (e + 1) * STEPS)

        def trial(batch: Batch, items: slice = items) -> Batch:
            return replace(batch.map_tensors(lambda v: v[:, items] if v.dim() > 1 else v), sequences=1)

        alone = learner.replay(theta, learner.adapt(theta, trial(one)), trial(other))
        torch.testing.assert_close(alone, answers[:, items])


def test_rewards_of_another_scale_are_the_same_to_it() -> None:
    learner, theta = begun()
    one, other = episodes(0), episodes(1)

    def scaled(batch: Batch) -> Batch:
        return replace(batch, reward=batch.reward * 70 - 3)

    found = learner.replay(theta, learner.adapt(theta, scaled(one)), scaled(other))
    torch.testing.assert_close(found, learner.replay(theta, learner.adapt(theta, one), other), atol=1e-4, rtol=1e-4)
    constant = replace(one, reward=torch.full_like(one.reward, -0.1))
    none = replace(one, reward=torch.zeros_like(one.reward))
    found, expected = (learner.adapt(theta, batch).params["hidden"] for batch in (constant, none))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_one_more_observation_begins_an_episode_of_each_trial() -> None:
    learner, theta = begun()
    adapted = learner.adapt(theta, episodes(0))
    following = episodes(1)
    expected = learner.replay(theta, adapted, following).unflatten(1, (TRIALS, -1))[:, :, 0]
    x = following.x.unflatten(1, (TRIALS, -1))[:, :, 0]
    kept = copy.deepcopy(adapted)
    torch.testing.assert_close(learner.predict(theta, adapted, x), expected)
    torch.testing.assert_close(learner.predict(theta, adapted, x[:, :2]), expected[:, :2])
    torch.testing.assert_close(learner.predict(theta, adapted, x.repeat(1, 2, 1)), expected.repeat(1, 2, 1))
    assert all(torch.equal(value, kept.params[name]) for name, value in adapted.params.items())


def test_the_advantages_of_a_trial() -> None:
    """Everything that is still to come in the trial, less a baseline of its own for each of its episodes."""
    rounds, discount = [episodes(seed) for seed in range(3)], 0.9
    found = RL2(Itself(), discount=discount).trial(rounds).w.unflatten(1, (TRIALS, -1))
    rewards = torch.cat([batch.reward.unflatten(1, (TRIALS, -1)) for batch in rounds], 2)
    coming = torch.zeros_like(rewards)
    for t in range(3 * STEPS):
        coming[..., t] = sum(discount ** (s - t) * rewards[..., s] for s in range(t, 3 * STEPS))
    every = torch.ones(TASKS, TRIALS, STEPS, dtype=torch.bool)
    values = [
        crossfit(features(batch.x.unflatten(1, (TRIALS, -1))), y, every)
        for batch, y in zip(rounds, coming.split(STEPS, 2), strict=True)
    ]
    expected = normalise(coming - torch.cat(values, 2), torch.ones_like(rewards, dtype=torch.bool))
    torch.testing.assert_close(found, expected)


def test_what_ended_earns_nothing_more_in_its_episode_but_in_the_next() -> None:
    shape = (1, 2, 2, 3)
    mask = torch.tensor([[True, False, False], [True, True, True]]).expand(shape)
    rewards = torch.zeros(shape)
    rewards[0, 0, 0, 1] = 100.0  # after the end
    assert not trial_advantages(torch.zeros(*shape, 1), rewards, mask, 0.9).any()
    rewards[0, 0, 1, 2] = 1.0
    advantages = trial_advantages(torch.zeros(*shape, 1), rewards, mask, 0.9)[0]
    assert advantages[0, 0, 0] > 0
    assert not advantages[:, 0, 1:].any()


def problem(chunk: int = TASKS) -> tuple[BatchProblem, Theta]:
    learner, theta = begun()
    theta = Theta({name: value.requires_grad_() for name, value in theta.params.items()})
    return BatchProblem(learner, theta, SPEC, [], learner.trial([episodes(0, [4, 2, 1]), episodes(1)]), chunk), theta


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_meta_gradient_equals_finite_differences(clip: float | None) -> None:
    at, theta = problem()
    _, grads = at.loss_and_grad(clip=clip)
    split, _ = problem(chunk=1)
    torch.testing.assert_close(split.loss_and_grad(clip=clip)[1], grads)
    for name in ("rl2.cell.weight_hh", "rl2.answer.weight", "weight"):
        direction = drawn(*theta.params[name].shape, seed=5)
        around = []
        for sign in (-1, 1):
            theta.params[name].data += sign * 1e-6 * direction
            around.append(at.loss_and_grad(clip=clip)[0]["loss"])
            theta.params[name].data -= sign * 1e-6 * direction
        slope = (around[1] - around[0]) / 2e-6
        assert slope == pytest.approx((grads[name] * direction).sum().item(), rel=1e-4, abs=1e-6)


def test_a_step_of_trpo_keeps_to_its_trust_region() -> None:
    at, theta = problem()
    with torch.no_grad():  # what acted was this policy
        trial = at.query
        output = at.learner.replay(theta, at.learner.unadapted(theta, TASKS), trial)
        at.query = replace(trial, logp=log_probability(output, trial.y))
    outer = TRPO()
    outer.start(theta.params)
    before = at.loss_and_kl()[0]
    found = outer.step(at, 0.0)
    after, apart = at.loss_and_kl()
    assert found["accepted"] > 0
    assert after < before
    assert 0 < apart <= 0.01


def test_it_is_known_by_what_it_can_do() -> None:
    assert isinstance(RL2(MLP()), RecurrentLearner)
    assert not isinstance(MAML(MLP()), RecurrentLearner)


def test_images_are_refused() -> None:
    plain = {
        "name": "images",
        "data": {"name": "digits"},
        "embedding": {"name": "pixels"},
        "proposer": {"name": "kmeans"},
        "metalearner": {"name": "rl2", "model": {"name": "mlp"}},
        "train": {"outer": {"name": "adam"}},
    }
    with pytest.raises(UserError, match="on an environment; use another"):
        build(plain)


def test_a_film_tells_what_was_earned_too() -> None:
    tasks = RewardTasks(Nav2D(horizon=6), Corners())
    learner = RL2(MLP([8]), hidden=8).build(tasks.spec, EPISODE)
    act = learner.act(theta := learner.init(0), learner.unadapted(theta, 1))
    batch = tasks.sample(np.arange(1), episode=EPISODE, seed=0)
    assert batch.telling(lambda x: x) is None
    assert len(environments.film(tasks.env, act, 0, 6, batch.telling(act))) == 7
    assert act.state["seen"][0, 0, 0] == 6
    assert act.state["seen"][0, 0, 1] < 0


def test_what_a_step_earned_is_told_even_where_it_counts_from_the_beginning() -> None:
    class Farther(Corners):
        def __call__(self, paths: Paths, which: torch.Tensor) -> torch.Tensor:
            return (paths.positions[:, :, 1:] - paths.positions[:, :, :1]).norm(dim=-1)

    tasks, told = RewardTasks(Nav2D(horizon=6), Farther()), []
    learner = RL2(MLP([8]), hidden=8).build(tasks.spec, EPISODE)
    act = learner.act(theta := learner.init(0), learner.unadapted(theta, 1))
    observe = act.observe
    act.observe = lambda action, reward: (told.append(reward), observe(action, reward))
    batch = tasks.sample(np.arange(1), episode=EPISODE, seed=0)
    paths = batch.paths(act, 3, "told")
    torch.testing.assert_close(torch.stack(told, -1), tasks.rewards(paths, batch.which))


def test_every_stage_of_a_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mosaic, "render", lambda figure: np.zeros((4, 4, 3), np.uint8))
    overrides = ["env.horizon=6", "train.steps=2", "train.meta_batch=2", "train.episodes=2", "train.rounds=2"]
    overrides += ["proposer.skills=3", "proposer.hidden=8", "metalearner.hidden=4", "metalearner.model.hidden=[4]"]
    overrides += ["evaluate.goals=2", "evaluate.episodes=3", "evaluate.steps=2", "evaluate.baselines=[scratch]"]
    assert main(["run", "nav2d_rl2", *overrides, "--device", "cpu"]) == 0
    report = artifacts.read_json(tmp_path / "runs/nav2d_rl2/report.json")
    assert len(report["adaptation"]) == 2
    assert any("one more episode in each of 3 trials" in fact for fact in report["facts"])
    assert (tmp_path / "runs/nav2d_rl2/after.gif").exists()


def test_it_learns_to_find_a_goal_that_only_rewards_tell() -> None:
    """Standing still scores -11.3 in 20 steps. The first episode of a trial looks for the goal, the second knows it."""
    tasks = RewardTasks(Nav2D(horizon=20), Corners())
    config = TrainConfig(ProMP(lr=1e-2), steps=60, meta_batch=8, episodes=10)
    learner = RL2(MLP([16]), hidden=16).build(tasks.spec, config.episode)
    batch = tasks.sample(np.arange(4), episode=config.episode, seed=1)  # each corner once
    opposite = batch.which.argsort()[3 - batch.which]

    def scores(theta: Theta) -> tuple[float, float]:
        """Return of the second episode, with the task's own memory of the first and with that of the far corner."""
        supports, query = roll_out(learner, theta, batch, 4, rounds=1)
        with torch.no_grad():
            memory = learner.adapt(theta, supports[0]).params
            other = Adapted({name: value[opposite] for name, value in memory.items()})
            misled = batch.query(policy_of(learner, theta, other))
        return query.score.mean().item(), misled.score.mean().item()

    untrained, _ = scores(learner.init(0))
    trained, misled = scores(metatrain(learner, tasks, config, RunContext()))
    assert trained > untrained + 4
    assert trained > misled + 5
