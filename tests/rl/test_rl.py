"""Policies: every formula against one written out another way, tasks made of rewards, and MAML that learns on them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.toys import Corners
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from umeta.config.environments import TrainConfig
from umeta.envs.nav2d import Nav2D
from umeta.errors import UserError
from umeta.metalearners.maml import MAML
from umeta.metalearners.metasgd import MetaSGD
from umeta.models.mlp import MLP
from umeta.objectives import SMALLEST_STD, fisher, gaussian, kl, log_probability, mean_return, policy, std
from umeta.outer.adam import Adam
from umeta.outer.promp import ProMP
from umeta.outer.trpo import TRPO
from umeta.parts import Outer
from umeta.rl.advantage import advantages, gae, normalise, returns
from umeta.rl.ridge import RIDGES, crossfit, features
from umeta.rl.rollout import Paths
from umeta.runtime.loop import RunContext
from umeta.seeds import integer
from umeta.tasks.reward import RewardBatch, RewardTasks
from umeta.train import BatchProblem, metatrain, roll_out
from umeta.types import Batch, EpisodeSpec, TaskSpec, Theta

TASKS, EPISODES, STEPS, OBSERVED, ACTION = 3, 5, 7, 3, 2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lengths(seed: int = 0) -> Tensor:
    """How long each episode lasts [T, E]; some as long as they may."""
    some = torch.randint(1, STEPS + 1, (TASKS, EPISODES), generator=torch.Generator().manual_seed(seed))
    some[0] = STEPS
    return some


def alive() -> Tensor:
    return torch.arange(STEPS) < lengths()[..., None]


def some_paths() -> Paths:
    shape = (TASKS, EPISODES)
    return Paths(
        6 * drawn(*shape, STEPS + 1, OBSERVED),
        drawn(*shape, STEPS, ACTION),
        drawn(*shape, STEPS),
        drawn(*shape, STEPS + 1, 2),
        alive(),
    )


# Advantages


@pytest.mark.parametrize("bootstrapped", [False, True], ids=["zero", "last"])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_gae_is_a_plain_loop(discount: float, lam: float, bootstrapped: bool) -> None:
    """`A_t = sum_l (discount lam)^l delta_(t + l)` with `delta_t = r_t + discount V_(t + 1) - V_t`."""
    rewards, values, last = drawn(TASKS, EPISODES, STEPS), drawn(TASKS, EPISODES, STEPS, seed=1), drawn(TASKS, EPISODES)
    found = gae(rewards, values, alive(), discount, lam, last if bootstrapped else None)
    for task in range(TASKS):
        for episode in range(EPISODES):
            end = int(lengths()[task, episode])
            r, v = rewards[task, episode].tolist(), values[task, episode].tolist()[:end]
            v.append(last[task, episode].item() if bootstrapped and end == STEPS else 0.0)
            delta = [r[t] + discount * v[t + 1] - v[t] for t in range(end)]
            for t in range(end):
                expected = sum((discount * lam) ** (later - t) * delta[later] for later in range(t, end))
                assert found[task, episode, t].item() == pytest.approx(expected, abs=1e-12)
            assert not found[task, episode, end:].any()


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_returns_are_a_plain_loop(discount: float) -> None:
    rewards = drawn(TASKS, EPISODES, STEPS)
    found = returns(rewards, alive(), discount)
    for task in range(TASKS):
        for episode in range(EPISODES):
            end = int(lengths()[task, episode])
            r = rewards[task, episode].tolist()
            for t in range(end):
                expected = sum(discount ** (later - t) * r[later] for later in range(t, end))
                assert found[task, episode, t].item() == pytest.approx(expected, abs=1e-12)
            assert not found[task, episode, end:].any()


def test_features_by_hand() -> None:
    paths = some_paths()
    paths.observations[1, 2] *= 10  # so that those looked at below are clipped too
    found = features(paths.observations[:, :, :-1])
    assert found.shape == (TASKS, EPISODES, STEPS, 2 * OBSERVED + 4)
    assert (paths.observations[1, 2].abs() > 11).any()
    for t in range(STEPS):
        o = paths.observations[1, 2, t].numpy().clip(-10, 10)
        expected = [*o, *o**2, t / 100, (t / 100) ** 2, (t / 100) ** 3, 1]
        np.testing.assert_allclose(found[1, 2, t].numpy(), expected, rtol=1e-6)


def test_the_baseline_is_ridge_regression_on_the_other_half() -> None:
    """With the penalty, on standardised features but those of time, whose prediction is the best."""
    free = 4
    x, y, mask = drawn(TASKS, EPISODES, STEPS, 3 + free), drawn(TASKS, EPISODES, STEPS, seed=1), alive()
    x[0], y[1] = x[0] * 5 + 2, x[1].sum(-1)  # the second is a sum of its features, and needs no penalty
    found = crossfit(x, y, mask).numpy()
    chosen = []
    for task in range(TASKS):
        tried = []
        for ridge in RIDGES:
            values = np.zeros((EPISODES, STEPS))
            for half in (0, 1):
                seen = mask[task, 1 - half :: 2]
                a, b = x[task, 1 - half :: 2][seen].numpy(), y[task, 1 - half :: 2][seen].numpy()
                mean, std = np.append(a[:, :3].mean(0), [0] * free), np.append(a[:, :3].std(0), [1] * free)
                penalty = np.diag([math.sqrt(ridge * len(a))] * 3 + [math.sqrt(RIDGES[0])] * free)
                design = np.concatenate([(a - mean) / std, penalty])  # a penalty is further items, whose y is zero
                weights = np.linalg.lstsq(design, np.append(b, np.zeros(len(penalty))), rcond=None)[0]
                values[half::2] = (x[task, half::2].numpy() - mean) / std @ weights
            tried.append(values)
        errors = [((values - y[task].numpy())[mask[task].numpy()] ** 2).sum() for values in tried]
        chosen.append(int(np.argmin(errors)))
        np.testing.assert_allclose(found[task], tried[chosen[-1]], rtol=1e-7, atol=1e-9)
    assert len(set(chosen)) > 1
    assert chosen[1] == 0


def test_many_observed_numbers_leave_a_baseline_that_time_alone_gives() -> None:
    """Returns that fall with time, and 150 numbers that have nothing to do with them, in 10 episodes of 20 steps."""
    observed, mask = drawn(1, 10, 20, 150), torch.ones(1, 10, 20, dtype=torch.bool)
    y = torch.arange(20, 0, -1.0, dtype=torch.float64) + drawn(1, 10, 20, seed=1)
    plain, time = features(observed), features(observed[..., :0])
    errors = [(crossfit(x, y, mask) - y).square().mean().item() for x in (plain, time)]
    assert errors[0] == pytest.approx(errors[1], rel=0.2)
    assert errors[0] < 0.05 * y.var().item()


def test_the_baseline_of_an_episode_knows_nothing_of_its_rewards() -> None:
    """Its advantage moves by what its own returns do, that of the other half's episodes by what their baseline does."""
    paths, rewards, mask = some_paths(), drawn(TASKS, EPISODES, STEPS), alive()
    change = torch.zeros_like(rewards)
    change[:, 1] = drawn(TASKS, STEPS, seed=2)
    x = features(paths.observations[:, :, :-1])
    values, moved = (crossfit(x, returns(r, mask, 0.9), mask) for r in (rewards, rewards + change))
    assert torch.equal(moved[:, 1::2], values[:, 1::2])
    assert ((moved - values)[:, ::2].abs().amax(-1) > 1e-3).all()

    before, after = gae(rewards, values, mask, 0.9, 1.0), gae(rewards + change, moved, mask, 0.9, 1.0)
    torch.testing.assert_close((after - before)[:, 1], returns(change, mask, 0.9)[:, 1])
    torch.testing.assert_close((after - before)[:, 3], torch.zeros(TASKS, STEPS, dtype=torch.float64))
    torch.testing.assert_close((after - before)[:, ::2], ((values - moved) * mask)[:, ::2])
    torch.testing.assert_close(advantages(paths, rewards, 0.9), normalise(before, mask))


