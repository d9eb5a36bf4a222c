"""Evaluation on an environment: what a step of adaptation is, and what is chosen on which goals."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from umeta.benchmarks.goals import GoalOracle, goals
from umeta.config import build
from umeta.draw.curves import label_of
from umeta.envs.nav2d import Nav2D
from umeta.errors import UserError
from umeta.evaluation import environments
from umeta.evaluation.environments import Trial, Way, measure_returns, tabulate_returns, trace_returns
from umeta.evaluation.guard import did_harm, guard, totals
from umeta.evaluation.result import summarize
from umeta.evaluation.steps import (
    ADAM,
    CLIP,
    EPOCHS,
    NATS,
    PPO,
    SGD,
    change_learner,
    follow,
    list_candidates,
    own_step,
    stay,
)
from umeta.metalearners.context import TOLD, Context
from umeta.metalearners.maml import MAML
from umeta.metalearners.rl2 import RL2
from umeta.models.mlp import MLP
from umeta.objectives import gaussian, kl, policy
from umeta.rl.rollout import Paths
from umeta.runtime.artifacts import read_tensors
from umeta.runtime.loop import RunContext
from umeta.stages import metatrain, propose, runs
from umeta.stages.tasks import load_tasks
from umeta.tasks.reward import RewardBatch, RewardTasks, policy_spec
from umeta.train import policy_of
from umeta.types import Adapted, Batch, EpisodeSpec, PolicyLearner, TaskSpec, Theta

ENV = Nav2D(horizon=4)


@dataclass(frozen=True)
class Towards:
    """Each reward pays the way along a direction of its own."""

    count: int = 4

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        angle = which * (2 * math.pi / self.count)
        return (paths.actions * torch.stack([angle.cos(), angle.sin()], -1)[:, None, None]).sum(-1)

    def describe(self, states: Tensor) -> list[str]:
        return []


class Drift(PolicyLearner):
    """A policy is the mean of its actions; a step moves it by `theta`."""

    def build(self, spec: TaskSpec, episode: EpisodeSpec) -> Drift:
        return self

    def init(self, seed: int) -> Theta:
        return Theta({"mean": torch.zeros(2)})

    def unadapted(self, theta: Theta, tasks: int) -> Adapted:
        return Adapted({"mean": torch.zeros(tasks, 2)})

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        assert start is not None
        assert steps == 1
        return Adapted({"mean": start.params["mean"] + theta.params["mean"]}, steps=start.steps + 1)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        mean = adapted.params["mean"][:, None].expand(*x.shape[:2], 2)
        return torch.cat([mean, torch.full_like(mean, -9)], -1)


def tasks(episodes: int = 50, indices: int = 4) -> RewardBatch:
    distribution = RewardTasks(ENV, Towards())
    return distribution.sample(np.arange(indices), episode=EpisodeSpec(1, episodes, episodes), seed=0)


def test_returns_are_those_of_fresh_episodes_after_each_step() -> None:
    learner, theta, batch = Drift(), Theta({"mean": torch.tensor([1.0, 0.0])}), tasks()
    seen: list[Batch] = []

    def step(adapted: Adapted, episodes: Batch) -> Adapted:
        seen.append(episodes)
        return own_step(learner, theta)(adapted, episodes)

    found, policies = measure_returns(learner, theta, learner.unadapted(theta, 4), step, batch, 3)
    assert found.shape == (4, 4)
    assert [adapted.steps for adapted in policies] == [0, 1, 2, 3]
    assert len(seen) == 3  # none after the last
    along = (batch.which * math.pi / 2).cos()  # of the direction in which they drift
    expected = ENV.horizon * along[:, None] * torch.arange(4)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)  # the policies' noise, over 50 episodes
    for k, episodes in enumerate(seen):
        assert torch.equal(episodes.score, found[:, k])
        assert episodes.y[..., 0].mean() == pytest.approx(k, abs=0.02)
    noise = [episodes.y[..., 0] - k for k, episodes in enumerate(seen)]
    assert not torch.allclose(noise[0], noise[1], atol=1e-3)


# Steps


def prepared() -> tuple[MAML, Theta, list[Batch]]:
    """A policy in float64, and batches of three tasks to adapt on, some steps of which are masked."""
    learner = MAML(MLP([5]), inner_lr=0.1, steps=1).build(policy_spec(ENV), EpisodeSpec(1, 1, 1))
    theta = learner.init(0)
    theta = Theta({name: value.double() for name, value in theta.params.items()})
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    batches = [
        Batch(drawn(3, 20, 2), drawn(3, 20, 2), drawn(3, 20) > -1, 1, drawn(3, 20), -2 + 0.1 * drawn(3, 20))
        for _ in range(4)
    ]
    return learner, theta, batches


def gradients(learner: MAML, params: dict[str, Tensor], batch: Batch, clip: float | None = None) -> dict[str, Tensor]:
    """Of each task's own loss [T, ...], written out."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    h = torch.tanh(batch.x @ leaves["1.weight"].mT + leaves["1.bias"][:, None])
    mean = h @ leaves["head.weight"].mT + leaves["head.bias"][:, None]
    output = torch.cat([mean, leaves["head.free"][:, None].expand_as(mean)], -1)
    return dict(zip(leaves, torch.autograd.grad(policy(output, batch, clip).sum(), list(leaves.values())), strict=True))


