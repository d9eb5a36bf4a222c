"""Skills told apart by a discriminator, trained or not, and the rewards that it gives."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from proposers.diayn import Diayn
from proposers.random_discriminator import RandomDiscriminator
from umeta import seeds
from umeta.config import build
from umeta.envs.nav2d import Nav2D
from umeta.errors import UserError
from umeta.metalearners.maml import MAML
from umeta.models.mlp import MLP
from umeta.rl import ppo
from umeta.rl.advantage import gae
from umeta.rl.apart import Learning, tell_success
from umeta.rl.discriminator import Discriminator, SkillRewards
from umeta.rl.explore import EPISODES, collect_states, episodes, roll_out_skills
from umeta.rl.ppo import PPO, Proximal
from umeta.rl.rollout import Paths
from umeta.rl.skills import SkillPolicy, act
from umeta.runtime.loop import RunContext
from umeta.tasks import store
from umeta.tasks.reward import RewardTasks, policy_spec
from umeta.types import Adapted, EpisodeSpec, Theta

SKILLS = 5
ENV = Nav2D(horizon=40)
FEW = Diayn(skills=3, iterations=6, episodes=2, hidden=8)
SHORT = Nav2D(horizon=5)
EPISODE = EpisodeSpec(1, 2, 2)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def skilful(seed: int = 1) -> SkillPolicy:
    """Skills that are told apart by each of their parameters."""
    torch.manual_seed(seed)
    policy = SkillPolicy(3, 2, 4, 16)
    with torch.no_grad():
        policy.log_std.copy_(drawn(4, 2))
    return policy


def tensors(tasks: RewardTasks) -> dict[str, Tensor]:
    """All that a proposer of skills has learnt."""
    assert isinstance(tasks.rewards, SkillRewards)
    return {**tasks.rewards.discriminator.state_dict(), **(tasks.skills or {})}


def same(a: RewardTasks, b: RewardTasks) -> bool:
    x, y = tensors(a), tensors(b)
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


# DIAYN


def test_its_skills_are_told_apart_and_spread_out() -> None:
    tasks = Diayn(skills=SKILLS, iterations=25, hidden=32, lr=3e-3).propose(ENV, RunContext())
    assert tasks.skills is not None
    paths = episodes(ENV, act(tasks.skills), SKILLS, 10, seeds.generator(7, "fresh"))
    likeliest = tasks.rewards.discriminator(paths.after).argmax(-1)  # type: ignore[attr-defined]
    right = (likeliest == torch.arange(SKILLS)[:, None, None]).float().mean((1, 2))
    assert right.min() > 0.8  # chance is 0.2
    ends = paths.positions[:, :, -1].mean(1)
    assert torch.pdist(ends).min() > 0.2
    assert ends.norm(dim=1).min() > 0.3  # none of them stays where it starts
    assert ends.amin(0).max() < -0.2 < 0.2 < ends.amax(0).min()
    total = tasks.rewards(paths, torch.arange(SKILLS))
    assert total.mean() > 0.8 * math.log(SKILLS)  # log K is the most that a skill can earn in a step
    assert tasks.describe(EPISODE)[-2:] == [
        f"{SKILLS} of {SKILLS} skills are ever the most likely one",
        "100% of the skills' episodes earn most by their own reward, 20% by chance",
    ]


def test_it_says_how_well_skills_are_told_apart_and_when_they_are_not(capsys: pytest.CaptureFixture) -> None:
    short = Diayn(skills=4, iterations=1, episodes=1, hidden=4, lr=1e-9)
    for proposer, found in ((short, False), (Diayn(skills=4, iterations=40, hidden=32), True)):
        proposer.propose(ENV, RunContext(progress=True))
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diayn: 4 skills are told")]
        assert "by chance in 25%" in said
        assert ("try more iterations" in said) != found
    assert "try more iterations" in tell_success(0.49, 4)
    assert "try more iterations" not in tell_success(0.51, 4)


def test_same_seed_same_skills() -> None:
    first = FEW.propose(SHORT, RunContext(seed=1))
    assert same(first, FEW.propose(SHORT, RunContext(seed=1)))
    assert not same(first, FEW.propose(SHORT, RunContext(seed=2)))


@pytest.mark.parametrize("step", [1, 4])
def test_a_crash_is_resumed_bit_for_bit(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def context(name: str, resume: bool = False) -> RunContext:
        return RunContext(seed=1, folder=tmp_path / name, resume=resume, checkpoint_seconds=0.0)

    whole = FEW.propose(SHORT, context("whole"))
    original, taken = Learning.step, []

    def crashing(self: Learning, i: int) -> dict[str, float]:
        if i == step and i not in taken:
            taken.append(i)
            raise RuntimeError("the power went")
        taken.append(i)
        return original(self, i)

    monkeypatch.setattr(Learning, "step", crashing)
    with pytest.raises(RuntimeError, match="the power went"):
        FEW.propose(SHORT, context("cut"))
    resumed = FEW.propose(SHORT, context("cut", resume=True))
    assert taken == [*range(step + 1), *range(step, FEW.iterations)]
    assert same(resumed, whole)
    written = [(tmp_path / name / "diayn.jsonl").read_bytes() for name in ("whole", "cut")]
    assert written[0] == written[1]


def test_tasks_are_the_same_from_files(tmp_path: Path) -> None:
    tasks = FEW.propose(SHORT, RunContext())
    again = store.load_saved(store.save_tasks(tasks, tmp_path), tmp_path, SHORT)
    assert isinstance(again, RewardTasks)
    assert same(tasks, again)
    assert tasks.describe(EPISODE) == again.describe(EPISODE)


def test_an_episode_cut_short_counts_on_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last step `A = r + discount V(s_H) - V(s_(H - 1))`, whatever lambda is."""
    seen, checked = [], []

    def observed(*arguments: Any, **options: Any) -> Tensor:
        seen.append(gae(*arguments, **options))
        return seen[-1]

    def improve(self: Proximal, paths: Paths, skill: Tensor, earned: Any, random: torch.Generator) -> None:
        before, after = (self.valued(paths.observations[:, :, t], skill[..., 0]).detach() for t in (-2, -1))
        original(self, paths, skill, earned, random)
        reward = earned(paths.after, skill)[..., -1] / self.scale
        torch.testing.assert_close(seen.pop()[..., -1], reward + SHORT.discount * after - before)
        checked.append(after.abs().min() > 1e-3)  # so that the value after the end would be missed

    original = Proximal.improve
    monkeypatch.setattr(ppo, "gae", observed)
    monkeypatch.setattr(Proximal, "improve", improve)
    Learning(FEW, SHORT, RunContext()).step(0)
    assert checked == [True]