def test_a_single_episode_has_a_baseline_of_zero() -> None:
    x, y, mask = drawn(TASKS, 1, STEPS, 4), drawn(TASKS, 1, STEPS), alive()[:, :1]
    assert not crossfit(x, y, mask).any()


def test_normalised_over_what_is_not_masked() -> None:
    x, mask = 5 * drawn(TASKS, EPISODES, STEPS) + 3, alive()
    found = normalise(torch.where(mask, x, torch.tensor(1e6)), mask)
    for task in range(TASKS):
        numbers = x[task][mask[task]].numpy()
        expected = (numbers - numbers.mean()) / numbers.std()
        np.testing.assert_allclose(found[task][mask[task]].numpy(), expected, rtol=1e-6)
    assert not found[~mask].any()
    torch.testing.assert_close(normalise(100 * x - 7, mask), found)
    assert not normalise(torch.full_like(x, 3.0), mask).any()


# The objective


def output(seed: int = 0) -> Tensor:
    """Means and log standard deviations, the last of which is below the smallest."""
    some = 0.5 * drawn(TASKS, STEPS, 2 * ACTION, seed=seed)
    some[0, :2, -1] = math.log(SMALLEST_STD) - 1
    return some


def policy_batch(count: int = STEPS, seed: int = 0) -> Batch:
    """Actions of some policy, advantages, and padding."""
    parts = [drawn(TASKS, count, *shape, seed=10 * seed + i) for i, shape in enumerate([[OBSERVED], [ACTION], [], []])]
    x, y, w, logp = parts
    mask = torch.arange(count) < torch.tensor([count, count - 1, count // 2])[:, None]
    return Batch(x, y, mask, 1, w, 0.3 * logp - 2.5, torch.arange(TASKS) * 1.0)


def normal(output: Tensor) -> Normal:
    mean, log_std = output[..., :ACTION], output[..., ACTION:]
    return Normal(mean, log_std.exp().clamp(min=SMALLEST_STD))


def test_densities_are_torchs() -> None:
    batch = policy_batch()
    before, after = output(), output(1)
    torch.testing.assert_close(log_probability(before, batch.y), normal(before).log_prob(batch.y).sum(-1))
    each = kl_divergence(normal(before), normal(after)).sum(-1)
    expected = torch.stack([one[m].mean() for one, m in zip(each, batch.mask, strict=True)])
    torch.testing.assert_close(kl(before, after, batch), expected)
    assert not kl(before, before, batch).any()
    torch.testing.assert_close(std(before, batch), normal(before).stddev.mean((1, 2)))
    assert torch.equal(mean_return(before, batch), torch.tensor([0.0, 1.0, 2.0]))


def test_where_it_acted_its_gradient_is_the_policy_gradient() -> None:
    """`- sum w grad log p / n` over each task's n items."""
    at = output().requires_grad_()
    batch = replace(policy_batch(), logp=log_probability(output(), policy_batch().y))
    found = torch.autograd.grad(policy(at, batch).sum(), at)[0]
    logp = normal(at).log_prob(batch.y).sum(-1)
    n = batch.mask.sum(1, keepdim=True)
    expected = torch.autograd.grad(-(batch.w * logp * batch.mask / n).sum(), at)[0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(policy(at, batch, clip=0.2).sum(), at)[0], expected)
    assert found[0].abs().max() > 1e-3
    assert not found[~batch.mask].any()


def test_fisher_is_the_hessian_of_the_divergence() -> None:
    item = replace(policy_batch(1), mask=torch.ones(1, 1, dtype=torch.bool))
    for at in output()[0]:
        apart = partial(kl, at[None, None], batch=item)
        hessian = torch.autograd.functional.hessian(lambda other, apart=apart: apart(other[None, None]).sum(), at)
        for tangent in torch.eye(2 * ACTION, dtype=torch.float64):
            torch.testing.assert_close(fisher(at, tangent), hessian @ tangent)


# MAML on policies

SPEC = TaskSpec((OBSERVED,), "policy", ACTION, ACTION)
EPISODE = EpisodeSpec(1, 2, 2)
OPTIONS = MAML(MLP([4]), inner_lr=0.3, steps=1)
LEARNER = OPTIONS.build(SPEC, EPISODE)


def begun(learner: MAML, seed: int = 0) -> Theta:
    """Its theta in float64, moved off the zeros that biases and log standard deviations begin at."""
    params = learner.init(seed).params
    return Theta(
        {n: (p.double() + 0.2 * drawn(*p.shape, seed=i)).requires_grad_() for i, (n, p) in enumerate(params.items())}
    )


def problem(learner: MAML = LEARNER, rounds: int = 1, chunk: int = TASKS) -> BatchProblem:
    learner = learner.build(SPEC, EPISODE)
    supports = [policy_batch(seed=1 + r) for r in range(rounds)]
    return BatchProblem(learner, begun(learner), SPEC, supports, policy_batch(seed=9), chunk)


def forward(p: dict[str, Tensor], x: Tensor) -> Normal:
    hidden = (x @ p["1.weight"].T + p["1.bias"]).tanh()
    return Normal(hidden @ p["head.weight"].T + p["head.bias"], p["head.free"].exp())


def surrogate(p: dict[str, Tensor], batch: Batch, task: int, clip: float | None = None) -> Tensor:
    kept = batch.mask[task]
    x, y, w, logp = (value[task][kept] for value in (batch.x, batch.y, batch.w, batch.logp))
    ratio = (forward(p, x).log_prob(y).sum(-1) - logp).exp()
    gain = ratio * w
    if clip is not None:
        gain = torch.where(w > 0, ratio.clamp(max=1 + clip), ratio.clamp(min=1 - clip)) * w
    return -gain.mean()


def adapted(params: dict[str, Tensor], learner: MAML, supports: list[Batch], task: int) -> dict[str, Tensor]:
    """One plain step after the other, in a graph."""
    fast = dict(params)
    for number, support in enumerate(supports, start=1):
        lr = learner.inner_lr / number if learner.schedule == "harmonic" else learner.inner_lr
        grads = torch.autograd.grad(surrogate(fast, support, task), list(fast.values()), create_graph=True)
        if learner.first_order:
            grads = [grad.detach() for grad in grads]
        fast = {n: p - lr * g for (n, p), g in zip(fast.items(), grads, strict=True)}
    return fast


def vector(named: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.detach().flatten() for value in named.values()])


def off(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize(
    "learner",
    [OPTIONS, replace(OPTIONS, first_order=True), replace(OPTIONS, schedule="harmonic")],
    ids=["second", "first", "harmonic"],
)
def test_meta_gradient_equals_one_by_hand(learner: MAML, rounds: int, clip: float | None) -> None:
    at = problem(learner, rounds)
    params = at.theta.params
    assert set(params) == {"1.weight", "1.bias", "head.weight", "head.bias", "head.free"}
    losses = [surrogate(adapted(params, learner, at.supports, t), at.query, t, clip) for t in range(TASKS)]
    loss = torch.stack(losses).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(params.values()))])
    for chunk in (1, 2, TASKS):
        metrics, grads = problem(learner, rounds, chunk).loss_and_grad(clip)
        assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-12)
        assert metrics["return"] == pytest.approx(1.0)
        assert off(vector(grads), expected) < 1e-10
    assert expected.norm() > 1e-2