@pytest.mark.parametrize(
    "name", [f"SGD {lr:g}" for lr in SGD["constant"]] + [f"SGD {lr:g}/k" for lr in SGD["harmonic"]]
)
def test_a_candidate_of_sgd_is_plain_gradient_descent(name: str) -> None:
    learner, theta, batches = prepared()
    step = list_candidates(learner, ENV, theta)[name]()
    adapted = learner.unadapted(theta, 3)
    params = {name: value.expand(3, *value.shape) for name, value in theta.params.items()}
    rate, harmonic = float(name.split()[1].split("/")[0]), name.endswith("/k")
    for k, batch in enumerate(batches):
        found = gradients(learner, params, batch)
        params = {n: p - rate / (k + 1 if harmonic else 1) * found[n] for n, p in params.items()}
        adapted = step(adapted, batch)
        for n in params:
            torch.testing.assert_close(adapted.params[n], params[n])


@pytest.mark.parametrize("nats", NATS)
def test_a_candidate_of_nats_moves_the_policy_by_them_and_later_by_less(nats: float) -> None:
    learner, theta, batches = prepared()
    step, adapted = list_candidates(learner, ENV, theta)[f"{nats:g}/k nats"](), learner.unadapted(theta, 3)
    for k, batch in enumerate(batches):
        after = step(adapted, batch)
        outputs = [learner.predict(theta, one, batch.x) for one in (adapted, after)]
        assert kl(*outputs, batch).tolist() == pytest.approx([nats / (k + 1)] * 3, rel=0.2)
        adapted = after


def test_one_way_follows_another_from_the_second_step_on() -> None:
    ways = [lambda adapted, batch, way=way: replace(adapted, steps=adapted.steps + way) for way in (1, 10)]
    step, adapted, seen = follow(*(lambda way=way: way for way in ways)), Adapted({}), []
    for _ in range(3):
        adapted = step(adapted, None)  # type: ignore[arg-type]
        seen.append(adapted.steps)
    assert seen == [1, 11, 21]


def earning(*means: float) -> Batch:
    """Two episodes of two steps in each task, of these mean returns, 0.2 apart."""
    reward = torch.tensor([[mean / 2 - 0.05, mean / 2 - 0.05, mean / 2 + 0.05, mean / 2 + 0.05] for mean in means])
    mask = torch.ones(reward.shape, dtype=torch.bool)
    return Batch(reward[..., None], reward[..., None], mask, 1, reward=reward, sequences=2)


def test_a_guard_goes_back_to_where_harm_was_done_and_halves_the_step() -> None:
    """Each step adds the mean return of the episodes it sees. The first task is harmed once, the second never.

    Two standard errors of the difference are 2 sqrt(2 * 0.02 / 2) = 0.283, as two returns 0.2 apart have a variance of
    0.02.
    """

    def step(adapted: Adapted, batch: Batch) -> Adapted:
        return Adapted({"w": adapted.params["w"] + totals(batch).mean(1)[:, None]}, steps=adapted.steps + 1)

    guarded, adapted = guard(step), Adapted({"w": torch.zeros(2, 1)})
    seen = []
    for batch in (earning(4, 4), earning(1, 3.9), earning(5, 5), earning(6, 6)):
        adapted = guarded(adapted, batch)
        seen.append(adapted.params["w"].flatten().tolist())
    expected = [[4, 4], [0 + 4 / 2, 4 + 3.9], [2 + 5 / 2, 7.9 + 5], [4.5 + 6 / 2, 12.9 + 6]]
    assert seen == [pytest.approx(pair) for pair in expected]
    assert adapted.steps == 4
    assert did_harm(totals(earning(4, 4)), totals(earning(3.73, 3.71))).tolist() == [False, True]