def test_its_rewards_are_those_of_the_present_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    """After it has learnt from this iteration's states, of the states after each step."""
    learning, given = Learning(FEW, SHORT, RunContext()), []
    untrained = {name: value.clone() for name, value in learning.discriminator.state_dict().items()}
    monkeypatch.setattr(Proximal, "improve", lambda self, *arguments: given.append(arguments))
    learning.step(0)
    ((paths, skill, earned, _),) = given
    assert not torch.equal(untrained["layers.0.weight"], learning.discriminator.state_dict()["layers.0.weight"])
    assert torch.equal(skill, torch.arange(FEW.skills)[:, None, None].expand_as(paths.mask))
    rewards = earned(paths.after, skill)
    for z in range(FEW.skills):
        logs = learning.discriminator(paths.observations[z, :, 1:]).detach()
        torch.testing.assert_close(rewards[z], logs[..., z] + math.log(FEW.skills))
    torch.testing.assert_close(rewards, SkillRewards(learning.discriminator)(paths, torch.arange(FEW.skills)))


@pytest.mark.parametrize(("steps", "taken"), [(30, 18), (1, 1)])
def test_the_discriminator_takes_a_step_on_a_fifth_of_the_states(steps: int, taken: int) -> None:
    options = replace(FEW, discriminator_steps=1, noise=0.0)
    learning = Learning(options, replace(SHORT, horizon=steps), RunContext())
    states = drawn(3, 1, steps + 1, 2)
    mask, skill = torch.ones(3, 1, steps, dtype=torch.bool), torch.arange(3)[:, None, None].expand(3, 1, steps)
    before = copy.deepcopy(learning.discriminator)
    learning.optimiser = torch.optim.SGD(learning.discriminator.parameters(), lr=1.0)
    paths = Paths(states, drawn(3, 1, steps, 2), torch.zeros(3, 1, steps), states, mask)
    accuracy = learning.tell_apart(paths, skill, torch.Generator().manual_seed(3))
    part = torch.randperm(3 * steps, generator=torch.Generator().manual_seed(3))[:taken]
    logs = before(states[:, :, 1:].flatten(0, 2)[part])
    right = skill.flatten()[part]
    assert accuracy == pytest.approx((logs.argmax(-1) == right).float().mean().item())
    params = list(before.parameters())
    slopes = torch.autograd.grad(-logs[torch.arange(taken), right].mean(), params)
    for moved, was, slope in zip(learning.discriminator.parameters(), params, slopes, strict=True):
        torch.testing.assert_close(moved.detach(), was.detach() - slope)