@pytest.mark.parametrize("rounds", [1, 2])
def test_meta_gradient_equals_finite_differences(rounds: int) -> None:
    at = problem(rounds=rounds)
    grads = vector(at.loss_and_grad()[1])
    found = []
    for i in range(len(grads)):
        ends = []
        for sign in (1, -1):
            moved, step = problem(rounds=rounds), torch.zeros_like(grads)
            step[i] = sign * 1e-5
            shift(moved, step)
            ends.append(moved.loss_and_kl()[0])
        found.append((ends[0] - ends[1]) / 2e-5)
    assert off(torch.tensor(found, dtype=torch.float64), grads) < 1e-8


def shift(at: BatchProblem, step: Tensor) -> None:
    """Moves the parameters in place."""
    with torch.no_grad():
        for p, part in zip(
            at.theta.params.values(), step.split([p.numel() for p in at.theta.params.values()]), strict=True
        ):
            p += part.view_as(p)


def mean_divergence(before: list[Normal], params: dict[str, Tensor], at: BatchProblem) -> Tensor:
    """Of the adapted policies, from what they were, over each task's states; the mean over the tasks."""
    each = []
    for t, old in enumerate(before):
        new = forward(adapted(params, at.learner, at.supports, t), at.query.x[t][at.query.mask[t]])
        each.append(kl_divergence(old, new).sum(-1).mean())
    return torch.stack(each).mean()