def test_the_step_that_picks_one_of_many_policies_is_not_undone() -> None:
    def step(adapted: Adapted, batch: Batch) -> Adapted:
        return Adapted({"w": adapted.params["w"] + 1}, steps=adapted.steps + 1)

    for explores, expected in ((True, [1, 2, 1.5]), (False, [1, 0.5, 0.25])):
        guarded, adapted = guard(step, explores), Adapted({"w": torch.zeros(1, 1)})
        seen = []
        for batch in (earning(4), earning(1), earning(-2)):
            adapted = guarded(adapted, batch)
            seen.append(adapted.params["w"].item())
        assert seen == pytest.approx(expected)


@pytest.mark.parametrize("lr", ADAM)
def test_a_candidate_of_adam_is_torchs_for_each_task(lr: float) -> None:
    learner, theta, batches = prepared()
    make = list_candidates(learner, ENV, theta)[f"Adam {lr:g}"]
    for _ in range(2):  # the second begins with moments of its own
        step, adapted = make(), learner.unadapted(theta, 3)
        params = {name: value.repeat(3, *[1] * value.dim()) for name, value in theta.params.items()}
        torchs = torch.optim.Adam(params.values(), lr=lr)
        for batch in batches:
            for name, grad in gradients(learner, params, batch).items():
                params[name].grad = grad
            torchs.step()
            adapted = step(adapted, batch)
            for name, value in params.items():
                torch.testing.assert_close(adapted.params[name], value.detach(), atol=1e-9, rtol=0)


def test_adam_goes_on_from_the_policies_it_is_given() -> None:
    """As after a guard has gone back."""
    learner, theta, batches = prepared()
    step, begin = list_candidates(learner, ENV, theta)["Adam 0.01"](), learner.unadapted(theta, 3)
    far = step(begin, batches[0])
    for batch in batches:
        far = step(far, batch)
    again = step(begin, batches[1])
    assert all((value - begin.params[name]).abs().max() < 0.02 for name, value in again.params.items())


def test_the_step_sizes_that_are_tried_leave_no_gap() -> None:
    """Three of each kind, each about three times the one before, so that the best is not far from one of them."""
    learner, theta, _ = prepared()
    rates: dict[str, list[float]] = {}
    for name in list_candidates(learner, ENV, theta):
        rates.setdefault(re.sub(r"[\d.]+", "", name), []).append(float(re.findall(r"[\d.]+", name)[0]))
    assert len(rates) == 5
    for kind, tried in rates.items():
        assert len(tried) == 3, kind
        assert all(2.9 < large / small < 3.5 for small, large in pairwise(tried)), kind


@pytest.mark.parametrize("lr", PPO)
def test_a_candidate_of_ppo_is_torchs_adam_on_the_clipped_objective(lr: float) -> None:
    learner, theta, batches = prepared()
    step, adapted = list_candidates(learner, ENV, theta)[f"PPO {lr:g}"](), learner.unadapted(theta, 3)
    params = {name: value.repeat(3, *[1] * value.dim()) for name, value in theta.params.items()}
    torchs = torch.optim.Adam(params.values(), lr=lr)
    for batch in batches:
        for _ in range(EPOCHS):
            for name, grad in gradients(learner, params, batch, clip=CLIP).items():
                params[name].grad = grad
            torchs.step()
        adapted = step(adapted, batch)
        for name, value in params.items():
            torch.testing.assert_close(adapted.params[name], value.detach(), atol=1e-7, rtol=0)


def test_changed_leaves_the_learner_itself_alone() -> None:
    learner = MAML(MLP([5]), inner_lr=0.1, steps=3)
    other = change_learner(learner, ENV, inner_lr=0.7)
    assert (learner.inner_lr, other.inner_lr, other.steps) == (0.1, 0.7, 3)


