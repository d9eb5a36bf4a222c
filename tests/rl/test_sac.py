"""SAC: its two losses by hand, its replay, and DIAYN that learns by it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from proposers.diayn import Diayn
from umeta import seeds
from umeta.config import build
from umeta.envs.nav2d import Nav2D
from umeta.errors import UserError
from umeta.rl.apart import Learning
from umeta.rl.discriminator import SkillRewards
from umeta.rl.explore import episodes
from umeta.rl.ppo import PPO
from umeta.rl.rollout import Paths
from umeta.rl.sac import SAC, Replay, SoftActorCritic, Steps
from umeta.rl.skills import SkillPolicy, act
from umeta.runtime.checkpoints import State
from umeta.runtime.loop import RunContext

SOFT = SAC(updates=4, batch=6, replay=50)
FEW = Diayn(algorithm=SOFT, skills=3, iterations=6, episodes=2, hidden=8)
SHORT = Nav2D(horizon=5)
SKILLS = 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(temperature: float = 0.3, updates: int = 1) -> SoftActorCritic:
    """Of three skills with two numbers each in observations and actions; its slow critics are others than its own."""
    torch.manual_seed(0)
    policy = SkillPolicy(2, 2, 3, 4)
    with torch.no_grad():
        policy.log_std.copy_(drawn(3, 2) / 2)
        policy.head.weight.mul_(10)
    sac = SAC(updates=updates, batch=8, replay=20, tau=0.1, temperature=temperature).build(policy, 0.9, 1e-2)
    with torch.no_grad():
        for param in [*sac.critics.parameters(), *sac.targets.parameters()]:
            param.copy_(torch.randn_like(param))
    return sac


def some_steps(n: int = 6) -> Steps:
    return Steps(drawn(n, 2), torch.arange(n) % 3, drawn(n, 2, seed=1), drawn(n, 2, seed=2), torch.arange(n) % 2 == 0)


def some_paths() -> Paths:
    """Of three skills with two episodes of four steps, whose lengths differ; numbers name skill, episode and time."""
    place = torch.arange(3 * 2 * 5.0).view(3, 2, 5, 1).expand(-1, -1, -1, 2)
    alive = torch.arange(4) < torch.tensor([[4, 2], [1, 4], [3, 4]])[..., None]
    return Paths(place, place[:, :, :-1] + 0.5, drawn(3, 2, 4), place, alive)


# The losses


def chosen(sac: SoftActorCritic, observation: Tensor, z: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """An action, and its log-probability relative to the standard normal's."""
    output = act(sac.policy.policies())(observation.expand(3, 1, 2))[z, 0]
    distribution = Normal(output[:2], output[2:].exp())
    action = distribution.mean + distribution.stddev * noise
    return action, (distribution.log_prob(action) - Normal(0, 1).log_prob(action)).sum()


def least(critics: torch.nn.ModuleList, observation: Tensor, z: int, action: Tensor) -> float:
    x = torch.cat([observation, torch.eye(3)[z], action])
    return min(critic(x).item() for critic in critics)


def test_the_critics_target() -> None:
    sac, steps, noise, rewards = small(), some_steps(), drawn(6, 2, seed=3), drawn(6, seed=4)
    found = sac.target(steps, rewards, noise)
    for i, z in enumerate(steps.skill.tolist()):
        action, k = chosen(sac, steps.after[i], z, noise[i])
        following = least(sac.targets, steps.after[i], z, action) - 0.3 * k
        expected = rewards[i] if steps.ended[i] else rewards[i] + 0.9 * following
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-4), i
    assert not found.requires_grad


def test_the_policys_loss() -> None:
    sac, steps, noise = small(), some_steps(), drawn(6, 2, seed=3)
    total = 0.0
    for i, z in enumerate(steps.skill.tolist()):
        action, k = chosen(sac, steps.before[i], z, noise[i])
        total += 0.3 * k.item() - least(sac.critics, steps.before[i], z, action)
    assert sac.loss(steps, noise).item() == pytest.approx(total / 6, rel=1e-4)