def policies(at: BatchProblem) -> list[Normal]:
    params = at.theta.params
    found = [
        forward(adapted(params, at.learner, at.supports, t), at.query.x[t][at.query.mask[t]]) for t in range(TASKS)
    ]
    return [Normal(one.mean.detach(), one.stddev.detach()) for one in found]


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_fisher_information_is_the_hessian_of_the_mean_divergence(rounds: int) -> None:
    """By double backward; in chunks or at once."""
    at = problem(rounds=rounds)
    leaves = list(at.theta.params.values())
    apart = mean_divergence(policies(at), at.theta.params, at)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(apart, leaves, create_graph=True)])
    assert slope.norm() < 1e-12
    problems = [problem(rounds=rounds, chunk=chunk) for chunk in (1, 2, TASKS)]
    for seed in range(3):  # the graph that is kept serves every one of them
        v = {name: drawn(*p.shape, seed=20 + seed) for name, p in at.theta.params.items()}
        product = torch.autograd.grad(slope @ vector(v), leaves, retain_graph=True)
        expected = torch.cat([g.flatten() for g in product])
        for one in problems:
            assert off(vector(one.fisher_vector(v)), expected) < 1e-10


def test_the_fisher_information_of_a_parameter_that_does_nothing_is_zero() -> None:
    at = problem()
    at.theta.params["spare"] = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    found = at.fisher_vector({name: drawn(*p.shape) for name, p in at.theta.params.items()})
    assert not found["spare"].any()
    assert found["head.free"].any()