def test_effort_costs_the_last_skill_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """`effort (z + 1) / K` times the mean square of the numbers of an action."""
    given: list[Any] = []
    monkeypatch.setattr(Proximal, "learn", lambda self, paths, skill, rewards, random: given.append((paths, rewards)))
    learning = Learning(replace(FEW, algorithm=PPO(effort=6.0)), SHORT, RunContext())
    learning.step(0)
    ((paths, rewards),) = given
    for z in range(FEW.skills):
        cost = 6 * (z + 1) / FEW.skills * (paths.actions[z, ..., 0] ** 2 + paths.actions[z, ..., 1] ** 2) / 2
        free = learning.rewards.at(paths.after[z], torch.full(paths.mask[z].shape, z))
        torch.testing.assert_close(rewards[z], free - cost)


# The network of all skills


def test_a_policy_per_skill_is_the_network_that_is_told_the_skill() -> None:
    policy = skilful()
    x = drawn(4, 7, 3)
    told = policy(x.flatten(0, 1), torch.arange(4).repeat_interleave(7)).view(4, 7, 4)
    apart = policy.policies()
    assert not torch.equal(told[0], policy(x[0], torch.full((7,), 1)))
    torch.testing.assert_close(act(apart)(x), told.detach())
    learner = MAML(MLP([16, 16])).build(policy_spec(Observing()), EpisodeSpec(1, 1, 1))
    theta = learner.init(0)
    assert {name: value.shape for name, value in apart.items()} == {
        name: (4, *value.shape) for name, value in theta.params.items()
    }
    torch.testing.assert_close(learner.predict(Theta({}), Adapted(apart), x), told.detach())


def test_policies_are_copies() -> None:
    policy = skilful()
    before = policy.policies()
    kept = {name: value.clone() for name, value in before.items()}
    with torch.no_grad():
        for param in policy.parameters():
            param.add_(1)
    assert all(torch.equal(before[name], kept[name]) for name in kept)
    assert not any(value.requires_grad for value in before.values())


# Rewards


def test_the_reward_is_how_much_likelier_than_by_chance_the_skill_is_at_the_state_after_the_step() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(3, 4, 8, [0, 2])
    discriminator.standardise(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0]), 3.0)
    observations = drawn(2, 5, 7, 3)
    paths = Paths(observations, drawn(2, 5, 6, 1), drawn(2, 5, 6), drawn(2, 5, 7, 2), torch.ones(2, 5, 6).bool())
    found = SkillRewards(discriminator)(paths, torch.tensor([3, 1]))
    first, _, second, _, third = discriminator.layers
    for task, z in enumerate((3, 1)):
        for e in range(5):
            for t in range(6):
                o = observations[task, e, t + 1]
                h = torch.stack([(o[0] - 1) * 3 / 0.5, (o[2] + 1) * 3 / 2])
                h = first(h).relu()  # type: ignore[operator]
                p = third(second(h).relu()).exp()  # type: ignore[operator]
                assert found[task, e, t].item() == pytest.approx((p[z] / p.sum() * 4).log().item(), abs=1e-4)


def test_what_random_actions_do_not_move_says_nothing() -> None:
    discriminator = Discriminator(2, 4, 8)
    discriminator.standardise(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 2.0]), 1.0)
    assert discriminator.seen(torch.tensor([[0.7, 5.0]])).tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize("sees", [[2], [-1], [0, 5], []])
@pytest.mark.parametrize("kind", [Diayn, RandomDiscriminator])
def test_what_is_not_observed_cannot_be_seen(kind: Any, sees: list[int]) -> None:
    with pytest.raises(UserError, match=r"proposer.sees: expected some of 0 to 1, got"):
        kind(skills=3, sees=sees).propose(SHORT, RunContext())


@pytest.mark.parametrize("kind", ["diayn", "random_discriminator"])
def test_one_skill_is_none(kind: str) -> None:
    with pytest.raises(UserError, match=r"proposer.skills: .*greater than 1"):
        build.load("nav2d_diayn", [f"proposer={kind}", "proposer.skills=1"])


@pytest.mark.parametrize("kind", [FEW, RandomDiscriminator(skills=3, hidden=8)])
def test_only_what_is_seen_counts(kind: Any) -> None:
    rewards = type(kind)(**{**vars(kind), "sees": [1]}).propose(SHORT, RunContext()).rewards
    x = drawn(20, 2)
    other = x.clone()
    other[:, 0] += 1
    assert torch.equal(rewards.discriminator(x), rewards.discriminator(other))
    assert not torch.equal(rewards.discriminator(x), rewards.discriminator(x + 0.1))