# What is chosen


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A run with skills, and tiny settings."""
    place = tmp_path_factory.mktemp("trial")
    changes = ["proposer={name: diayn, skills: 4, iterations: 1, episodes: 1, hidden: 4}", "env.horizon=12", "seed=3"]
    changes += ["train.steps=1", "train.meta_batch=2", "train.episodes=2", "metalearner.model.hidden=[4]"]
    changes += ["evaluate.goals=5", "evaluate.validation=4", "evaluate.episodes=2", "evaluate.steps=2"]
    made = build.load("nav2d_diayn", [*changes, f"out={place}"])
    propose.propose(made, device="cpu")
    run = runs.load_run(metatrain.metatrain(made, device="cpu"), device="cpu")
    return Trial(run, run.config.evaluate)


def test_goals_of_the_three_splits_are_apart(trial: Trial) -> None:
    oracle = GoalOracle("nav2d", goals=1000).propose(Nav2D(), RunContext())
    splits: list[Any] = [oracle.rewards, trial.batch("val").tasks.rewards, trial.batch("test").tasks.rewards]
    assert [len(one.goals) for one in splits] == [1000, 12, 5]
    places = [tuple(goal) for one in splits for goal in one.goals.tolist()]
    assert len(set(places)) == 1017
    every = goals("nav2d", Nav2D(), "test", 500, 0).rewards.goals  # type: ignore[attr-defined]
    assert torch.equal(every[:5], splits[2].goals)  # more goals do not change the first
    assert every.abs().max() <= 0.5
    assert trial.batch("test").which.sort().values.tolist() == list(range(5))  # each goal once


@pytest.mark.parametrize(("with_guard", "chosen"), [(2.5, "SGD 0.3/k, guarded"), (2.4, "SGD 0.3/k")])
def test_the_step_is_chosen_on_validation_goals_and_only_that_is_tested(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, with_guard: float, chosen: str
) -> None:
    """Of 4 goals of the first round, 8 of the final and 5 of the test.

    The first return, before any step, does not count; what is not a number never wins. A guard may not cost anything.
    The best of the first round is no better than the next ones on the further goals.
    """
    asked: list[tuple[int, str]] = []
    earned: dict[int, dict[str, list[float]]] = {4: {}, 8: {}, 5: {}}
    earned[4] = {"SGD 1": [9.0, 1.0, 1.0], "SGD 0.3/k": [0.0, 2.0, 3.0], "Adam 0.01": [0.0, math.nan, 9.0]}
    earned[4] |= {"PPO 0.01": [0.0, 4.0, 4.0], "PPO 0.003": [0.0, 0.5, 0.5]}
    earned[8] = {"PPO 0.01": [0.0, 4.0, -3.0], "SGD 0.3/k": [0.0, 2.0, 3.0], "PPO 0.003": [0.0, 9.0, 9.0]}
    earned[8]["SGD 0.3/k, guarded"] = [0.0, with_guard, with_guard]
    begun: list[Any] = []

    def begin(batch: RewardBatch) -> Any:
        begun.append(batch)
        return "begin"

    def pretend(learner: Any, theta: Any, begin: Any, step: Any, batch: RewardBatch, steps: int, label: str = ""):
        name = label.removeprefix("validation, ")
        asked.append((len(batch.which), name))
        return torch.tensor([earned[len(batch.which)].get(name, [0.0, 0.0, 0.0])] * len(batch.which)), []

    monkeypatch.setattr(environments, "measure_returns", pretend)
    learner = trial.policy_learner()
    ways = {name: Way(begin, step) for name, step in list_candidates(learner, ENV, Theta({})).items()}
    found, _, facts = trial.best(learner, Theta({}), ways)
    assert facts == {"chosen": chosen}
    finalists = ["PPO 0.01", "SGD 0.3/k", "SGD 1"]
    assert [name for count, name in asked if count == 4] == list(ways)
    assert [name for count, name in asked if count == 8] == [*(f"{name}, guarded" for name in finalists), *finalists]
    assert asked[-1] == (5, chosen)
    assert len(asked) == len(ways) + 6 + 1
    assert found.shape == (5, 3)
    goals_of = {len(batch.which): {tuple(goal) for goal in places(batch)} for batch in begun}
    assert {count: len(found) for count, found in goals_of.items()} == {4: 4, 8: 8, 5: 5}
    assert len(set().union(*goals_of.values())) == 4 + 8 + 5


def test_a_step_that_breaks_the_environment_is_passed_over(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(learner: Any, theta: Any, begin: Any, step: Any, batch: RewardBatch, steps: int, label: str = ""):
        if "Adam 0.01" not in label or everything:
            raise UserError(f"it breaks with {label}")
        return torch.zeros(len(batch.which), 3), []

    monkeypatch.setattr(environments, "measure_returns", pretend)
    learner, everything = trial.policy_learner(), False
    steps = list_candidates(learner, ENV, Theta({}))
    ways = {name: Way(lambda _: Adapted({}), step) for name, step in steps.items()}
    assert trial.best(learner, Theta({}), ways)[2]["chosen"] == "Adam 0.01, guarded"
    everything = True
    with pytest.raises(UserError, match=r"breaks with validation, SGD 0\.1"):
        trial.best(learner, Theta({}), ways)


def test_what_is_handed_back_is_in_the_order_of_the_goals(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = trial.batch("test")
    assert batch.which.tolist() != sorted(batch.which.tolist())
    params = {name: value.expand(5, *value.shape) for name, value in trial.run.theta.params.items()}
    params["head.bias"] = batch.which[:, None].float().expand_as(params["head.bias"])
    monkeypatch.setattr(Trial, "film", lambda *_: None)
    trial.hand_back([Adapted(params)], batch)
    written = read_tensors(trial.run.folder / "adapted.safetensors")
    assert written["head.bias"][:, 0].tolist() == [0, 1, 2, 3, 4]


def places(batch: RewardBatch) -> Any:
    return batch.tasks.rewards.goals[batch.which].tolist()  # type: ignore[attr-defined]


def test_the_runs_own_learner_chooses_among_the_same_steps_and_its_own(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []

    def pretend(learner: Any, theta: Theta, begin: Adapted, step: Any, batch: RewardBatch, steps: int, label: str):
        labels.append(label.removeprefix("validation, "))
        weights = {name: value.expand(len(batch.which), *value.shape) for name, value in trial.run.theta.params.items()}
        assert all(torch.equal(begin.params[name], value) for name, value in weights.items())
        last = 3.0 if labels[-1] == "its own step, then Adam 0.01" else 1.0
        return torch.tensor([[0.0, last, last]] * len(batch.which)), [begin]

    monkeypatch.setattr(environments, "measure_returns", pretend)
    monkeypatch.setattr(environments.environments, "draw_behaviour", lambda *_: None)
    monkeypatch.setattr(Trial, "film", lambda *_: None)
    found, facts = trial.own()
    assert facts == {"chosen": "its own step, then Adam 0.01", "notes": []}
    assert {"its own step", *list_candidates(trial.policy_learner(), ENV, Theta({}))} < set(labels)
    assert found.mean() == 2


def test_from_scratch_begins_at_random_and_not_where_the_run_ended(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(Trial, "best", lambda self, *arguments: given.append(arguments) or (torch.zeros(5, 3), [], {}))
    trial.scratch()
    learner, _, ways = given[0]
    assert isinstance(learner, MAML)
    before = {name: way.begin(trial.batch("val")).params for name, way in ways.items()}
    params = before["Adam 0.01"]
    shapes = {name: (4, *value.shape) for name, value in trial.run.theta.params.items()}
    assert {name: value.shape for name, value in params.items()} == shapes
    assert all(torch.equal(other[name], params[name]) for other in before.values() for name in params)
    weights = [*params["1.weight"], *ways["SGD 1"].begin(trial.batch("test")).params["1.weight"]]
    weights.append(trial.run.theta.params["1.weight"])
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 4 + 5 + 1  # each goal's are its own


def test_a_reward_that_all_goals_are_is_validated_on_other_episodes(trial: Trial) -> None:
    learner, theta = trial.run.learner, trial.run.theta
    assert isinstance(learner, MAML)
    first = []
    for batch in (trial.batch("val"), trial.batch("test")):
        act = policy_of(learner, theta, learner.unadapted(theta, len(batch.which)))
        first.append(batch.paths(act, 2, "after 1").actions[:4, :, 0])
    assert (first[0] != first[1]).all()  # one policy, with other noise


def test_finetuning_begins_with_the_skill_that_earns_most_for_each_goal(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four skills, each to a side of its own: the best is the one on the goal's side."""
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    loaded, manifest = load_tasks(trial.run.config)
    assert isinstance(loaded, RewardTasks)
    assert loaded.skills is not None
    skills = {name: torch.zeros_like(value) for name, value in loaded.skills.items()}
    skills |= {"head.bias": directions, "head.free": torch.full((4, 2), -9.0)}
    monkeypatch.setattr(environments, "load_tasks", lambda _: (replace(loaded, skills=skills), manifest))
    given: list[Any] = []
    monkeypatch.setattr(Trial, "best", lambda self, *arguments: given.append(arguments) or (torch.zeros(5, 3), [], {}))
    _, facts = trial.finetune()
    assert facts["offset"] == 4 * environments.TRIED / 2  # episodes of all skills, in units of a step's
    learner, theta, ways = given[0]
    begin = next(iter(ways.values())).begin
    for split in ("val", "test"):
        batch = trial.batch(split)  # type: ignore[arg-type]
        adapted = begin(batch)
        places = batch.tasks.rewards.goals[batch.which]  # type: ignore[attr-defined]
        towards = directions[(places @ directions.T).argmax(1)]
        assert torch.equal(adapted.params["head.bias"], towards)
        mean, _ = gaussian(learner.predict(theta, adapted, torch.zeros(len(places), 1, 2)))
        torch.testing.assert_close(mean[:, 0], towards)