def test_the_fisher_information_on_a_share_of_the_states() -> None:
    """Every second item of the query, and all of the supports, which make the policies."""
    at, v = problem(), {name: drawn(*p.shape) for name, p in begun(LEARNER).params.items()}
    thin = BatchProblem(LEARNER, at.theta, SPEC, at.supports, at.query.subsample(2), TASKS)
    assert torch.equal(vector(at.fisher_vector(v, share=0.5)), vector(thin.fisher_vector(v)))


def test_a_tenth_of_the_states_tells_the_fisher_information_of_the_same_policies() -> None:
    """In the direction of the meta-gradient, after an inner step that moves the policies far."""
    tasks = RewardTasks(Nav2D(horizon=20), Corners())
    learner = MAML(MLP([16]), inner_kl=1.0, steps=1).build(tasks.spec, EpisodeSpec(1, 10, 10))
    theta = Theta({name: value.requires_grad_() for name, value in learner.init(0).params.items()})
    supports, query = roll_out(learner, theta, tasks.sample(np.arange(8), episode=EpisodeSpec(1, 10, 10), seed=0), 8, 1)
    problems = [BatchProblem(learner, theta, tasks.spec, supports, query, 8) for _ in range(2)]
    _, grads = problems[0].loss_and_grad()
    full, some = (vector(at.fisher_vector(grads, share)) for at, share in zip(problems, (1.0, 0.1), strict=True))
    assert torch.cosine_similarity(full, some, 0) > 0.95


@pytest.mark.parametrize("chunk", [1, TASKS])
def test_loss_and_divergence(chunk: int) -> None:
    at = problem(chunk=chunk)
    before = policies(at)
    loss, apart = at.loss_and_kl()
    assert apart == 0
    assert loss == pytest.approx(problem().loss_and_grad()[0]["loss"])
    shift(at, 0.1 * drawn(sum(p.numel() for p in at.theta.params.values())))
    moved, apart = at.loss_and_kl()
    assert moved == pytest.approx(at.loss_and_grad()[0]["loss"])
    assert abs(moved - loss) > 1e-3
    assert apart == pytest.approx(mean_divergence(before, at.theta.params, at).item())
    assert apart > 1e-3


@pytest.mark.parametrize("outer", [TRPO(share=1.0), ProMP(epochs=3)], ids=["trpo", "ppo"])
def test_an_outer_step_improves_on_the_same_episodes(outer: Outer) -> None:
    at = problem()
    outer.start(at.theta.params)
    before, _ = at.loss_and_kl()
    metrics = outer.step(at, 0.0)
    after, apart = at.loss_and_kl()
    assert after < before
    assert 0 < apart <= 0.01
    if isinstance(outer, TRPO):
        assert metrics["kl"] == apart
        assert metrics["accepted"] > 0


# Tasks made of rewards


@dataclass(frozen=True)
class Fuse:
    """Ends after 1 to `horizon + 2` steps; it observes the time, the fuse's length and what was done so far."""

    horizon: int = 6
    discount: float = 0.9
    broken: int = -1  # the step at which it gives what is not a number
    observation, action, randoms = 3, 2, 1

    def simulate(self, n: int) -> Burning:
        return Burning(self)