# A discriminator that was never trained


def grid(side: int = 41) -> Tensor:
    line = torch.linspace(-0.5, 0.5, side)
    return torch.cartesian_prod(line, line)


@pytest.mark.parametrize("seed", range(4))
def test_a_random_discriminator_is_far_from_constant_and_a_usual_one_almost(seed: int) -> None:
    tasks = RandomDiscriminator(skills=10).propose(Nav2D(), RunContext(seed=seed))
    assert isinstance(tasks.rewards, SkillRewards)
    with torch.no_grad():
        logs = tasks.rewards.discriminator(grid())
        torch.manual_seed(seed)
        usual = Discriminator(2, 10, 300)(grid())
    assert logs.std(0).mean() > 2
    assert usual.std(0).mean() < 0.05
    share = logs.argmax(-1).bincount(minlength=10) / len(logs)
    assert (share > 0.02).sum() >= 3
    assert share.max() < 0.7
    ever = len(tasks.rewards.discriminator(roll_out_skills(Nav2D(), None).after[0].flatten(0, 1)).argmax(-1).unique())
    assert tasks.describe(EPISODE)[-1] == f"{ever} of 10 skills are ever the most likely one"
    assert ever >= 3


def test_its_input_has_the_spread_it_is_asked_for() -> None:
    tasks = RandomDiscriminator(skills=4, inputs=3.0).propose(ENV, RunContext(seed=5))
    assert isinstance(tasks.rewards, SkillRewards)
    seen = tasks.rewards.discriminator.seen(collect_states(ENV, RunContext(seed=5)))
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(seen.std(0), 3, rtol=1e-4)


def test_a_smaller_temperature_is_surer() -> None:
    def largest(temperature: float) -> float:
        rewards = RandomDiscriminator(skills=6, temperature=temperature).propose(SHORT, RunContext()).rewards
        assert isinstance(rewards, SkillRewards)
        return rewards.discriminator(grid()).exp().amax(-1).mean().item()

    assert largest(0.1) > largest(1.0) + 0.1 > largest(10.0) + 0.2


def test_same_seed_same_rewards() -> None:
    options = RandomDiscriminator(skills=4, hidden=16)
    first = options.propose(SHORT, RunContext(seed=1))
    assert same(first, options.propose(SHORT, RunContext(seed=1)))
    assert not same(first, options.propose(SHORT, RunContext(seed=2)))


# Environments that end


@dataclass(frozen=True)
class Observing:
    """Walks on a line from a random start and ends beyond 2, or never."""

    horizon: int = 20
    ends: bool = True
    discount: float = 0.9
    observation, action, randoms = 3, 2, 1

    def simulate(self, n: int) -> Walking:
        return Walking(self)


class Walking:
    def __init__(self, env: Observing) -> None:
        self.env = env

    def reset(self, u: Tensor) -> Tensor:
        self.place = u.expand(-1, 3) + torch.arange(3)
        return self.place

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        self.place = self.place + 0.3 * actions.sum(-1, keepdim=True)
        return self.place, (self.place[:, 0] > 2) & self.env.ends

    def positions(self) -> Tensor:
        return self.place[:, :2]

    def picture(self, copy: int = 0) -> np.ndarray:
        raise NotImplementedError


@pytest.mark.parametrize("proposer", [FEW, RandomDiscriminator(skills=3, hidden=8)])
def test_an_environment_that_ends_is_warned_of(proposer: Any, capsys: pytest.CaptureFixture) -> None:
    """For there `log p(z|s)`, which is mostly negative, is best ended soon."""
    tasks = proposer.propose(Observing(), RunContext(progress=True))
    said = capsys.readouterr().err
    assert f"of {EPISODES} episodes of random actions end before step 20" in said
    assert "log p(z|s)" in said
    assert same(tasks, proposer.propose(Observing(), RunContext()))
    for quiet in (Observing(ends=False), SHORT):
        proposer.propose(quiet, RunContext(progress=True))
        assert "end before" not in capsys.readouterr().err


def test_states_after_an_end_are_left_out() -> None:
    assert collect_states(Observing(), RunContext())[:, 0].max() < 4  # one step beyond 2, not twenty
    assert len(collect_states(Observing(), RunContext())) < EPISODES * 20 == len(collect_states(ENV, RunContext())) / 2