# Numbers


def test_an_interval_is_196_standard_errors_over_goals() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    expected = 1.96 * np.std([1.0, 2.0, 6.0]) / math.sqrt(3)
    assert summarize(values) == {"mean": pytest.approx(3), "interval": pytest.approx(expected), "tasks": 3}


def test_differences_to_scratch_are_paired_over_goals() -> None:
    own, scratch = [[1.0, 12.0], [2.0, 24.0], [3.0, 36.0]], [[1.0, 10.0], [2.0, 20.0], [3.0, 31.0]]
    error = 1.96 * float(np.std([2, 4, 5])) / 3**0.5
    said = environments.compare_with_scratch("mine", own, scratch, "goals")
    assert said.startswith("mine: more than from scratch")
    assert said.endswith(f"over goals: +0.00 ± 0.00 (k=0), +3.67 ± {error:.2f} (k=1)")


def test_results_keep_returns_in_the_order_of_the_goals(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that those of other episodes, and of other libraries, are of the same goals row by row."""
    which = trial.batch("test").which
    assert which.tolist() != sorted(which.tolist())
    monkeypatch.setattr(Trial, "own", lambda _: (which.float()[:, None].expand(-1, 3), {"notes": []}))
    config = replace(trial.run.config, evaluate=replace(trial.settings, baselines=[]))
    result = environments.evaluate_run(replace(trial.run, config=config), "cpu")
    assert [of_goal[0] for of_goal in result["returns"][result["title"]]] == [0, 1, 2, 3, 4]


def test_cells_and_curve() -> None:
    found = torch.arange(3.0)[:, None] + 10 * torch.arange(5.0)
    shown = tabulate_returns(found)
    assert list(shown) == ["0 steps", "1 step", "2 steps", "3 steps"]
    assert shown["2 steps"]["mean"] == 21
    drawn = trace_returns({"returns": found.tolist(), "offset": 2.5}, 200)
    assert drawn["x"] == [500, 700, 900, 1100, 1300]
    assert drawn["mean"] == [1, 11, 21, 31, 41]
    assert label_of({"one": drawn}) == "environment steps of adaptation"
    assert trace_returns({"returns": found.tolist()}, 1)["x"] == [0, 1, 2, 3, 4]


def test_a_step_counts_the_environment_steps_of_all_its_episodes(trial: Trial) -> None:
    horizon = trial.run.config.env.horizon
    each = horizon * trial.settings.episodes
    assert (trial.steps_of(own=True), trial.steps_of(own=False)) == (each, each)
    assert trial.steps_of(own=True, rounds=3) == (1 + 3 + 1) * each  # the last round's policy is tried as well
    recurrent = Trial(replace(trial.run, learner=RL2(MLP([4]))), trial.settings)
    assert (recurrent.steps_of(own=True), recurrent.steps_of(own=False)) == (horizon, each)


def test_episodes_of_many_policies_are_for_its_own_step_and_the_rest_begins_with_their_mean(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def keep(self: Trial, *arguments: Any) -> Any:
        given.append(arguments)
        raise StopIteration

    monkeypatch.setattr(Trial, "best", keep)
    run = trial.run
    told = Context(run.config.metalearner.model, contexts=3).build(policy_spec(ENV), EpisodeSpec(1, 2, 2))
    for one in (run, replace(run, learner=told, theta=told.init(0))):
        with pytest.raises(StopIteration):
            Trial(one, trial.settings).own()
    plain, explored = (arguments[-1] for arguments in given)
    mean = "from the mean of its contexts, "
    assert set(plain) == {name.removeprefix(mean) for name in explored}
    assert any(name.startswith(mean) for name in explored)
    for name, way in explored.items():
        assert (TOLD in way.begin(trial.batch("val")).params) == name.startswith("its own step")


def test_no_more_steps_leave_a_policy_as_it_is() -> None:
    step = follow(lambda: lambda adapted, _: replace(adapted, steps=1), lambda: stay)
    first = step(Adapted({}), None)  # type: ignore[arg-type]
    assert step(first, None) is first  # type: ignore[arg-type]