class Burning:
    def __init__(self, env: Fuse) -> None:
        self.env = env

    def reset(self, u: Tensor) -> Tensor:
        self.time, self.done = 0, torch.zeros(len(u))
        self.fuse = (u[:, 0] * (self.env.horizon + 2)).floor() + 1
        return self.observed()

    def observed(self) -> Tensor:
        broken = math.nan if self.time == self.env.broken else 0.0
        return torch.stack([torch.full_like(self.fuse, self.time) + broken, self.fuse, self.done], -1)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        self.time, self.done = self.time + 1, self.done + actions.sum(-1)
        return self.observed(), self.fuse == self.time

    def positions(self) -> Tensor:
        return torch.stack([self.done, self.fuse], -1)

    def picture(self, copy: int = 0) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True)
class Numbered:
    """Reward z pays z for each step, and what was done."""

    count: int = 5

    def __call__(self, paths: Paths, which: Tensor) -> Tensor:
        return which[:, None, None] + paths.actions.sum(-1)

    def describe(self, states: Tensor) -> list[str]:
        return []


def act(x: Tensor) -> Tensor:
    """Of each item by itself, in operations that give the same bits in any batch."""
    return torch.stack([x[..., 0] / 8, x[..., 2] / 16, x[..., 1] / 8 - 1, x[..., 0] * 0 - 0.5], -1)


def sampled(indices: list[int], seed: int = 0, episodes: int = 6) -> RewardBatch:
    return RewardTasks(Fuse(), Numbered()).sample(
        np.array(indices), episode=EpisodeSpec(1, episodes, episodes), seed=seed
    )