def test_the_policys_gradient_goes_through_its_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one linear critic `c . u`: d/d mean = a u - c, d/d log std = -a + (a u - c) std e, summed over the items."""
    sac, steps, noise = small(), some_steps(), drawn(6, 2, seed=3)
    c = torch.tensor([0.7, -0.4])
    monkeypatch.setattr(sac, "values", lambda critics, x, z, action: (action @ c)[None])
    sac.loss(steps, noise).backward()
    actions = torch.stack([chosen(sac, x, z, e)[0] for x, z, e in zip(steps.before, steps.skill, noise, strict=True)])
    mean = 0.3 * actions - c
    torch.testing.assert_close(sac.policy.head.bias.grad, mean.mean(0))
    log_std = mean * sac.policy.log_std.detach().exp()[steps.skill] * noise - 0.3
    expected = torch.zeros(3, 2).index_add(0, steps.skill, log_std) / 6
    torch.testing.assert_close(sac.policy.log_std.grad, expected)


def test_where_nothing_is_earned_the_policy_becomes_the_standard_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    """While its entropy alone would grow without end, of all actions that the environment clips."""
    sac, random = small(), torch.Generator().manual_seed(0)
    monkeypatch.setattr(sac, "values", lambda critics, x, z, action: torch.zeros(1, len(x)))
    for _ in range(500):
        x, z = torch.randn(60, 2, generator=random), torch.arange(60) % 3
        sac.descend(
            sac.loss(some_steps(60)._replace(before=x, skill=z), torch.randn(60, 2, generator=random)), sac.policy
        )
    mean, log_std = sac.policy(drawn(60, 2), torch.arange(60) % 3).chunk(2, -1)
    assert mean.abs().max() < 0.2
    assert log_std.abs().max() < 0.1


def test_an_update_moves_critics_then_policy_and_the_slow_critics_a_tenth_of_the_way() -> None:
    sac, paths = small(), some_paths()
    before = {name: value.clone() for name, value in sac.state_dict().items()}
    skill = torch.arange(3).view(3, 1, 1).expand(3, 2, 4)
    sac.improve(paths, skill, lambda states, z: states.sum(-1), torch.Generator().manual_seed(0))
    after = sac.state_dict()
    for name, value in after.items():
        kind, _, rest = name.partition(".")
        if kind == "targets":
            expected = before[name] + 0.1 * (after[f"critics.{rest}"] - before[name])
            torch.testing.assert_close(value, expected)
        elif kind in ("policy", "critics"):
            assert 0 < (value - before[name]).abs().max() < 0.011, name  # one step of Adam


def test_a_step_down_touches_one_network_alone() -> None:
    sac = small()
    before = {name: value.clone() for name, value in sac.state_dict().items()}
    sac.descend(sac.loss(some_steps(), drawn(6, 2)), sac.policy)
    changed = {name.partition(".")[0] for name, value in sac.state_dict().items() if not value.equal(before[name])}
    assert changed == {"policy"}


# The replay


def numbered(first: int, count: int) -> Steps:
    n = torch.arange(first, first + count)
    return Steps(n[:, None].float(), n, n[:, None] + 0.25, n[:, None] + 0.5, n % 2 == 0)


def test_the_replay_keeps_the_last_steps_in_order() -> None:
    replay, added = Replay(5, 1, 1), 0
    for count in (3, 1, 4, 5, 12, 0, 2):
        replay.add(numbered(added, count))
        added += count
        kept = range(max(added - 5, 0), added)
        assert [int(replay.state_dict()["skill"][i % 5]) for i in kept] == list(
            kept
        )  # step i lies at i modulo the size
        expected = numbered(0, added)
        for name, value in expected._asdict().items():
            at = torch.tensor(kept) % 5
            assert torch.equal(getattr(replay, name)[at], value[list(kept)]), name
        drawn = replay.sample(200, torch.Generator().manual_seed(added))
        assert set(drawn.skill.tolist()) == set(kept)
        assert torch.equal(drawn.after, drawn.before + 0.5)
        assert torch.equal(drawn.ended, drawn.skill % 2 == 0)


def test_steps_of_episodes() -> None:
    """The earliest first, none after an end; an end is one before the horizon."""
    paths = some_paths()
    steps = Steps.of(paths, torch.arange(3).view(3, 1, 1).expand(3, 2, 4))
    lived = [(t, z, e) for t in range(4) for z in range(3) for e in range(2) if paths.mask[z, e, t]]
    assert len(steps.skill) == len(lived) == 4 + 2 + 1 + 4 + 3 + 4
    for i, (t, z, e) in enumerate(lived):
        assert steps.skill[i] == z
        assert torch.equal(steps.before[i], paths.observations[z, e, t])
        assert torch.equal(steps.action[i], paths.actions[z, e, t])
        assert torch.equal(steps.after[i], paths.observations[z, e, t + 1])
        assert steps.ended[i] == (paths.mask[z, e].sum() == t + 1 < 4)
    assert steps.ended.sum() == 3


# DIAYN that learns by it


def test_rewards_of_old_steps_follow_the_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    learning, seen, original = Learning(FEW, SHORT, RunContext()), [], SoftActorCritic.target

    def observed(self: SoftActorCritic, steps: Steps, rewards: Tensor, noise: Tensor) -> Tensor:
        seen.append((steps, rewards))
        return original(self, steps, rewards, noise)

    learning.step(0)
    first = learning.save()["learner.replay.after"][:30].clone()
    before = SkillRewards(learning.discriminator)
    old = before.discriminator(first).detach()
    monkeypatch.setattr(SoftActorCritic, "target", observed)
    learning.step(1)
    assert len(seen) == SOFT.updates
    again = 0
    for steps, rewards in seen:
        logs = learning.discriminator(steps.after).detach()
        for i, z in enumerate(steps.skill.tolist()):
            assert rewards[i].item() == pytest.approx(logs[i, z].item() + math.log(3), abs=1e-5)
            again += int((first == steps.after[i]).all(-1).any())
    assert again > 0  # some were steps of the iteration before
    assert (learning.discriminator(first) - old).abs().max() > 0.01


@pytest.mark.parametrize("step", [1, 4])
def test_a_resume_goes_on_bit_for_bit(step: int, tmp_path: Path) -> None:
    """Networks, their slow copies, Adam's moments and the replay, which wraps in between."""

    def learnt(name: str, steps: int, resume: bool = False) -> State:
        learning = Learning(FEW, SHORT, RunContext(seed=1))
        ctx = RunContext(seed=1, folder=tmp_path / name, resume=resume)
        ctx.loop("diayn", steps, learning.step, learning.save, learning.load)
        return learning.save()

    whole = learnt("whole", FEW.iterations)
    learnt("cut", step)
    resumed = learnt("cut", FEW.iterations, resume=True)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert whole["learner.replay.added"] == 30 * FEW.iterations > SOFT.replay
    parts = {name.split(".")[1] for name in whole if name.startswith("learner.")}
    assert parts == {"policy", "critics", "targets", "replay"}