Ask = Callable[[RewardBatch], Batch]
ASKED: dict[str, Ask] = {
    "support": lambda batch: batch.support(act),
    "second": lambda batch: batch.support(act, 1),
    "query": lambda batch: batch.query(act),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_a_task_depends_on_seed_and_number_alone(asked: Ask) -> None:
    together, alone = asked(sampled([2, 7, 9])), asked(sampled([7]))
    for name in ("x", "y", "mask", "logp", "score"):
        assert torch.equal(getattr(together, name)[1:2], getattr(alone, name)), name
    torch.testing.assert_close(together.w[1:2], alone.w)
    again = asked(sampled([7]))
    assert torch.equal(again.x, alone.x)
    assert not torch.equal(asked(sampled([7], seed=1)).y, alone.y)
    assert not torch.equal(asked(sampled([8])).y, alone.y)


def test_supports_of_each_round_and_the_query_are_different_episodes() -> None:
    first, second, query = (asked(sampled([7])).y for asked in ASKED.values())
    assert not any(torch.equal(a, b) for a, b in ((first, second), (first, query), (second, query)))


def test_every_reward_comes_once_in_each_count_tasks_in_a_row() -> None:
    which = sampled(list(range(20))).which.view(4, 5)
    assert torch.equal(which.sort(1).values, torch.arange(5).expand(4, 5))
    assert len({tuple(row.tolist()) for row in which}) > 1
    assert torch.equal(sampled([13, 4]).which, which.flatten()[[13, 4]])
    assert not torch.equal(sampled(list(range(20)), seed=1).which.view(4, 5), which)


def test_nothing_counts_after_an_episodes_end() -> None:
    env = Fuse()
    batch = sampled([0, 1], episodes=8)
    paths = batch.paths(act, 8, "support 0")
    fuse = paths.observations[:, :, 0, 1]
    assert fuse.min() < env.horizon < fuse.max()  # some end early, some are cut short
    time = torch.arange(env.horizon)
    assert torch.equal(paths.mask, time < fuse[..., None])
    rewards = Numbered()(paths, batch.which)
    for t in range(2):
        ended = [rewards[t, e, : int(fuse[t, e])].sum() for e in range(8)]
        torch.testing.assert_close(paths.total(rewards)[t], torch.stack(ended).mean())

    items = batch.support(act)
    assert items.x.shape == (2, 8 * env.horizon, 3)
    assert torch.equal(items.x, paths.observations[:, :, :-1].flatten(1, 2))
    assert torch.equal(items.y, paths.actions.flatten(1, 2))
    assert torch.equal(items.mask, paths.mask.flatten(1))
    torch.testing.assert_close(items.score, paths.total(rewards))
    assert not items.w[~items.mask].any()
    torch.testing.assert_close(items.w.view(2, 8, -1), advantages(paths, rewards, env.discount))
    torch.testing.assert_close(items.logp, log_probability(act(items.x), items.y))


def test_what_is_observed_follows_from_what_was_done() -> None:
    paths = sampled([3], episodes=4).paths(act, 4, "query")
    done = paths.actions.sum(-1).cumsum(-1)
    torch.testing.assert_close(paths.after[..., 2], done)
    assert torch.equal(paths.after[..., 0], torch.arange(1.0, 7).expand(1, 4, 6))
    torch.testing.assert_close(paths.positions[:, :, 1:, 0], done)
    assert not paths.positions[:, :, 0, 0].any()


def test_actions_are_the_policys_gaussian() -> None:
    paths = sampled([0], episodes=4000).paths(act, 4000, "support 0")
    mean, log_std = gaussian(act(paths.observations[:, :, :-1]))
    z = (paths.actions - mean) / log_std.exp()
    assert z.mean().abs() < 0.02
    assert z.std() == pytest.approx(1, abs=0.02)


def test_a_simulation_that_breaks_is_named() -> None:
    tasks = RewardTasks(Fuse(broken=3), Numbered())
    batch = tasks.sample(np.arange(2), episode=EpisodeSpec(1, 3, 3), seed=0)
    with pytest.raises(UserError, match=r"not a number, first at step 3 .*smaller learning rate"):
        batch.support(act)


def test_a_policy_that_breaks_is_named() -> None:
    tasks = RewardTasks(Nav2D(horizon=4), Numbered())
    batch = tasks.sample(np.arange(2), episode=EpisodeSpec(1, 3, 3), seed=0)
    with pytest.raises(UserError, match="not a number"):
        batch.support(lambda x: torch.full((*x.shape[:2], 4), math.nan))


# Learning


@pytest.mark.parametrize(
    ("outer", "options"),
    [
        (TRPO(), OPTIONS),
        (ProMP(lr=1e-2), OPTIONS),
        (Adam(lr=3e-2), OPTIONS),
        (ProMP(lr=1e-2), MetaSGD(MLP([4]), steps=1)),
    ],
    ids=["trpo", "ppo", "adam", "a rate for each weight"],
)
def test_it_learns_to_reach_a_goal_in_one_step(outer: Outer, options: MAML | MetaSGD) -> None:
    """Standing still scores -11.3 in 20 steps; the goal is told only by the rewards of ten episodes."""
    tasks = RewardTasks(Nav2D(horizon=20), Corners())
    config = TrainConfig(outer, steps=25, meta_batch=8, episodes=10)
    learner = replace(options, model=MLP([16]), inner_lr=0.5).build(tasks.spec, config.episode)

    def scores(theta: Theta) -> tuple[float, float]:
        batch = tasks.sample(np.arange(8), episode=config.episode, seed=1)
        supports, query = roll_out(learner, theta, batch, 8, rounds=1)
        return supports[0].score.mean().item(), query.score.mean().item()

    untrained = scores(learner.init(0))
    before, after = scores(metatrain(learner, tasks, config, RunContext()))
    assert after > before + 5
    assert after > untrained[1] + 1.5


def test_each_meta_step_logs_what_adaptation_gains(tmp_path: Path) -> None:
    tasks = RewardTasks(Nav2D(horizon=3), Corners())
    config = TrainConfig(Adam(), steps=2, meta_batch=4, episodes=2)
    learner = MAML(MLP([4]), inner_lr=5.0, steps=1).build(tasks.spec, config.episode)
    metatrain(learner, tasks, config, RunContext(folder=tmp_path))
    first, second = map(json.loads, (tmp_path / "metatrain.jsonl").read_text().splitlines())
    supports, query = roll_out(
        learner, learner.init(integer(0, "weights")), tasks.sample(np.arange(4), episode=config.episode, seed=0), 4, 1
    )
    gained = query.score.mean() - supports[0].score.mean()
    assert first["gain"] == pytest.approx(gained.item(), abs=1e-5)
    assert second["gain"] == pytest.approx(second["return"] - second["return before"], abs=2e-6)  # six digits each
    assert first["gain"] != 0