def test_skills_are_told_apart_within_seconds() -> None:
    env = Nav2D(horizon=40)
    options = Diayn(algorithm=SAC(updates=40), skills=SKILLS, iterations=20, episodes=4, hidden=32)
    tasks = options.propose(env, RunContext())
    assert tasks.skills is not None
    assert isinstance(tasks.rewards, SkillRewards)
    paths = episodes(env, act(tasks.skills), SKILLS, 10, seeds.generator(7, "fresh"))
    right = tasks.rewards.discriminator(paths.after).argmax(-1) == torch.arange(SKILLS)[:, None, None]
    assert right.float().mean() > 0.75  # chance is 0.25
    assert paths.actions.abs().max() < 10  # none runs away to where the environment clips it


def test_what_improves_the_policies_is_a_part_with_its_options() -> None:
    of_nav2d = build.load("nav2d_diayn", ["proposer.algorithm={name: sac, updates: 7}"]).proposer
    assert isinstance(of_nav2d, Diayn)
    assert of_nav2d.algorithm == SAC(updates=7)
    assert isinstance(build.load("nav2d_diayn", ["proposer.algorithm={name: ppo, clip: 0.1}"]).proposer.algorithm, PPO)
    with pytest.raises(UserError, match=r"proposer\.algorithm: unknown option 'clip'; known: .*updates"):
        build.load("nav2d_diayn", ["proposer.algorithm=sac", "proposer.algorithm.clip=0.1"])
    with pytest.raises(UserError, match=r"proposer\.algorithm.*'td3'"):
        build.load("nav2d_diayn", ["proposer.algorithm=td3"])
